"""A visit to a GPU machine: which step is next, and what the results show together.

Steps do not depend on each other. Each has a time limit, and the whole has one; a step that does
not fit into the time that is left is skipped for one that does, and is named in the results.

Pure: the clock is passed in, and only the steps themselves touch anything.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

RESERVE_S: Final = 10.0
"""Left of the whole time after the last step, to end what it left running."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How a step ended. ``says``: one sentence for people."""

    good: bool
    says: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(problems: Sequence[str], good: str, figures: Mapping[str, Any]) -> Finding:
        """Good where there are no problems; else the problems are what it says."""
        return Finding(not problems, "; ".join(problems) or good, figures)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to try. ``act`` gets its time limit in seconds."""

    name: str
    shows: str
    least_s: float
    """With less time left, it is not started."""
    limit_s: float
    act: Callable[[float], Finding]


Result = dict[str, Any]
"""A finding as it is written: `good`, `says`, `took_s` and its figures."""


def visit(
    steps: Sequence[Step],
    results: dict[str, Result],
    clock: Callable[[], float],
    budget_s: float,
    patience: float,
    begun: Callable[[Step, float], None],
    ended: Callable[[Step], None],
) -> None:
    """Try the steps that have no result, as time permits; their results go into ``results``.

    ``patience``: a factor on the limit of each step; ``begun`` gets the step and its limit.
    """
    end_s = clock() + budget_s
    while step := next_step(steps, results, end_s - clock()):
        began_s = clock()
        limit_s = time_limit_s(step, end_s - began_s, patience)
        begun(step, limit_s)
        found = _tried(step, limit_s)
        verdict = {"good": found.good, "says": found.says, "took_s": round(clock() - began_s, 1)}
        results[step.name] = verdict | dict(found.figures)
        ended(step)


def _tried(step: Step, limit_s: float) -> Finding:
    try:
        return step.act(limit_s)
    except Exception as error:  # noqa: BLE001 - whatever stops a step is its result
        lines = traceback.format_exc().splitlines()[-12:]
        return Finding(False, f"{type(error).__name__}: {error}", {"traceback": lines})


def next_step(steps: Sequence[Step], done: Mapping[str, object], left_s: float) -> Step | None:
    """The first step without a result that fits into the time that is left."""
    fitting = (step for step in steps if step.name not in done)
    return next((step for step in fitting if step.least_s <= left_s - RESERVE_S), None)


def time_limit_s(step: Step, left_s: float, patience: float) -> float:
    """The time limit of a step: its own, but never more than is left."""
    return min(step.limit_s * patience, left_s - RESERVE_S)


def left_out(steps: Sequence[Step], done: Mapping[str, object]) -> dict[str, str]:
    """The steps without a result, each with the reason."""
    missing = (step for step in steps if step.name not in done)
    return {step.name: f"too little time was left: {step.least_s:.0f} s needed" for step in missing}


RATIOS: Final = (
    ("job8", "ceiling8", "the job at 8 sequences, of vLLM alone"),
    ("job64", "ceiling64", "the job at 64 sequences, of vLLM alone"),
    ("fp8", "job64", "with --quantization fp8, of without"),
    ("capture_sizes", "job64", "with CUDA graphs up to 512 tokens, of without"),
    ("mm_encoder", "job64", "with CUDA graphs of the vision encoder, of without"),
)
"""Two steps whose speeds are compared, and what the first divided by the second is."""


def ratios(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The speeds of successful steps, each divided by the one it is compared with."""
    speeds = {
        name: result["images_per_s"]
        for name, result in results.items()
        if result["good"] and result.get("images_per_s")
    }
    return {
        meaning: round(speeds[one] / speeds[other], 3)
        for one, other, meaning in RATIOS
        if one in speeds and other in speeds
    }
