"""Figures over time: from monitor.parquet, or, for the speed, from the times of the rows.

The axis is running time: pauses between runs are left out. Figures that hold nothing have no chart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vllm_caption.commands.report.charts import Strand, line_chart
from vllm_caption.commands.report.records import Records
from vllm_caption.monitoring.figures import IN_FLIGHT, Figure
from vllm_caption.monitoring.samples import OF_ENGINE, OF_HOST, OF_RUN
from vllm_caption.store.layout import SAMPLES

MAX_POINTS: Final = 240
NUM_BINS_OF_ROWS: Final = 120
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """``at_s``: running time of each sample; ``borders``: of each change of runs."""

    at_s: np.ndarray
    borders: list[float]
    group: np.ndarray
    """Which samples are drawn as one point."""


def charts_over_time(records: Records) -> tuple[list[str], list[str]]:
    """Charts as markup, and sentences on what is left out."""
    notes: list[str] = []
    if records.series is None:
        notes.append(
            f"{SAMPLES} is missing or unreadable: speed is computed from the times in the manifest,"
            " and memory and GPU use over time are not known."
        )
        return _speed_of_rows(records.rows), notes
    series = records.series
    clock = _clock(_micros(series["at"]), series["run_id"].to_pylist())
    if not clock.at_s[-1] > 0:
        notes.append("The runs were too short for charts of memory and GPU use over time.")
        return _speed_of_rows(records.rows), notes
    charts = [
        *_lines(series, clock, OF_RUN),
        *_bands(series, clock, OF_ENGINE),
        *_lines(series, clock, {"in_flight": IN_FLIGHT}),
        *_lines(series, clock, OF_HOST),
    ]
    if not any(OF_ENGINE["gpu_percent"].chart in chart for chart in charts):
        notes.append("No GPU was measured, so there are no charts of GPUs.")
    return charts or _speed_of_rows(records.rows), notes


def _speed_of_rows(rows: pa.Table) -> list[str]:
    """Captions and tokens per second, by the rows that an engine answered."""
    made = rows.filter(pc.and_(pc.is_valid(rows["engine"]), pc.is_valid(rows["output_tokens"])))
    if len(made) < 2:
        return []
    made = made.sort_by("finished_at")
    clock = _clock(_micros(made["finished_at"]), made["run_id"].to_pylist())
    end_s = float(clock.at_s[-1])
    if end_s <= 0:
        return []
    num_bins = int(min(NUM_BINS_OF_ROWS, max(end_s, 2)))
    tokens = np.asarray(made["output_tokens"], dtype=float)
    size_s = end_s / num_bins
    charts: list[str] = []
    for title, unit, weights in (
        ("Speed", "images/s", None),
        ("Speed in tokens", "tokens/s", tokens),
    ):
        counts, edges = np.histogram(clock.at_s, num_bins, (0.0, end_s), weights=weights)
        strand = Strand(unit, (edges[1:] + edges[:-1]) / 2, counts / size_s)
        charts.append(line_chart(title, unit, [strand], clock.borders))
    return charts


def _clock(at_us: np.ndarray, runs: list[Any]) -> Clock:
    """``at_us`` in the order of writing."""
    steps = np.diff(at_us, prepend=at_us[:1]) / _MICROSECONDS
    begins = np.array([a != b for a, b in zip(runs, [*runs[:1], *runs], strict=False)])
    steps[begins] = 0.0
    at_s = np.cumsum(np.maximum(steps, 0.0))
    run = np.cumsum(begins)
    each = -(-len(at_s) // MAX_POINTS)
    group = np.unique(run * len(at_s) + np.arange(len(at_s)) // each, return_inverse=True)[1]
    return Clock(at_s, [float(s) for s in at_s[begins]], group)


def _lines(series: pa.Table, clock: Clock, figures: Mapping[str, Figure]) -> Iterator[str]:
    """One chart for each title, with a line for each of its figures."""
    titled = [(name, figure) for name, figure in figures.items() if figure.chart]
    for (title, unit), group in groupby(titled, lambda entry: (entry[1].chart, entry[1].unit)):
        strands = [
            Strand(figure.label, _mean(clock.at_s, clock), _mean(_numbers(series[name]), clock))
            for name, figure in group
            if series[name].null_count < len(series)
        ]
        if strands:
            yield line_chart(title, unit, strands, clock.borders)


def _bands(series: pa.Table, clock: Clock, figures: Mapping[str, Figure]) -> Iterator[str]:
    """For each figure, the engines' mean, and a band from the least to the most of them."""
    for name, figure in figures.items():
        found = _of_engines(series["engines"], name) if figure.chart else None
        if found is None:
            continue
        mean, low, high = (_mean(values, clock) for values in found)
        is_one = bool(np.array_equal(low, high, equal_nan=True))
        strand = Strand(
            "engine" if is_one else "mean of the engines, with least and most",
            _mean(clock.at_s, clock),
            mean,
            None if is_one else low,
            None if is_one else high,
        )
        yield line_chart(figure.chart, figure.unit, [strand], clock.borders)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")))


def _of_engines(
    engines: pa.ChunkedArray, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Mean, least and most of all engines at each sample."""
    rows = []
    for sample in engines.to_pylist():
        known = [engine[name] for engine in sample or () if engine[name] is not None]
        gap = float("nan")
        rows.append((sum(known) / len(known), min(known), max(known)) if known else (gap, gap, gap))
    mean, low, high = np.array(rows).T
    return (mean, low, high) if np.isfinite(mean).any() else None


def _mean(values: np.ndarray, clock: Clock) -> np.ndarray:
    """Of each group of samples; NaN where none of them is known."""
    known = np.isfinite(values)
    sums = np.bincount(clock.group, np.where(known, values, 0.0))
    numbers = np.bincount(clock.group, known.astype(float))
    means = np.full(len(sums), np.nan)
    np.divide(sums, numbers, out=means, where=numbers > 0)
    return means


def _micros(column: pa.ChunkedArray) -> np.ndarray:
    moments = pc.cast(column, pa.timestamp("us", tz="UTC"))
    return np.asarray(pc.cast(moments, pa.int64()))
