"""What limits a run at a moment, from what was measured: queue depths and the time spent waiting.

Pure. The reasoning: a driver that is busy all the time, with writing or with itself, is the limit.
Otherwise an engine whose sequence slots are full is. If they are not full, its items are on their
way to it, being read and decoded; or there are no more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Limit = Literal["starting", "input", "decode", "engine", "disk", "driver", "tail"]
FULL: Final = 0.8
"""An engine counts as full from this share of its sequence slots on."""
BUSY: Final = 0.8
"""A driver that computes for this share of the time does not keep up."""


@dataclass(frozen=True, slots=True)
class Load:
    """One moment of a run. ``writing``, ``computing``: shares of the time in which the driver
    writes, and in which it computes; ``images_per_s``, ``num_generating``: of the last half minute,
    captions, and how many were being generated at a time."""

    num_up: int
    num_waiting: int
    num_in_flight: int
    scanning: bool
    max_num_seqs: int
    writing: float
    computing: float
    images_per_s: float
    num_generating: float


def limit(load: Load) -> Limit:
    """What the run would need more of to be faster."""
    if not load.num_up:
        return "starting"
    num_slots = load.max_num_seqs * load.num_up
    if not load.num_waiting and load.num_in_flight < num_slots:
        return "input" if load.scanning else "tail"
    if load.writing > 0.5:
        return "disk"
    if load.computing > BUSY:
        return "driver"
    full = load.num_generating >= FULL * num_slots
    return "engine" if full or not load.images_per_s else "decode"
