"""What limits a run at a moment, from what was measured: queue depths and the time spent waiting.

Pure. The reasoning: a driver that is busy all the time, with writing or with itself, is the limit.
Otherwise an engine whose sequence slots are full is. If they are not full, its items are on their
way to it, and most of them are where it is slow: they are read and decoded, or rendered. Or there
are no more of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Limit = Literal["starting", "input", "decode", "render", "engine", "disk", "driver", "tail"]
FULL: Final = 0.8
"""An engine counts as full from this share of its sequence slots on."""
BUSY: Final = 0.8
"""A driver that computes for this share of the time does not keep up."""
REMEDIES: Final[Mapping[Limit, str]] = {
    "decode": "more --prepare-threads, more cores, faster storage",
    "render": "a smaller --max-pixels, a core that is free for each engine; not --prepare-threads",
    "input": "faster storage for --jsons and --json-detail",
    "disk": "a faster disk",
    "driver": "fewer engines per driver: --shard",
}
"""What makes a run faster, by what limits it; an engine should be the limit."""


@dataclass(frozen=True, slots=True)
class Load:
    """One moment of a run. ``writing``, ``computing``: shares of the time in which the driver
    writes, and in which it computes; ``images_per_s`` and the ``num_…ing``: of the last half
    minute, captions, and how many items were in each stage at a time, or waited for it."""

    num_up: int
    num_waiting: int
    num_in_flight: int
    scanning: bool
    max_num_seqs: int
    writing: float
    computing: float
    images_per_s: float
    num_preparing: float
    num_rendering: float
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
    if load.num_generating >= FULL * num_slots or not load.images_per_s:
        return "engine"
    return "render" if load.num_rendering > load.num_preparing else "decode"


def main_limit(limits_s: Mapping[Limit, float]) -> Limit | None:
    """The limit that a run had for most of the time that its engines worked, from the seconds of
    each; None where they did not."""
    at_work_s = {name: s for name, s in limits_s.items() if name not in ("starting", "tail")}
    return max(at_work_s, key=lambda name: at_work_s[name], default=None)


def remedy(limits_s: Mapping[Limit, float]) -> str | None:
    """What to change about the limit that a run had for most of the time, from the seconds of each;
    None where that is nothing: its engines were the limit, or it was too short to have another."""
    longest = main_limit(limits_s)
    if longest is None or limits_s[longest] <= sum(limits_s.values()) / 2:
        return None
    return REMEDIES.get(longest)
