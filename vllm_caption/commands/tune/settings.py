"""What is tried: a flag, its values, and the command line of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from vllm_caption.flags import run_parser, without_flags

SEQS: Final = "max-num-seqs"
OWN_FLAGS: Final = ("--try", "--sample", "--tune-output")
"""Flags of `tune` that a run does not know."""
OURS: Final = (
    *(SEQS, "prepare-threads", "tensor-parallel-size", "pipeline-parallel-size", "model", "prompt"),
    *("max-side", "min-pixels", "max-pixels", "max-tokens", "min-tokens", "max-retries"),
    *("temperature", "top-p", "top-k", "seed"),
    *("repetition-penalty", "presence-penalty", "frequency-penalty"),
)
"""Flags of a run, other than vLLM's, that can be tried: the speed of one engine depends on them."""


class Tried(NamedTuple):
    """A flag without its dashes, and the values to measure; no values: each is twice the one
    before, as long as that makes a difference."""

    flag: str
    values: tuple[str, ...] = ()


DOUBLING: Final = Tried(SEQS)


def parse_try(text: str) -> Tried:
    """`FLAG=V1,V2`; a comma within brackets or braces belongs to the value."""
    name, equals, values = text.partition("=")
    flag = _long_name(name.strip().lstrip("-").replace("_", "-"))
    listed = tuple(dict.fromkeys(_split(values)))
    if not (flag and equals and listed):
        raise argparse.ArgumentTypeError(f"{text} is not FLAG=V1,V2, such as block-size=16,32")
    if flag not in OURS and f"--{flag}" in (*run_parser().flags, *OWN_FLAGS):
        raise argparse.ArgumentTypeError(
            f"--{flag} cannot be tried; it must be a flag of vLLM's engine or one of"
            f" {', '.join(OURS)}"
        )
    return Tried(flag, listed)


def _long_name(flag: str) -> str:
    """`tensor-parallel-size` for `tp`."""
    known = run_parser().flags.get(f"-{flag}")
    return flag if known is None else known.option_strings[0].removeprefix("--")


class Once(argparse.Action):
    """A flag that may be given once: of two, one would be dropped silently."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Take the value."""
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, "is given twice; tune varies one flag at a time")
        setattr(namespace, self.dest, values)


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
