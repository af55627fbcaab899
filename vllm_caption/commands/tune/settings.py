"""What is tried: a flag, its values, and the command line of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final, NamedTuple

from vllm_caption.flags import without_flags

SEQS: Final = "max-num-seqs"
OWN_FLAGS: Final = ("--try", "--sample", "--tune-output")
"""Flags of `tune` that a run does not know."""
_FIXED: Final = (
    *("data-parallel-size", "dp", "executor", "ray-address", "input", "jsons", "json-detail"),
    *("images-root", "output", "limit", "pilot", "shard", "no-txt", "caption-name"),
)
"""Flags that do not change an engine, or that `tune` sets itself."""


class Tried(NamedTuple):
    """A flag without its dashes, and the values to measure; no values: each is twice the one
    before, as long as that makes a difference."""

    flag: str
    values: tuple[str, ...] = ()


DOUBLING: Final = Tried(SEQS)


def parse_try(text: str) -> Tried:
    """`FLAG=V1,V2`; a comma within brackets or braces belongs to the value."""
    flag, equals, values = text.partition("=")
    flag = flag.strip().lstrip("-").replace("_", "-")
    listed = tuple(dict.fromkeys(_split(values)))
    if not (flag and equals and listed):
        raise argparse.ArgumentTypeError(f"{text} is not FLAG=V1,V2, as block-size=16,32")
    if flag in _FIXED or f"--{flag}" in OWN_FLAGS:
        raise argparse.ArgumentTypeError(f"--{flag} does not change an engine; try another flag")
    return Tried(flag, listed)


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def word(flag: str, value: str) -> str:
    """The flag with its value; true and false are those of a switch."""
    match value:
        case "true":
            return f"--{flag}"
        case "false":
            return f"--no-{flag}"
        case _:
            return f"--{flag}={value}"


def line_of(arguments: Sequence[str], flag: str, value: str) -> list[str]:
    """The flags of a run with this value: those of `tune`, without its own."""
    kept = without_flags(arguments, (*OWN_FLAGS, f"--{flag}", f"--no-{flag}"))
    return [*kept, word(flag, value)]
