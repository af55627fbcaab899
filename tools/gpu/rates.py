"""The speed of a run, from the times in its manifest.

The clock runs from the first item that an engine was given to the last caption, so the start of the
engine is no part of it; ``images_per_s_middle`` leaves out the first and the last tenth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any, Final

MIDDLE_AT_LEAST: Final = 25
"""Captions that the middle of a run needs for its speed to be meaningful."""


def rates(rows: Sequence[Mapping[str, Any]], started_at: float) -> dict[str, float | int]:
    """The figures of a run that was started at ``started_at`` (seconds since 1970)."""
    made = [row for row in rows if row["status"] == "captioned" and row["attempts"]]
    if len(made) < 2:
        return {}
    finished = sorted(row["finished_at"].timestamp() for row in made)
    first = min(row["finished_at"].timestamp() - _spent_s(row) for row in made)
    seconds = finished[-1] - first
    figures = {
        "start_s": round(first - started_at, 1),
        "seconds_at_work": round(seconds, 2),
        "images_per_s": round(len(made) / seconds, 2),
        "tokens_per_s": round(sum(row["output_tokens"] for row in made) / seconds, 1),
        "prompt_tokens_mean": round(mean(row["prompt_tokens"] for row in made), 1),
        "queue_s_median": round(median(row["queue_s"] for row in made), 4),
        "prepare_s_median": round(median(row["prepare_s"] for row in made), 4),
        "generate_s_median": round(median(row["generate_s"] for row in made), 4),
    }
    begin, end = len(made) // 10, len(made) * 9 // 10
    if end - begin >= MIDDLE_AT_LEAST and finished[end] > finished[begin]:
        speed = (end - begin) / (finished[end] - finished[begin])
        figures["images_per_s_middle"] = round(speed, 2)
    return figures


def _spent_s(row: Mapping[str, Any]) -> float:
    return float(row["queue_s"] + row["prepare_s"] + row["generate_s"])
