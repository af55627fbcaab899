"""What limits a run at a moment, from what was measured: queue depths and the time spent waiting.

Pure. The reasoning: where the driver is busy all the time, with writing or with itself, it is the
limit. Else an engine whose sequence slots are full is. Where they are not, its items are in front
of it, being read and decoded; or there are no more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from vllm_caption.monitoring.rates import Rates

Limit = Literal["starting", "input", "decode", "engine", "disk", "driver", "tail"]
FULL: Final = 0.8
"""Of an engine's sequence slots, from which on it counts as full."""
BUSY: Final = 0.8
"""Of the time: a driver that computes for so long does not keep up."""


@dataclass(frozen=True, slots=True)
class Load:
    """One moment of a run. ``writing``, ``computing``: shares of the time in which the driver
    writes, and in which it computes; ``rates``: of the last half minute."""

    num_up: int
    num_waiting: int
    num_in_flight: int
    scanning: bool
    max_num_seqs: int
    writing: float
    computing: float
    rates: Rates


def limit(load: Load) -> Limit:
    """What the run would have to have more of to be faster."""
    if not load.num_up:
        return "starting"
    if not load.num_waiting and load.num_in_flight < load.num_up * load.max_num_seqs:
        return "input" if load.scanning else "tail"
    if load.writing > 0.5:
        return "disk"
    if load.computing > BUSY:
        return "driver"
    full = load.rates.generating >= FULL * load.max_num_seqs * load.num_up
    return "engine" if full or not load.rates.images else "decode"
