"""The rows of one table file, streamed: JSON lines, CSV, TSV or Parquet.

Invariants: an unusable row is replaced by a sentence, and the rows around it are kept; if the rest
of a file cannot be read, one of FAULTS is raised, so a file never just ends early; memory is
bounded by one line and one batch.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.formatting import JSON_TYPES, first_line, printable

SEPARATED: Final = {".csv": ",", ".tsv": "\t"}
PARQUET: Final = ".parquet"
NUM_LOOKED_AT: Final = 1000
"""How many JSON lines are searched for the columns, so that a misspelt name is found at once."""
MAX_CELL_CHARS: Final = 2**20
MAX_LINE: Final = 2**24
"""Most bytes or characters of a line; a longer line is an unusable row."""
_BATCH: Final = 4096
_NOT_UTF8: Final = re.compile("[\udc80-\udcff]")
_OTHER_SEPARATORS: Final = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}

Row = dict[str, Any]


class Broken(msgspec.Struct, frozen=True):
    """Takes the place of an unusable row: the reason, and those values that can be read."""

    reason: str
    values: dict[str, Any] = {}


class TableError(ValueError):
    """What is wrong with a table as a whole, in words."""


FAULTS: Final = (OSError, OverflowError, ValueError, pa.ArrowException, csv.Error)
"""What reading a table can raise: TableError, or pyarrow's errors for damaged files."""


def reason(error: Exception) -> str:
    """One of FAULTS in words."""
    if isinstance(error, TableError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"it cannot be read ({error.strerror})"
    return f"it cannot be read as a table: {first_line(error)}"


def read_columns(path: Path) -> tuple[str, ...]:
    """The names of the columns; for JSON lines, those of the first rows. Raises FAULTS."""
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise TableError("it does not exist") from None
    if not is_regular:  # opening a pipe would block
        raise TableError("it is not a regular file")
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        return _different(pq.read_schema(path.absolute()).names)
    if suffix in SEPARATED:
        with _open_text(path) as opened:
            return _header(csv.reader(_Lines(opened), delimiter=SEPARATED[suffix]), suffix)
    rows = [row for row, _ in zip(_json_lines(path), range(NUM_LOOKED_AT), strict=False)]
    if rows and isinstance(rows[0], Broken) and not any(isinstance(row, dict) for row in rows):
        raise TableError(f"{rows[0].reason}; write one object on each line")
    return tuple(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))


def read_rows(path: Path, columns: list[str] | None) -> Iterator[Row | Broken]:
    """Each row with at least these columns (None: all), or Broken in its place. Raises FAULTS."""
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        with pq.ParquetFile(path.absolute()) as opened:
            yield from parquet_rows(opened, columns, _BATCH)
    elif suffix in SEPARATED:
        yield from _separated(path, suffix)
    else:
        yield from _json_lines(path)


def _different(names: list[str]) -> tuple[str, ...]:
    for place, name in enumerate(names):
        if name in names[:place]:
            raise TableError(f"it has two columns {printable(name)}; rename one")
    return tuple(names)


# --- Parquet -------------------------------------------------------------------------------------


def parquet_rows(
    opened: pq.ParquetFile, columns: list[str] | None, batch_size: int
) -> Iterator[Row | Broken]:
    """Like `read_rows`, for an open Parquet file."""
    number = 0
    for group in range(opened.num_row_groups):  # one by one: damage costs no more than its group
        for batch in opened.iter_batches(batch_size, row_groups=[group], columns=columns):
            yield from _dicts(batch, number)
            number += len(batch)
    if left := opened.metadata.num_rows - number:  # pyarrow raises nothing for missing rows
        raise TableError(f"{left:,} of its rows cannot be read")


def _dicts(batch: pa.RecordBatch, first: int) -> Iterator[Row | Broken]:
    names = batch.schema.names
    try:
        values = [_values(column) for column in batch.columns]
    except FAULTS:
        for place in range(len(batch)):  # most rows are fine
            yield _single(batch.slice(place, 1), first + place)
        return
    for row in zip(*values, strict=True):
        yield dict(zip(names, row, strict=True))


def _single(batch: pa.RecordBatch, number: int) -> Row | Broken:
    values: Row = {}
    problem = ""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = _values(column)[0]
        except FAULTS as error:
            problem = (
                f"column {printable(name)} of row {number} cannot be read: {first_line(error)}"
            )
    return Broken(problem, values) if problem else values


def _values(column: pa.Array) -> list[Any]:
    try:
        found: list[Any] = column.to_pylist()
    except FAULTS:
        if not pa.types.is_temporal(column.type):
            raise
        found = column.cast(pa.string()).to_pylist()  # datetime has no year 30,000, no nanoseconds
    return found


# --- CSV and TSV ---------------------------------------------------------------------------------


class _Lines:
    """The lines of a text, for `csv`. ``number``: of the last line, from 1; ``ended``: there are no
    more; ``is_text``: all bytes have been UTF-8 since this was set."""

    def __init__(self, opened: io.TextIOWrapper) -> None:
        self._opened = opened
        self.number = 0
        self.ended = False
        self.is_text = True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._opened.readline(MAX_LINE)
        if not line:
            self.ended = True
            raise StopIteration
        self.number += 1
        if not _is_whole(line):
            while (rest := self._opened.readline(MAX_LINE)) and not _is_whole(rest):
                pass
            raise TableError(f"a line has more than {MAX_LINE >> 20} MiB")
        if not line.isascii() and _NOT_UTF8.search(line):
            self.is_text = False
        return line


def _is_whole(line: str) -> bool:
    return len(line) < MAX_LINE or line.endswith(("\n", "\r"))


def _open_text(path: Path) -> io.TextIOWrapper:
    """Bytes that are not UTF-8 become lone surrogates, and rows with these are refused."""
    with path.open("rb") as raw:
        head = raw.readline(2**16)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
        raise TableError("it is UTF-16, or not text at all; save it as UTF-8")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError as error:
        raise TableError(f"it is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    csv.field_size_limit(MAX_CELL_CHARS)
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _header(reader: Iterator[list[str]], suffix: str) -> tuple[str, ...]:
    """The column names; columns without a name get one from their position."""
    cells = next((cells for cells in reader if cells), [])
    if len(cells) == 1:
        for other, what in _OTHER_SEPARATORS.items():
            if other != SEPARATED[suffix] and other in cells[0]:
                ours = _OTHER_SEPARATORS[SEPARATED[suffix]]
                raise TableError(
                    f"its cells are separated by {what}; as {suffix}, save it with {ours}"
                )
    names = enumerate(map(str.strip, cells), start=1)
    return _different([name or f"column {place}" for place, name in names])


def _separated(path: Path, suffix: str) -> Iterator[Row | Broken]:
    with _open_text(path) as opened:
        lines = _Lines(opened)
        reader = csv.reader(lines, delimiter=SEPARATED[suffix])
        names = _header(reader, suffix)
        while True:
            first, lines.is_text = lines.number + 1, True
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, TableError) as error:  # the next line starts a new row
                open_quote = "; is a quote never closed?" if lines.number > first else ""
                where = _at(first, lines.number)
                yield Broken(f"{where} cannot be read: {first_line(error)}{open_quote}")
                continue
            if lines.ended:
                yield Broken(f"{_at(first, lines.number)} cannot be read: a quote is never closed")
            elif not lines.is_text:
                yield Broken(f"{_at(first, lines.number)} is not UTF-8; save the table as UTF-8")
            elif any(cells[len(names) :]):
                problem = f"has {len(cells)} cells, and the header {len(names)}"
                remedy = "quote a cell that holds a separator"
                yield Broken(f"{_at(first, lines.number)} {problem}; {remedy}")
            elif cells:
                yield dict.fromkeys(names) | dict(zip(names, cells, strict=False))


def _at(first: int, last: int) -> str:
    return f"line {first}" if first >= last else f"line {first} to {last}"


# --- JSON lines ----------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[Row | Broken]:
    with path.open("rb") as opened:
        number = 0
        while line := opened.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while (rest := opened.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield Broken(f"line {number} has more than {MAX_LINE >> 20} MiB")
                continue
            text = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
            if not text:
                continue
            try:
                row = _decode(text)
            except RecursionError:
                yield Broken(f"line {number} is not JSON: it is nested too deeply")
            except ValueError as error:
                yield Broken(f"line {number} is not JSON: {first_line(error)}")
            else:
                what = JSON_TYPES[type(row)]
                problem = f"line {number} is {what}, not an object"
                yield row if isinstance(row, dict) else Broken(problem)


_decode_json: Final = msgspec.json.Decoder().decode


def _decode(text: bytes) -> Any:
    """Decode JSON; NaN and Infinity, which Python's json module writes, become null."""
    try:
        return _decode_json(text)
    except ValueError:
        if b"NaN" not in text and b"Infinity" not in text:
            raise
        return _decode_json(msgspec.json.encode(json.loads(text)))
