"""Which setting is measured next and on how many items, when to stop, and which is the fastest.

Pure: from what was measured to a decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from vllm_caption.commands.tune.record import Figures, Setting
from vllm_caption.commands.tune.settings import SEQS, Tried

MIN_GAIN: Final = 0.05
"""A doubling that gives less is the last one."""
TIE: Final = 0.02
"""Speeds this close count as equal: the difference may be chance. Fewer sequences need less memory,
and lose less when an engine dies."""
START_ROUNDS, TAIL_ROUNDS = 2, 1
"""An engine's first and last rounds do not count; a round is as many items as it has sequences."""
ROUNDS: Final = 16
MIN_ROUNDS: Final = 4
"""Of the steady state."""
MIN_ITEMS: Final = 256
"""For a mixture of images that is like the whole."""
MIN_STEADY_S: Final = 10.0


class Stop(NamedTuple):
    """Nothing more is measured, and why."""

    why: str


def next_value(
    tried: Tried, done: Sequence[Setting], first_seqs: int, num_sampled: int
) -> str | Stop:
    """What is measured after ``done``; ``first_seqs``: where doubling begins."""
    if not tried.values:
        return _next_doubling(done, first_seqs, num_sampled)
    measured = {setting.value for setting in done}
    left = (value for value in tried.values if value not in measured)
    return next(left, Stop("all values were measured"))


def _next_doubling(done: Sequence[Setting], first: int, num_sampled: int) -> str | Stop:
    if not done:
        return str(first)
    last = done[-1]
    if last.speed is None:
        return Stop(f"{last.value} could not be measured")
    if len(done) > 1 and (before := done[-2]).speed is not None:
        gain = last.speed / before.speed - 1
        if gain < MIN_GAIN:
            return Stop(
                f"{last.value} is {gain:+.1%} compared with {before.value}, a gain of less than 5%"
            )
    doubled = 2 * int(last.value)
    if min_items(doubled) > num_sampled:
        return Stop(
            f"{doubled} needs at least {min_items(doubled):,} items, and the sample has"
            f" {num_sampled:,}"
        )
    return str(doubled)


def fastest(flag: str, done: Sequence[Setting]) -> Setting | None:
    """Of those that are as fast as the fastest, the one with the fewest sequences, or of another
    flag the one tried first; None where nothing was measured."""
    speeds = [(setting, speed) for setting in done if (speed := setting.speed) is not None]
    best = max((speed for _, speed in speeds), default=0.0)
    equal = [setting for setting, speed in speeds if speed >= (1 - TIE) * best]
    if flag == SEQS:
        equal.sort(key=lambda setting: int(setting.value))
    return equal[0] if equal else None


def gain_of(best: Setting, done: Sequence[Setting]) -> str:
    """How much faster it is than the first that was measured, as a clause; "" for that itself."""
    first = next((setting for setting in done if setting.speed is not None), best)
    if first is best or best.speed is None or first.speed is None:
        return ""
    return f", {best.speed / first.speed:.2f} times as fast as {first.value}"


# --- the sample -------------------------------------------------------------------------------


def min_items(num_seqs: int) -> int:
    """The fewest items on which an engine reaches its steady state."""
    return (START_ROUNDS + MIN_ROUNDS + TAIL_ROUNDS) * num_seqs


def num_items(num_seqs: int, before: Figures | None, num_sampled: int) -> int:
    """How many items a setting is measured on. ``before``: of another setting, or of this one where
    that was too short."""
    wanted = max(MIN_ITEMS, ROUNDS * num_seqs)
    if before is not None:
        seconds = MIN_STEADY_S * ROUNDS / (ROUNDS - START_ROUNDS - TAIL_ROUNDS)
        wanted = max(wanted, math.ceil(before.images_per_s * seconds))
    return min(wanted, num_sampled)


def expected_s(number: int, before: Figures | None) -> float | None:
    """How long so many items take, if no setting is slower than the last; None for the first."""
    return None if before is None else before.start_s + number / max(before.images_per_s, 1e-3)


def is_too_short(figures: Figures) -> bool:
    """Whether more items are needed for figures to rely on."""
    return figures.steady_s < MIN_STEADY_S / 2


def steady_part(num_finished: int, num_seqs: int) -> tuple[int, int] | None:
    """The places of the finished items between which an engine was in its steady state, in the
    order of their ends: from the end of the first to the end of the second. None if it never was.

    It is a number of whole rounds: sequences that begin together also end together.
    """
    rounds = (num_finished - TAIL_ROUNDS * num_seqs) // num_seqs - START_ROUNDS
    if rounds < MIN_ROUNDS:
        return None
    begin = START_ROUNDS * num_seqs - 1
    return begin, begin + rounds * num_seqs
