"""What the dispatcher decides about an item. ``T`` is the item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from vllm_caption.checks import Flag
from vllm_caption.errors import ItemKind
from vllm_caption.messages import Captioned, Failed

T = TypeVar("T")


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
