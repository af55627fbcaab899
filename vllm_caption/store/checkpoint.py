"""The checkpoint manifest: rows in a journal first, then in Parquet parts of one dataset.

Invariants:
- a row is appended after its .txt is in place, and a part is written after the .txt files of its
  rows have reached the disk, so a row implies a file, also after a power loss;
- the journal holds exactly the rows that no part holds yet (or, after a crash between the two
  steps, rows that are in the newest part too, with equal content);
- of several rows of one item the last one counts: parts are ordered by their number.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.store.layout import part_number, parts
from vllm_caption.store.parts import SCHEMA, Known, Row, damaged, merged, read_known

T = TypeVar("T")


class Checkpoint:
    """The manifest of one output folder, opened for writing by the one run that holds its lock."""

    def __init__(
        self, root: Path, interval: int, mend: Callable[[Row], Row] = lambda row: row
    ) -> None:
        """``mend``: what becomes of a row that a killed run left in its journal."""
        self.folder = root / "manifest.parquet"
        self._interval = interval
        self._rows: list[Row] = []
        self._encoder = msgspec.json.Encoder()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Parts are written below an opened folder, as the .txt files are: see `CaptionFiles`.
        self._folder_fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()
        self._next_part = 1 + max((part_number(path) for path in parts(self.folder)), default=0)
        self._journal_path = root / "journal.jsonl"
        rows, _ = read_journal(self._journal_path, Row)
        self._rows.extend(map(mend, rows))
        self._journal = os.open(self._journal_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.write_part()  # what a killed run left in its journal

    def append(self, row: Row) -> None:
        """Record one row; it survives the death of this process from here on."""
        self._append_line(self._encoder.encode(row) + b"\n")
        self._rows.append(row)
        if len(self._rows) >= self._interval:
            self.write_part()

    def _append_line(self, line: bytes) -> None:
        """Whole or not at all: a full disk takes a part of a write and says nothing."""
        size = os.fstat(self._journal).st_size
        try:
            while line:
                line = line[os.write(self._journal, line) :]
        except OSError:
            os.ftruncate(self._journal, size)
            raise

    def write_part(self) -> None:
        """Turn the journal into a Parquet part."""
        if self._rows:
            _sync_file_system(self._journal)
            rows = [msgspec.structs.asdict(row) for row in self._rows]
            self._write([pa.Table.from_pylist(rows, SCHEMA)])
            self._rows.clear()
        os.ftruncate(self._journal, 0)

    def known(self) -> dict[str, Known]:
        """The last row of every item."""
        known: dict[str, Known] = {}
        for path in parts(self.folder):
            known.update(read_known(path))
        return known

    def take_over(self, path: Path) -> None:
        """Make a part of another manifest, on the same file system, the newest of this one."""
        self.write_part()
        os.replace(path, f"part-{self._next_part:08d}.parquet", dst_dir_fd=self._folder_fd)
        os.fsync(self._folder_fd)
        self._next_part += 1

    def compact(self) -> None:
        """One part with the last row of every item, in the items' order of finishing."""
        self.write_part()
        old = parts(self.folder)
        if len(old) < 2:
            return
        try:
            self._write(merged(old))
        except pa.ArrowException as error:
            raise damaged(self.folder, error) from error
        for path in old:
            os.unlink(path.name, dir_fd=self._folder_fd)

    def close(self) -> None:
        """Write what is left as a part."""
        self.write_part()
        os.close(self._journal)
        os.close(self._folder_fd)

    def _write(self, tables: Iterable[pa.Table]) -> None:
        name = f"part-{self._next_part:08d}.parquet"
        temporary, here = f".{name}.tmp", self._folder_fd
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(temporary, flags, 0o666, dir_fd=here), "wb") as out:
            with pq.ParquetWriter(out, SCHEMA, compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, name, src_dir_fd=here, dst_dir_fd=here)
        os.fsync(here)  # the part's name too is on the disk before its rows leave the journal
        self._next_part += 1


def write_documents(root: Path, skipped: list[tuple[str, str, str]]) -> None:
    """documents.parquet: (document, kind, reason) of every document that was not taken."""
    names = ("document", "kind", "reason")
    columns = list(zip(*skipped, strict=True)) or [(), (), ()]
    schema = pa.schema([(name, pa.string()) for name in names])
    table = pa.table([pa.array(column, pa.string()) for column in columns], schema=schema)
    temporary = root / ".documents.parquet.tmp"
    pq.write_table(table, temporary)
    temporary.replace(root / "documents.parquet")


def read_journal(path: Path, kind: type[T]) -> tuple[list[T], int]:
    """Rows that no part holds yet, as ``kind``; and how many lines are none: torn by a kill (the
    .txt is found again), or just being written."""
    decoder = msgspec.json.Decoder(kind)
    rows, torn = [], 0
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        lines = []
    for line in lines:
        try:
            rows.append(decoder.decode(line))
        except ValueError:  # msgspec's DecodeError, or bytes that are not UTF-8
            torn += 1
    return rows, torn


def _sync_file_system(descriptor: int) -> None:
    """Bring everything written so far on this file system to the disk: one call per part, where
    an fsync per caption would halve the speed."""
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "syncfs")
