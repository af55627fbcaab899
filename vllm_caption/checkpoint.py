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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from vllm_caption.errors import RunStopped

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("document", pa.string()),
        ("element_index", pa.int32()),
        ("element_type", pa.string()),
        ("image_path", pa.string()),
        ("caption_path", pa.string()),
        ("status", pa.string()),
        ("caption", pa.string()),
        ("finish_reason", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("error_kind", pa.string()),
        ("error", pa.string()),
        ("attempts", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("backdrop", pa.string()),
        ("image_sha256", pa.string()),
        ("same_as", pa.string()),
        ("twin_key", pa.binary(16)),
        ("recipe_id", pa.string()),
        ("model", pa.string()),
        ("prompt_name", pa.string()),
        ("engine", pa.int32()),
        ("queue_s", pa.float32()),
        ("prepare_s", pa.float32()),
        ("generate_s", pa.float32()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("run_id", pa.string()),
    ]
)


ROW_GROUP = 8192
"""Rows that are held at a time when parts are merged."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One finished item. Names as in SCHEMA; ``finished_at`` in microseconds since 1970, UTC."""

    file: str
    document: str
    element_index: int
    element_type: str
    status: str
    finished_at: int
    run_id: str
    image_path: str | None = None
    caption_path: str | None = None
    caption: str | None = None
    finish_reason: str | None = None
    flags: tuple[str, ...] = ()
    error_kind: str | None = None
    error: str | None = None
    attempts: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    image_width: int | None = None
    image_height: int | None = None
    backdrop: str | None = None
    image_sha256: str | None = None
    same_as: str | None = None
    twin_key: bytes | None = None
    recipe_id: str | None = None
    model: str | None = None
    prompt_name: str | None = None
    engine: int | None = None
    queue_s: float | None = None
    prepare_s: float | None = None
    generate_s: float | None = None

    def of_unknown_making(self, caption: str) -> Row:
        """The same item with a caption whose making nothing records."""
        return msgspec.structs.replace(
            self,
            caption=caption,
            flags=(),
            same_as=None,
            twin_key=None,
            recipe_id=None,
            model=None,
            prompt_name=None,
        )


class Known(NamedTuple):
    """What a rerun needs to know of an item's last row."""

    status: str
    recipe_id: str | None
    flagged: bool
    error_kind: str | None


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
        self._next_part = 1 + max((_part_number(path) for path in parts(self.folder)), default=0)
        self._journal_path = root / "journal.jsonl"
        self._rows.extend(mend(row) for row in _read_journal(self._journal_path))
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

    def compact(self) -> None:
        """One part with the last row of every item, in the items' order of finishing."""
        self.write_part()
        old = parts(self.folder)
        if len(old) < 2:
            return
        try:
            self._write(_merged(old))
        except pa.ArrowException as error:
            raise _damaged(self.folder, error) from error
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


def parts(folder: Path) -> list[Path]:
    """The dataset's files, oldest first."""
    return sorted(folder.glob("part-*.parquet"), key=_part_number)


def read_part(path: Path, columns: list[str] | None = None) -> pa.Table:
    """One part of the dataset. Raises RunStopped where it is damaged, FileNotFoundError where it
    was compacted away."""
    try:
        return pq.read_table(path, columns=columns, schema=SCHEMA)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:  # damaged pages are OSErrors
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RunStopped:
    remedy = "`verify --repair` moves it aside and rebuilds its rows from the .txt files"
    return RunStopped(f"{path} is damaged ({error}); {remedy}")


def last_rows(files: pa.ChunkedArray) -> np.ndarray:
    """Which rows are the last of their file: booleans, as many as ``files``, oldest first."""
    numbered = pa.table({"file": files, "row": np.arange(len(files))})
    last = numbered.group_by("file").aggregate([("row", "max")])["row_max"]
    kept = np.zeros(len(files), dtype=bool)
    kept[last.to_numpy()] = True
    return kept


def _merged(paths: list[Path]) -> Iterator[pa.Table]:
    """The last row of every item of several parts, a few thousand rows at a time."""
    names = pa.concat_tables(read_part(path, ["file"]) for path in paths)["file"]
    kept, begin = last_rows(names), 0
    rows = ds.dataset([os.fspath(path) for path in paths], schema=SCHEMA, format="parquet")
    waiting: list[pa.RecordBatch] = []
    for batch in rows.to_batches(batch_size=ROW_GROUP, batch_readahead=2, fragment_readahead=2):
        waiting.append(batch.filter(kept[begin : begin + len(batch)]))
        begin += len(batch)
        if sum(map(len, waiting)) >= ROW_GROUP:
            yield pa.Table.from_batches(waiting, SCHEMA)
            waiting = []
    yield pa.Table.from_batches(waiting, SCHEMA)


def read_known(path: Path) -> Iterator[tuple[str, Known]]:
    """File and what a rerun needs to know, for each row of one part."""
    table = read_part(path, ["file", "status", "recipe_id", "flags", "error_kind"])
    flagged = pc.fill_null(pc.greater(pc.list_value_length(table["flags"]), 0), False)
    columns = (table["file"], table["status"], table["recipe_id"], flagged, table["error_kind"])
    try:
        lists = [column.to_pylist() for column in columns]
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error
    shared: dict[Known, Known] = {}  # a million rows, a handful of distinct values
    for file, *rest in zip(*lists, strict=True):
        entry = Known(*rest)
        yield file, shared.setdefault(entry, entry)


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The last row of every item, as plain dictionaries (for tools, not for the hot path)."""
    rows: dict[str, dict[str, Any]] = {}
    for path in parts(folder):
        for row in pq.read_table(path, schema=SCHEMA).to_pylist():
            rows[row["file"]] = row
    yield from rows.values()


def write_documents(root: Path, skipped: list[tuple[str, str, str]]) -> None:
    """documents.parquet: (document, kind, reason) of every document that was not taken."""
    names = ("document", "kind", "reason")
    columns = list(zip(*skipped, strict=True)) or [(), (), ()]
    schema = pa.schema([(name, pa.string()) for name in names])
    table = pa.table([pa.array(column, pa.string()) for column in columns], schema=schema)
    temporary = root / ".documents.parquet.tmp"
    pq.write_table(table, temporary)
    temporary.replace(root / "documents.parquet")


def _part_number(path: Path) -> int:
    digits = path.stem.removeprefix("part-")
    return int(digits) if digits.isdecimal() else 0


def _read_journal(path: Path) -> list[Row]:
    """Rows of a run that was killed; a torn last line is left out (its .txt is found again)."""
    if not path.exists():
        return []
    decoder = msgspec.json.Decoder(Row)
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(decoder.decode(line))
        except ValueError:  # msgspec's DecodeError, or bytes that are not UTF-8
            continue
    return rows


def _sync_file_system(descriptor: int) -> None:
    """Bring everything written so far on this file system to the disk: one call per part, where
    an fsync per caption would halve the speed."""
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "syncfs")
