"""Writes the checkpoint manifest: rows go to a journal first, then to Parquet parts of one
dataset.

Invariants:
- a row is appended after its .txt is in place, and a part is written after the .txt files of its
  rows are on the disk, so a row implies a file even after a power loss;
- the journal holds exactly the rows that no part holds yet (or, after a crash between the two
  steps, rows that are in the newest part too, with equal content);
- the last row of an item counts: parts are ordered by their number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.store.atomic import write_file
from vllm_caption.store.disk.attempts import Disk
from vllm_caption.store.journal import Journal, read_journal
from vllm_caption.store.layout import MANIFEST, part_name, part_number, parts, temporary_parts
from vllm_caption.store.reader import ROWS_AT_A_TIME, extra_fields, last_rows, read_states
from vllm_caption.store.rows import SCHEMA, KnownItems, Row, to_table

UNSYNCED: Final = "The file system of --output cannot sync: a power loss may cost the last rows"


class Checkpoint:
    """The manifest of one output folder, opened for writing by the one run that holds its lock."""

    def __init__(
        self,
        root: Path,
        interval: int,
        reconcile: Callable[[Row], Row] = lambda row: row,
        disk: Disk | None = None,
    ) -> None:
        """``reconcile`` makes a row that a killed run left in its journal agree with its .txt."""
        self._disk = disk = disk or Disk()
        self.folder = root / MANIFEST
        self._interval = interval
        disk.attempt("start", lambda: self.folder.mkdir(parents=True, exist_ok=True))
        # Parts are written below an opened folder, like the .txt files: see `CaptionFiles`.
        self._folder_fd = disk.attempt(
            "start", lambda: os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        )
        for leftover in disk.attempt("start", lambda: temporary_parts(self.folder)):
            disk.try_once("remove", leftover.unlink, f"{leftover} cannot be removed")
        present = disk.attempt("start", lambda: parts(self.folder))
        self._next_part = 1 + max(map(part_number, present), default=0)
        found = disk.attempt("file", lambda: read_journal(root))
        self._rows = [reconcile(row) for row in found.rows]
        self._journal = Journal(root, disk)
        self.write_part()  # what a killed run left in its journal

    def append(self, row: Row) -> None:
        """Record one row; it survives the death of this process from here on."""
        if self._journal.was_removed():  # its rows are in memory alone
            self.write_part()
            self._journal.open_again()
        self._journal.append(row)
        self._rows.append(row)
        if len(self._rows) >= self._interval:
            self.write_part()

    def write_part(self) -> None:
        """Turn the journal into a Parquet part."""
        if self._rows:
            self._journal.sync_file_system()
            self._write(lambda: [to_table(self._rows)])
            self._rows.clear()
        self._journal.clear()

    def states(self) -> KnownItems:
        """The state of every item that has a row in a part."""
        return self._disk.attempt("file", lambda: read_states(parts(self.folder)))

    def take_over(self, path: Path) -> None:
        """Move a part of another manifest, on the same file system, into this one as its newest."""
        self.write_part()
        name = self._free_name()
        self._disk.attempt("file", lambda: os.replace(path, name, dst_dir_fd=self._folder_fd))
        self._disk.attempt("sync", lambda: self._disk.try_once("sync", self._sync_folder, UNSYNCED))
        self._next_part += 1

    def _sync_folder(self) -> None:
        os.fsync(self._folder_fd)

    def compact(self) -> None:
        """One part with the last row of every item, in the items' order of finishing. Where that
        fails, every row is there still, and the next run that finishes does it."""
        self.write_part()
        try:
            self._compact()
        except OSError as error:
            reason = error.strerror or str(error)
            text = f"The parts of {self.folder} were not made one ({reason}); the next run does it."
            self._disk.note(text, "compaction")

    def _compact(self) -> None:
        old = self._disk.attempt("file", lambda: parts(self.folder))
        if len(old) < 2:
            return
        # What another version has written besides stays.
        schema = pa.schema([*SCHEMA, *extra_fields(old)])
        self._write(lambda: last_rows(old, schema.names, schema=schema), schema)
        # Where one stays, its rows count no more than before, and the next run removes it.
        for path in old:
            self._remove(path.name)

    def _remove(self, name: str) -> None:
        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._folder_fd)

        self._disk.try_once("remove", remove, f"A part in {self.folder} cannot be removed")

    def close(self) -> None:
        """Write what is left as a part."""
        self.write_part()
        self._journal.close()
        with contextlib.suppress(OSError):
            os.close(self._folder_fd)

    def _free_name(self) -> str:
        """No part is written over: another machine may write here, where locks do not reach."""
        with contextlib.suppress(OSError):  # there is none of this name
            while os.stat(part_name(self._next_part), dir_fd=self._folder_fd):
                self._next_part += 1
        return part_name(self._next_part)

    def _write(self, tables: Callable[[], Iterable[pa.Table]], schema: pa.Schema = SCHEMA) -> None:
        name = self._free_name()

        def fill(file: BinaryIO) -> None:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in _gathered(tables()):
                    writer.write_table(table)

        def write() -> OSError | None:
            # On the disk, name and all, before its rows leave the journal and the parts that it
            # replaces go. Each attempt writes it whole: after a failed fsync, the next one may
            # succeed without the content.
            return write_file(name, fill, dir_fd=self._folder_fd, sync_content=True, sync_name=True)

        try:
            unsynced = self._disk.attempt("file", write)
        except OSError:  # its rows are in the journal or in older parts: not here as well
            self._remove(name)
            raise
        if unsynced is not None:
            self._disk.note(f"{UNSYNCED} ({unsynced.strerror}).", UNSYNCED)
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
