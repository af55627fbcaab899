"""The only way to read rows, of one manifest's parts or of a whole output folder during a run.

Invariants:
- parts are read in numerical order: of several rows of one item the last one counts;
- rows move from the journal to a part, so the journal is read first: a row can be seen twice, but
  never missed;
- pyarrow gets absolute paths: it expands a leading `~` to the home folder;
- a damaged part raises `UnreadablePart`; if permissions or the disk are at fault, it is OSError.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.errors import RunStopped
from vllm_caption.formatting import first_line
from vllm_caption.store.disk.verdicts import OUTAGES
from vllm_caption.store.journal import read_journal
from vllm_caption.store.layout import all_parts, state_folders
from vllm_caption.store.rows import SCHEMA, KnownItems, Row, from_table, to_table

T = TypeVar("T")
ROWS_AT_A_TIME: Final = 8192
_PARTS_AT_A_TIME: Final = 64
"""Opening parts one by one is slower, but the footers of all open parts are in memory."""
REQUIRED: Final = ("file", "status", "finished_at")
"""Columns that every version has; any other that a part lacks is null."""
_ATTEMPTS: Final = 5
_FAULTS: Final = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
"""What pyarrow raises for damaged bytes, or for unexpected columns."""


class OtherVersion(ValueError):
    """A part has columns that this version cannot read."""


class UnreadablePart(RunStopped):
    """A part of the manifest has content that cannot be read. ``reason``: what is wrong, on one
    line."""

    def __init__(self, path: Path, error: Exception) -> None:
        self.path = path
        self.reason = first_line(error)
        remedy = (
            "`verify --repair` moves it aside and rebuilds its rows from the .txt files; with"
            " --no-txt, run again"
        )
        what = "is damaged"
        if isinstance(error, OtherVersion):
            what, remedy = "is of another version", f"use the version that wrote it, or {remedy}"
        super().__init__(f"{path} {what} ({self.reason}); {remedy}")


# --- the parts of one manifest ---------------------------------------------------------------


def read_part(path: Path, columns: Sequence[str] = ("file",)) -> Iterator[pa.Table]:
    """The rows of one part, a few thousand at a time. Every value of every column is validated, so
    damage anywhere in the file is found. A column that an older part lacks is null.

    Raises UnreadablePart, and FileNotFoundError if the part was compacted away.
    """
    with _blaming(path):
        yield from _checked(path, columns)


def _checked(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Like `read_part`, but raises the original error."""
    with pq.ParquetFile(path.absolute()) as part:
        left = part.metadata.num_rows
        for batch in part.iter_batches(ROWS_AT_A_TIME):
            batch.validate(full=True)
            left -= len(batch)
            arrays = [_column(batch, field) for field in SCHEMA]
            table = pa.Table.from_arrays(arrays, schema=SCHEMA)
            if table["file"].null_count:
                raise ValueError("it has a row that names no file")
            yield table.select(columns)
        if left:  # if one column is cut short, pyarrow cuts all of them, without an error
            raise ValueError(f"{left} of its rows cannot be read")


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name not in batch.schema.names:
        if field.name in REQUIRED:
            raise OtherVersion(f"it has no column {field.name}")
        return pa.nulls(len(batch), field.type)
    column = batch.column(field.name)
    try:
        return column.cast(field.type)
    except pa.ArrowException:
        problem = f"its column {field.name} is {column.type}, not {field.type}"
        raise OtherVersion(problem) from None


def extra_fields(paths: Sequence[Path]) -> list[pa.Field]:
    """Columns of these parts that this version does not know. Raises UnreadablePart, also if the
    parts disagree on the type of one."""
    found: dict[str, pa.Field] = {}
    for path in paths:
        with _blaming(path):
            for field in pq.read_schema(path.absolute()).remove_metadata():
                if field.name in SCHEMA.names:
                    continue
                if found.setdefault(field.name, field).type != field.type:
                    other = found[field.name].type
                    problem = f"its column {field.name} is {field.type}, not {other} as in another"
                    raise OtherVersion(problem)
    return list(found.values())


def _read(
    paths: Sequence[Path], columns: Sequence[str], whole: pa.Schema = SCHEMA
) -> Iterator[pa.Table]:
    """Like `read_part` on each part, but reads only these columns, which is much faster."""
    schema = pa.schema([whole.field(name) for name in columns])
    for first in range(0, len(paths), _PARTS_AT_A_TIME):
        import pyarrow.dataset as ds  # imports pandas too, which a first run need not wait for

        names = [os.fspath(path.absolute()) for path in paths[first : first + _PARTS_AT_A_TIME]]
        dataset = ds.dataset(names, schema=whole, format="parquet")
        for fragment in dataset.get_fragments():
            for name in REQUIRED:
                if name not in fragment.physical_schema.names:
                    raise OtherVersion(f"{fragment.path} has no column {name}")
        for batch in dataset.to_batches(
            columns=list(columns),
            batch_size=ROWS_AT_A_TIME,
            batch_readahead=2,
            fragment_readahead=2,
        ):
            yield pa.Table.from_batches([batch], schema)


def num_rows(path: Path) -> int:
    """The number of rows in a part, from its footer. Raises what `read_part` raises."""
    with _blaming(path):
        return int(pq.read_metadata(path.absolute()).num_rows)


def is_last(files: pa.ChunkedArray) -> np.ndarray:
    """A boolean for each of ``files``, oldest first: whether it is the last occurrence."""
    numbered = pa.table({"file": files, "row": np.arange(len(files))})
    last = numbered.group_by("file").aggregate([("row", "max")])["row_max"]
    kept = np.zeros(len(files), dtype=bool)
    kept[last.to_numpy()] = True
    return kept


def last_rows(
    paths: Sequence[Path],
    columns: Sequence[str] = SCHEMA.names,
    num_items: int | None = None,
    schema: pa.Schema = SCHEMA,
) -> Iterator[pa.Table]:
    """The last row of every item in these parts, a few thousand at a time.

    ``schema``: that of this version, possibly with further columns of the parts.
    ``num_items``: how many items have a row, if known: if there are no more rows than items, every
    row is a last one, and the names need not be compared.
    """
    with _blaming(*paths):
        if num_items is not None and sum(map(num_rows, paths)) == num_items:
            kept = np.ones(num_items, dtype=bool)
        else:
            names = [table["file"] for table in _read(paths, ["file"])]
            kept = is_last(pa.chunked_array([c for n in names for c in n.chunks], pa.string()))
        begin = 0
        for table in _read(paths, columns, schema):
            yield table.filter(pa.array(kept[begin : (begin := begin + len(table))]))


def read_states(paths: Sequence[Path]) -> KnownItems:
    """The state of every item that has a row in these parts."""
    known = KnownItems()
    with _blaming(*paths):
        for table in _read(paths, KnownItems.COLUMNS):
            known.extend(table)
    return known


def read_captions(paths: Sequence[Path], files: Container[str]) -> Iterator[tuple[str, str]]:
    """(file, caption) for those of ``files`` whose last row in these parts holds a caption."""
    for table in last_rows(paths, ("file", "caption")):
        for file, caption in _tuples(table):
            if caption is not None and file in files:
                yield file, caption


def read_rows(paths: Sequence[Path], files: Container[str]) -> Iterator[Row]:
    """The last rows of ``files`` in these parts."""
    for table in last_rows(paths):
        chosen = [file in files for file in table["file"].to_pylist()]
        yield from from_table(table.filter(pa.array(chosen, pa.bool_())))


def _tuples(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


@contextmanager
def _blaming(*paths: Path) -> Iterator[None]:
    """Turn an error that these parts cause into an UnreadablePart that names the damaged one."""
    try:
        yield
    except (FileNotFoundError, UnreadablePart):
        raise
    except _FAULTS as error:
        if isinstance(error, OSError) and error.errno in OUTAGES:
            raise  # it says nothing about the content
        for path in paths:  # find the damaged part, and a precise reason
            try:
                for _ in _checked(path, ["file"]):
                    pass
            except FileNotFoundError:
                raise
            except PermissionError as denied:  # pyarrow's, which has no file name
                number = denied.errno or errno.EACCES
                raise PermissionError(number, os.strerror(number), os.fspath(path)) from denied
            except _FAULTS as fault:
                raise UnreadablePart(path, fault) from fault
        if len(paths) == 1:
            raise UnreadablePart(paths[0], error) from error
        raise


# --- an output folder and its shards ---------------------------------------------------------


class FolderRows:
    """A snapshot of the rows of an output folder, including shards that are not merged yet."""

    def __init__(self, root: Path, without: Container[Path] = ()) -> None:
        """``without``: parts to leave out."""
        journals = [read_journal(folder) for folder in state_folders(root)]
        self.journal = [row for found in journals for row in found.rows]
        self.num_torn = sum(found.torn for found in journals)
        self.parts = [path for path in all_parts(root) if path not in without]

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Every row, oldest first, validated as by `read_part`."""
        for path in self.parts:
            yield from read_part(path, columns)
        yield to_table(self.journal).select(columns)

    def tuples(self, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Like `tables`, row by row."""
        for table in self.tables(columns):
            yield from _tuples(table)

    def last(self, columns: Sequence[str]) -> pa.Table:
        """The last row of every item, sorted by `document`, `element_index` and `file`, which
        ``columns`` must include."""
        rows = pa.concat_tables(self.tables(columns))
        kept = rows.filter(pa.array(is_last(rows["file"])))
        return kept.sort_by([(name, "ascending") for name in ("document", "element_index", "file")])

    def newest_first(self) -> Iterator[Row]:
        """The rows of the journal, newest first, then the last row of every item in the parts."""
        yield from reversed(self.journal)
        with _blaming(*self.parts):
            for table in last_rows(self.parts):
                yield from from_table(table)

    def states(self) -> KnownItems:
        """The state of every item that has a row."""
        known = read_states(self.parts)
        for row in self.journal:
            known.add(row)
        return known


def read_folder(root: Path, read: Callable[[FolderRows], T], without: Container[Path] = ()) -> T:
    """The result of ``read`` on the rows; called again if a concurrent run compacts a part away
    before it is read."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return read(FolderRows(root, without))
        except FileNotFoundError:
            continue
    return read(FolderRows(root, without))
