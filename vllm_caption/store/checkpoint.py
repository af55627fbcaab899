"""Writes the manifest: rows go to a journal first, then to the Parquet parts of one dataset.

Invariants:
- a row is appended after its .txt is in place, and a part is written after the .txt files of its
  rows are on disk, so a row implies a file even after a power loss;
- the journal holds exactly the rows that no part holds yet (after a crash between the two steps,
  its rows may be in the newest part as well, with equal content);
- the last row of an item counts: parts are ordered by number.
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

UNSYNCED: Final = "The file system of the output cannot sync: a power loss may cost the last rows"


class Checkpoint:
    """The manifest of one output folder, opened for writing by the one run that holds its lock."""

    def __init__(
        self,
        root: Path,
        interval: int,
        reconcile: Callable[[Row], Row] = lambda row: row,
        disk: Disk | None = None,
    ) -> None:
        """``reconcile`` makes a row from a killed run's journal agree with its .txt."""
        self._disk = disk = disk or Disk()
        self.folder = root / MANIFEST
        self._interval = interval
        disk.attempt("start", lambda: self.folder.mkdir(parents=True, exist_ok=True))
        # Parts are written relative to an open folder, like the .txt files: see `CaptionFiles`.
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

    def append(self, *rows: Row) -> None:
        """Record rows in this order; once this returns, they survive the death of this process."""
        if self._journal.was_removed():  # its rows are only in memory
            self.write_part()
            self._journal.open_again()
        while rows:
            room = max(self._interval - len(self._rows), 1)
            fitting, rows = rows[:room], rows[room:]
            self._journal.append(fitting)
            self._rows += fitting
            if len(self._rows) >= self._interval:
                self.write_part()

    def write_part(self) -> None:
        """Write the rows of the journal as a Parquet part and empty it."""
        if self._rows:
            self._journal.sync_file_system()
            self._write(lambda: [to_table(self._rows)])
            self._rows.clear()
        self._journal.clear()

    def states(self) -> KnownItems:
        """The state of every item that has a row in a part."""
        return self._disk.attempt("file", lambda: read_states(parts(self.folder)))

    def take_over(self, path: Path) -> None:
        """Move a part of another manifest on the same file system here, as the newest part."""
        self.write_part()
        name = self._free_name()
        self._disk.attempt("file", lambda: os.replace(path, name, dst_dir_fd=self._folder_fd))
        self._disk.attempt("sync", lambda: self._disk.try_once("sync", self._sync_folder, UNSYNCED))
        self._next_part += 1

    def _sync_folder(self) -> None:
        os.fsync(self._folder_fd)

    def compact(self) -> None:
        """Replace all parts by one with the last row of every item, in the order in which the items
        finished. If that fails, no row is lost, and the next run that finishes tries again."""
        self.write_part()
        try:
            self._compact()
        except OSError as error:
            reason = error.strerror or str(error)
            text = f"The parts of {self.folder} were not compacted ({reason}); the next run that"
            text += " finishes will compact them."
            self._disk.note(text, "compaction")

    def _compact(self) -> None:
        old = self._disk.attempt("file", lambda: parts(self.folder))
        if len(old) < 2:
            return
        # Keep columns that another version has written.
        schema = pa.schema([*SCHEMA, *extra_fields(old)])
        self._write(lambda: last_rows(old, schema.names, schema=schema), schema)
        # An old part that cannot be removed does no harm: the new part's rows come later and count.
        for path in old:
            self._remove(path.name)

    def _remove(self, name: str) -> None:
        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._folder_fd)

        self._disk.try_once("remove", remove, f"A part in {self.folder} cannot be removed")

    def close(self) -> None:
        """Write the remaining rows as a part."""
        self.write_part()
        self._journal.close()
        with contextlib.suppress(OSError):
            os.close(self._folder_fd)

    def _free_name(self) -> str:
        """Never overwrite a part: without working locks, another machine may write here."""
        with contextlib.suppress(OSError):  # no part has this name
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
            # Synced, name included, before its rows leave the journal and the parts that it
            # replaces are removed. Each attempt writes the whole file: after a failed fsync, the
            # next fsync may succeed although the content is lost.
            return write_file(name, fill, dir_fd=self._folder_fd, sync_content=True, sync_name=True)

        try:
            unsynced = self._disk.attempt("file", write)
        except OSError:  # its rows are still in the journal or in older parts
            self._remove(name)
            raise
        if unsynced is not None:
            self._disk.note(f"{UNSYNCED} ({unsynced.strerror}).", UNSYNCED)
        self._next_part += 1


def _gathered(tables: Iterable[pa.Table]) -> Iterable[pa.Table]:
    """The same rows in tables of at least ROWS_AT_A_TIME rows, each of which is a row group."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROWS_AT_A_TIME:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
