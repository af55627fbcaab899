"""The checkpoint manifest, written: rows go to a journal first, then to Parquet parts of one
dataset.

Invariants:
- a row is appended after its .txt is in place, and a part is written after the .txt files of its
  rows have reached the disk, so a row implies a file, also after a power loss;
- the journal holds exactly the rows that no part holds yet (or, after a crash between the two
  steps, rows that are in the newest part too, with equal content);
- of several rows of one item the last one counts: parts are ordered by their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.store.atomic import write_file
from vllm_caption.store.journal import Journal, read_journal
from vllm_caption.store.layout import MANIFEST, part_name, part_number, parts, temporary_parts
from vllm_caption.store.reader import ROWS_AT_A_TIME, last_rows, read_states
from vllm_caption.store.rows import SCHEMA, ItemState, Row, to_table


class Checkpoint:
    """The manifest of one output folder, opened for writing by the one run that holds its lock."""

    def __init__(
        self, root: Path, interval: int, reconcile: Callable[[Row], Row] = lambda row: row
    ) -> None:
        """``reconcile``: makes a row that a killed run left in its journal agree with its .txt."""
        self.folder = root / MANIFEST
        self._interval = interval
        self.folder.mkdir(parents=True, exist_ok=True)
        # Parts are written below an opened folder, as the .txt files are: see `CaptionFiles`.
        self._folder_fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        for leftover in temporary_parts(self.folder):
            leftover.unlink()
        self._next_part = 1 + max((part_number(path) for path in parts(self.folder)), default=0)
        self._rows = [reconcile(row) for row in read_journal(root).rows]
        self._journal = Journal(root)
        self.write_part()  # what a killed run left in its journal

    def append(self, row: Row) -> None:
        """Record one row; it survives the death of this process from here on."""
        self._journal.append(row)
        self._rows.append(row)
        if len(self._rows) >= self._interval:
            self.write_part()

    def write_part(self) -> None:
        """Turn the journal into a Parquet part."""
        if self._rows:
            self._journal.sync_file_system()
            self._write([to_table(self._rows)])
            self._rows.clear()
        self._journal.clear()

    def states(self) -> dict[str, ItemState]:
        """The state of every item that has a row in a part."""
        return read_states(parts(self.folder))

    def take_over(self, path: Path) -> None:
        """Make a part of another manifest, on the same file system, the newest of this one."""
        self.write_part()
        os.replace(path, part_name(self._next_part), dst_dir_fd=self._folder_fd)
        os.fsync(self._folder_fd)
        self._next_part += 1

    def compact(self) -> None:
        """One part with the last row of every item, in the items' order of finishing."""
        self.write_part()
        old = parts(self.folder)
        if len(old) < 2:
            return
        self._write(last_rows(old))
        for path in old:
            os.unlink(path.name, dir_fd=self._folder_fd)

    def close(self) -> None:
        """Write what is left as a part."""
        self.write_part()
        self._journal.close()
        os.close(self._folder_fd)

    def _write(self, tables: Iterable[pa.Table]) -> None:
        def fill(file: BinaryIO) -> None:
            with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
                for table in _gathered(tables):
                    writer.write_table(table)

        # On the disk, name and all, before its rows leave the journal and the parts it replaces go.
        write_file(
            part_name(self._next_part),
            fill,
            dir_fd=self._folder_fd,
            sync_content=True,
            sync_name=True,
        )
        self._next_part += 1


def _gathered(tables: Iterable[pa.Table]) -> Iterable[pa.Table]:
    """The same rows in tables of at least ROWS_AT_A_TIME, each of which becomes a row group."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROWS_AT_A_TIME:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
