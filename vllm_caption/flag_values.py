"""From the text of a flag to its value; argparse tells a user what is wrong with it."""

from __future__ import annotations

import argparse
import math

from vllm_caption.errors import ITEM_KINDS
from vllm_caption.shards import Shard


def positive(text: str) -> int:
    """A whole number from 1."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """A whole number from 0."""
    return _at_least(0, text)


def above_zero(text: str) -> float:
    """A number, and not without end."""
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is not {least} or more")
    return value


def shard(text: str) -> Shard:
    """As 3/8."""
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def names(text: str) -> tuple[str, ...]:
    """As a,b,c."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def kinds(text: str) -> tuple[str, ...]:
    """Of failures and flags."""
    from vllm_caption.captions.rules import FLAGS

    for name in (found := names(text)):
        if name not in (*ITEM_KINDS, *FLAGS):
            known = f"kinds: {', '.join(ITEM_KINDS)}; flags: {', '.join(FLAGS)}"
            raise argparse.ArgumentTypeError(f"{name} is neither a kind nor a flag ({known})")
    return found
