"""monitor.parquet: the numbers of all runs of an output folder over time, bounded in size.

Invariants: the file is replaced whole, below the folder that was opened at start; the first and
the last sample of a run stay longest; every number is the one that was seen at `at`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.store.atomic import write_file
from vllm_caption.store.layout import SAMPLES

MAX_POINTS_OF_RUN: Final = 2048
MAX_POINTS_BEFORE: Final = 4096
FAULTS: Final = (OSError, ValueError, KeyError, pa.ArrowException)
"""What reading or writing the file can raise."""

ENGINE: Final = pa.struct(
    [
        ("engine", pa.int32()),
        ("state", pa.string()),
        ("captioned", pa.int64()),
        ("output_tokens", pa.int64()),
        ("in_flight", pa.int32()),
        ("restarts", pa.int32()),
        ("rss_mib", pa.float32()),
        ("gpu_percent", pa.float32()),
        ("gpu_memory_percent", pa.float32()),
        ("gpu_temperature_c", pa.float32()),
    ]
)
SCHEMA: Final = pa.schema(
    [
        ("at", pa.timestamp("us", tz="UTC")),
        ("run_id", pa.string()),
        ("images_per_s", pa.float32()),
        ("tokens_per_s", pa.float32()),
        ("captioned", pa.int64()),
        ("failed", pa.int64()),
        ("in_flight", pa.int32()),
        ("cpu_percent", pa.float32()),
        ("ram_percent", pa.float32()),
        ("driver_rss_mib", pa.float32()),
        ("disk_free_gib", pa.float32()),
        ("engines", pa.list_(ENGINE)),
    ]
)


class Series:
    """The samples of this run after those of earlier ones. A run that gets long keeps every
    second of its samples, then every fourth, and so on, evenly over its whole length."""

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
        """One sample, by the columns' names; the last one of a run is always kept."""
        if last or self._num_seen % self._stride == 0:
            self._new.append(pa.Table.from_pylist([dict(sample)], SCHEMA))
        self._num_seen += 1
        if self._run.num_rows + len(self._new) > self._max_points:
            self._gather()
            self._run = self._run.take(list(range(0, self._run.num_rows, 2)))
            self._stride *= 2

    def table(self) -> pa.Table:
        """Everything that is kept, oldest first."""
        self._gather()
        return pa.concat_tables([self._earlier, self._run])

    def _gather(self) -> None:
        self._run = pa.concat_tables([self._run, *self._new]).combine_chunks()
        self._new = []


def thin(table: pa.Table, most: int) -> pa.Table:
    """At most so many samples: every second one goes, but for the ends of each run, as often as
    needed; then the oldest."""
    while table.num_rows > most:
        runs = table["run_id"].to_pylist()
        around = zip([None, *runs], runs, [*runs[1:], None], strict=False)
        ends = [before != run or run != after for before, run, after in around]
        keep = [row for row, is_end in enumerate(ends) if is_end or row % 2 == 0]
        if len(keep) == table.num_rows:
            return table.slice(table.num_rows - most)
        table = table.take(keep)
    return table


def read_series(root: Path) -> pa.Table | None:
    """What earlier runs left; None where there is nothing. Raises FAULTS."""
    path = root / SAMPLES
    if not path.exists():
        return None
    with path.open("rb") as file:
        table = pq.ParquetFile(file).read()
    return table.select(SCHEMA.names).cast(SCHEMA)


def write_series(folder: int, table: pa.Table) -> None:
    """Replace the file. ``folder``: an open descriptor of the output folder. Raises FAULTS."""

    def fill(file: BinaryIO) -> None:
        pq.write_table(table.combine_chunks(), file, compression="zstd")

    write_file(SAMPLES, fill, dir_fd=folder)
