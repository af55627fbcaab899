"""What limits a run at the moment, judged by how many items are in each stage.

Pure. The reasoning: a driver that is always busy, writing or computing, is the limit. Otherwise
engines whose sequence slots are full are. If they are not full, their items are on the way, most of
them where it is slow (being read and decoded, or rendered), or there are no more items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Limit = Literal["starting", "input", "decode", "render", "engine", "disk", "driver", "tail"]
FULL: Final = 0.8
"""The share of its sequence slots from which an engine counts as full."""
BUSY: Final = 0.8
"""A driver that computes for more than this share of the time cannot keep up."""
REMEDIES: Final[Mapping[Limit, str]] = {
    "decode": "more --prepare-threads, more cores, faster storage",
    "render": "a smaller --max-pixels, a free core for each engine",
    "input": "faster storage for the input",
    "disk": "a faster disk",
    "driver": "fewer engines per driver: --shard",
}
"""What makes a run faster, by its limit."""
AS_IT_SHOULD_BE: Final = "as it should be"
"""Of a run that the engines limit."""


@dataclass(frozen=True, slots=True)
class Load:
    """One moment of a run. ``writing``, ``computing``: the share of its time that the driver writes
    or computes. Over the last half minute: ``num_captions``, and in ``num_…ing`` how many items
    were in each stage at a time, or waited for it."""

    num_up: int
    num_waiting: int
    num_in_flight: int
    scanning: bool
    max_num_seqs: int
    writing: float
    computing: float
    num_captions: int
    num_preparing: float
    num_rendering: float
    num_generating: float


def limit(load: Load) -> Limit:
    """The stage that limits the run."""
    if not load.num_up:
        return "starting"
    num_slots = load.max_num_seqs * load.num_up
    if not load.num_waiting and load.num_in_flight < num_slots:
        return "input" if load.scanning else "tail"
    if load.writing > 0.5:
        return "disk"
    if load.computing > BUSY:
        return "driver"
    if load.num_generating >= FULL * num_slots or load.num_captions < 2:
        return "engine"
    return "render" if load.num_rendering > load.num_preparing else "decode"


def main_limit(limits_s: Mapping[Limit, float]) -> Limit | None:
    """The limit that lasted longest while the engines worked, from the seconds of each; None if
    they did not work."""
    at_work_s = {name: s for name, s in limits_s.items() if name not in ("starting", "tail")}
    return max(at_work_s, key=lambda name: at_work_s[name], default=None)


def remedy(limits_s: Mapping[Limit, float]) -> str | None:
    """What to change about the limit that a run had for most of its time, from the seconds of each;
    None if there is nothing to change: the engines were the limit, or the run was too short."""
    longest = main_limit(limits_s)
    if longest is None or limits_s[longest] <= sum(limits_s.values()) / 2:
        return None
    return REMEDIES.get(longest)
