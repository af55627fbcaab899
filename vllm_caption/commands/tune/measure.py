"""What a run of one engine left behind → the figures of its steady state. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, quantiles
from typing import Any, Final

from vllm_caption.commands.tune.ladder import steady_part
from vllm_caption.commands.tune.record import Figures
from vllm_caption.monitoring.bottleneck import Limit

STAGES: Final = ("queue_s", "prepare_s", "render_queue_s", "render_s", "generate_s")
COLUMNS: Final = (
    *("document", "element_index", "file", "status", "engine", "output_tokens", "finished_at"),
    *STAGES,
)
"""Of a row; the first three are what rows are sorted by."""


def measure(
    rows: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    *,
    num_seqs: int,
    started_at_s: float,
    limited_by: Limit | None,
    gpus_per_engine: int = 1,
) -> Figures | None:
    """``rows`` of the manifest with COLUMNS, ``samples`` of the monitor. None where the run had no
    steady state. Times are in seconds since 1970."""
    made = [row for row in rows if row["status"] == "captioned" and row["engine"] is not None]
    made.sort(key=_ended)
    if (part := steady_part(len(made), num_seqs)) is None:
        return None
    begin, end = part
    steady, begin_s, end_s = made[begin + 1 : end + 1], _ended(made[begin]), _ended(made[end])
    steady_s = max(end_s - begin_s, 1e-6)
    cuts = quantiles((row["generate_s"] for row in steady), n=20, method="inclusive")
    reached_s = min(_ended(row) - sum(row[stage] for stage in STAGES) for row in made)
    engines = [s["engines"][0] for s in samples if begin_s <= s["at"].timestamp() <= end_s]
    return Figures(
        images=len(steady),
        steady_s=round(steady_s, 2),
        images_per_s=round(len(steady) / steady_s, 3),
        tokens_per_s=round(sum(row["output_tokens"] for row in steady) / steady_s, 1),
        engine_s_p50=round(cuts[9], 3),
        engine_s_p95=round(cuts[18], 3),
        limited_by=limited_by,
        gpu_percent=_mean([engine["gpu_percent"] for engine in engines]),
        gpu_memory_percent=_mean([engine["gpu_memory_percent"] for engine in engines]),
        start_s=round(reached_s - started_at_s, 1),
        gpus_per_engine=gpus_per_engine,
    )


def _ended(row: Mapping[str, Any]) -> float:
    at_s: float = row["finished_at"].timestamp()
    return at_s


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(fmean(known), 1) if known else None
