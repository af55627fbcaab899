"""What the dispatcher knows and decides about an item. ``T`` is the item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from vllm_caption.captions.rules import Flag
from vllm_caption.errors import ItemKind
from vllm_caption.messages import Captioned, Failed

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Task(Generic[T]):
    """An item and what has happened to it so far; ``killed``: engines that died of it alone."""

    item: T
    attempts: int = 0
    rejected: int = 0
    best: Captioned | None = None
    best_flags: tuple[Flag, ...] = ()
    solo_deaths: int = 0
    killed: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Leased(Generic[T]):
    """An item handed to an engine. ``rejected``: captions of it that broke a rule so far; above
    0 the sampling must change, since a greedy model would only repeat itself."""

    lease: int
    item: T
    rejected: int


@dataclass(frozen=True, slots=True)
class Accept(Generic[T]):
    """The item's caption is final."""

    item: T
    attempts: int
    result: Captioned
    flags: tuple[Flag, ...]


@dataclass(frozen=True, slots=True)
class GiveUp(Generic[T]):
    """The item failed for this run."""

    item: T
    attempts: int
    kind: ItemKind
    reason: str
    last: Captioned | Failed | None = None


@dataclass(frozen=True, slots=True)
class TryAgain(Generic[T]):
    """The item went back into the queue."""

    item: T


Decision = Accept[T] | GiveUp[T] | TryAgain[T]


def restart_delay_s(deaths_in_a_row: int) -> float:
    """Seconds before an engine is started again: none after a first death, then more and more,
    since what makes a start fail (memory not yet given back) may pass."""
    return 0.0 if deaths_in_a_row < 2 else min(5.0 ** (deaths_in_a_row - 2), 60.0)


def retry_delay_s(kind: str, attempts: int) -> float:
    """Seconds before an item is tried again: only where a pause may help, which is a file system
    that is away for a moment."""
    return 4.0 ** (attempts - 1) if kind == "unreadable" else 0.0
