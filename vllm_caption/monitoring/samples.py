"""monitor.parquet: the figures of all runs of an output folder over time, bounded in size.

Separate from the thread that fills it (`monitor`), so that the report can read it without NVML and
psutil.

Invariants: the file is replaced as a whole, in the folder that was opened at the start; the first
and last samples of a run are kept longest; every value was measured at `at`.

Why it is bounded: a sample every 5 s makes 121,000 samples a week, and the file is written once a
minute. Measured with 8 and 64 engines, that takes 12 and 74 MiB on disk, 55 and 378 MiB in memory
(0.9 GiB while writing), and 1.7 and 9 s per write. The 1,890 samples that a bounded series keeps
take 0.3 and 1.9 MiB, 1 and 6 MiB, and 0.15 and 0.5 s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.monitoring.figures import (
    IN_FLIGHT,
    EngineFigures,
    Figure,
    HostFigures,
    RunFigures,
    listed,
)
from vllm_caption.monitoring.status import read_status
from vllm_caption.store.atomic import write_file
from vllm_caption.store.layout import SAMPLES, state_folders

MAX_POINTS_OF_RUN: Final = 2048
MAX_POINTS_BEFORE: Final = 4096
FAULTS: Final = (OSError, ValueError, KeyError, pa.ArrowException)
"""What reading or writing the file can raise."""


def _columns(figures: Iterable[tuple[str, Figure]]) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.type_for_alias(figure.column)) for name, figure in figures]


def _first(figures: Mapping[str, Figure], *names: str) -> dict[str, Figure]:
    """The same with these first, so that the order of columns in the file does not change."""
    return {name: figures[name] for name in names} | dict(figures)


OF_RUN: Final = _first(listed(RunFigures), "images_per_s", "tokens_per_s")
OF_HOST: Final = listed(HostFigures)
OF_ENGINE: Final = _first(
    listed(EngineFigures), "engine", "state", "captioned", "output_tokens", "in_flight"
)
SCHEMA: Final = pa.schema(
    [
        ("at", pa.timestamp("us", tz="UTC")),
        ("run_id", pa.string()),
        *_columns(OF_RUN.items()),
        *_columns([("in_flight", IN_FLIGHT)]),
        *_columns(OF_HOST.items()),
        ("engines", pa.list_(pa.struct(_columns(OF_ENGINE.items())))),
    ]
)


class Series:
    """The samples of this run, after those of earlier runs. A long run keeps every other of its
    samples, then every fourth, and so on, evenly over its whole length."""

    def __init__(
        self,
        earlier: pa.Table | None = None,
        *,
        max_points: int = MAX_POINTS_OF_RUN,
        max_earlier: int = MAX_POINTS_BEFORE,
    ) -> None:
        self._earlier = SCHEMA.empty_table() if earlier is None else thin(earlier, max_earlier)
        self._run = SCHEMA.empty_table()
        self._new: list[pa.Table] = []
        self._max_points = max_points
        self._stride = 1
        self._num_seen = 0

    def add(self, sample: Mapping[str, Any], *, last: bool = False) -> None:
        """Add a sample, by column name; the last one of a run is always kept."""
        if last or self._num_seen % self._stride == 0:
            self._new.append(pa.Table.from_pylist([dict(sample)], SCHEMA))
        self._num_seen += 1
        if self._run.num_rows + len(self._new) > self._max_points:
            self._gather()
            self._run = self._run.take(list(range(0, self._run.num_rows, 2)))
            self._stride *= 2

    def table(self) -> pa.Table:
        """All samples that are kept, oldest first."""
        self._gather()
        return pa.concat_tables([self._earlier, self._run])

    def _gather(self) -> None:
        self._run = pa.concat_tables([self._run, *self._new]).combine_chunks()
        self._new = []


def thin(table: pa.Table, most: int) -> pa.Table:
    """Reduce to at most ``most`` samples: repeatedly drop every other one, except the first and
    last of each run; then the oldest. So each of many runs leaves a trace."""
    while table.num_rows > most:
        runs = table["run_id"].to_pylist()
        around = zip([None, *runs], runs, [*runs[1:], None], strict=False)
        ends = [before != run or run != after for before, run, after in around]
        keep = [row for row, is_end in enumerate(ends) if is_end or row % 2 == 0]
        if len(keep) == table.num_rows:
            return table.slice(table.num_rows - most)
        table = table.take(keep)
    return table


def engine_s(series: pa.Table) -> float:
    """Engine seconds of all runs and engines together, added up from sample to sample."""
    rows = zip(*(series[name].to_pylist() for name in ("at", "run_id", "engines")), strict=True)
    spent_s, before = 0.0, None
    for at, run_id, engines in rows:
        if before is not None and before[1] == run_id:
            spent_s += max((at - before[0]).total_seconds(), 0.0) * len(engines or ())
        before = (at, run_id)
    return spent_s


def read_series(root: Path) -> pa.Table | None:
    """The samples of earlier runs; None if there are none. Raises FAULTS."""
    path = root / SAMPLES
    if not path.exists():
        return None
    with path.open("rb") as file:
        table = pq.ParquetFile(file).read()
    # Figures that an older version did not have are null.
    every = pa.concat_tables([SCHEMA.empty_table(), table], promote_options="permissive")
    return every.select(SCHEMA.names).cast(SCHEMA)


def read_gpu_s(root: Path, gpus_per_engine: int = 1) -> float | None:
    """Seconds that GPUs were held by the runs of an output folder and of its shards; None if
    unknown. ``gpus_per_engine``: in a folder whose status.json is missing."""
    spent_s = []
    for folder in state_folders(root):
        with contextlib.suppress(*FAULTS):
            if (series := read_series(folder)) is not None:
                status = read_status(folder)
                num_gpus = gpus_per_engine if status is None else status.gpus_per_engine
                spent_s.append(engine_s(series) * num_gpus)
    return sum(spent_s) if spent_s else None


def write_series(folder: int, table: pa.Table) -> None:
    """Replace the file. ``folder``: an open descriptor of the output folder. Raises FAULTS."""

    def fill(file: BinaryIO) -> None:
        pq.write_table(table.combine_chunks(), file, compression="zstd")

    write_file(SAMPLES, fill, dir_fd=folder)
