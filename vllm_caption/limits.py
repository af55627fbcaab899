"""What limits a run at a moment, from what was measured: queue depths and the time spent waiting.

Pure. The reasoning: an engine whose sequence slots are full is the limit. If they are not, its
items are somewhere else: in front of it, being read and decoded, or with the driver, which is
busy writing or busy with itself; or there are no more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from vllm_caption.recent import Rates

Limit = Literal["starting", "input", "decode", "engine", "disk", "driver", "tail"]
MEANING: Final[dict[Limit, str]] = {
    "starting": "no engine is up yet",
    "input": "the manifests are not read fast enough",
    "decode": "images are not read and decoded fast enough: raise --prepare-threads, or the"
    " images' storage is slow",
    "engine": "the engines are full, as they should be",
    "disk": "captions are not written fast enough: --output is on a slow disk",
    "driver": "the driver does not keep up with its engines",
    "tail": "the last items are under way",
}
FULL: Final = 0.8
"""Of an engine's sequence slots, from which on it counts as full."""
HELD: Final = 0.75
"""Of what workers may hold, below which the driver is late in handing out."""


@dataclass(frozen=True, slots=True)
class Load:
    """One moment of a run. ``window``: items that one worker may hold; ``writing``: the share of
    the time in which the driver writes; ``rates``: of the last half minute."""

    num_up: int
    num_waiting: int
    num_in_flight: int
    scanning: bool
    max_num_seqs: int
    window: int
    writing: float
    rates: Rates


def limit(load: Load) -> Limit:
    """What the run would have to have more of to be faster."""
    if not load.num_up:
        return "starting"
    if not load.num_waiting and load.num_in_flight < load.num_up * load.max_num_seqs:
        return "input" if load.scanning else "tail"
    if load.writing > 0.5:
        return "disk"
    generating = load.rates.generating / load.num_up
    held = generating + load.rates.preparing / load.num_up
    if generating >= FULL * load.max_num_seqs:
        return "engine"
    return "decode" if held >= HELD * load.window or not load.rates.images else "driver"
