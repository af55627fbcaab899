"""Images inside other files: a member of a tar, a cell of a Parquet table.

A name leads into such a file as into a folder: `shard.tar/a/b.png`, `part.parquet/image/00000012`
for a row of a column, and `part.parquet/images/00000012/3` where a cell holds a list. Nothing is
unpacked: a member is read at its offset, a cell with its row group. Each process keeps the index of
the files that it read last.
"""

from __future__ import annotations

import os
import re
import tarfile
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, Final, NamedTuple, TypeVar

from vllm_caption.errors import ItemError
from vllm_caption.formatting import first_line

_INSIDE: Final = re.compile(r"(.*?\.(?:tar|parquet))/(.+)", re.IGNORECASE | re.DOTALL)
_CELL: Final = re.compile(r"(.+?)/(\d{8,})(?:/(\d{1,7}))?", re.DOTALL)
K = TypeVar("K")
V = TypeVar("V")


class Inside(NamedTuple):
    """A file, and what in it is meant."""

    path: str
    member: str


def split_name(file: str) -> tuple[str, str] | None:
    """A name that may lead into a tar or a table, as the name of that and the rest."""
    found = _INSIDE.fullmatch(file)
    return None if found is None else (found[1], found[2])


def cell_name(table: str, column: str, row: int, place: int | None = None) -> str:
    """The name of an image in a cell; ``place``: in a list."""
    name = f"{table}/{column}/{row:08}"
    return name if place is None else f"{name}/{place}"


def read_inside(inside: Inside, max_bytes: int) -> bytes:
    """The bytes of an image. Raises ItemError."""
    if inside.path.lower().endswith(".tar"):
        offset, size = _member(inside)
        _check_size(size, max_bytes)
        with open(inside.path, "rb", buffering=0) as opened:  # noqa: PTH123
            data = os.pread(opened.fileno(), size, offset)
        if len(data) < size:
            raise ItemError("decode_error", "the tar ends in the middle of it")
        return data
    data = _cell(inside)
    _check_size(len(data), max_bytes)
    return data


def size_inside(inside: Inside) -> int:
    """Bytes of an image; of a cell the mean of its row group, since only reading it would tell.
    Raises ItemError."""
    if inside.path.lower().endswith(".tar"):
        return _member(inside)[1]
    return _find_cell(inside).mean_bytes


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        limit = f"the limit is {max_bytes / 2**20:.0f} MiB"
        raise ItemError("too_large", f"it has {size / 2**20:.0f} MiB; {limit}")


class _Kept:
    """The last few of what is costly to make, by what it was made from; made once where several
    threads ask for it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        with self._lock:
            if key not in self._held:
                self._held[key] = make()
                if len(self._held) > self._most:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            found: V = self._held[key]
            return found


_tars = _Kept(4)
_tables = _Kept(4)
_cells = _Kept(2)
"""Row groups, with all their images: the items in flight lie in two at most."""


def _key(path: str) -> tuple[str, int, int]:
    found = os.stat(path)  # noqa: PTH116
    return path, found.st_mtime_ns, found.st_size


def _member(inside: Inside) -> tuple[int, int]:
    """Offset and size."""
    try:
        index = _tars.get(_key(inside.path), lambda: _index(inside.path))
    except (OSError, tarfile.TarError) as error:
        raise _unreadable("the tar", error) from error
    if inside.member not in index:
        raise ItemError("missing_file", "the tar has no such member that is a regular file")
    return index[inside.member]


def regular_members(opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files in a tar, one after the other; none is kept, as `tarfile` would."""
    for member in opened:
        opened.members.clear()  # type: ignore[attr-defined]
        if member.isreg():
            yield member


def _index(path: str) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    with tarfile.open(path, "r:") as opened:
        try:
            for member in regular_members(opened):
                found[member.name] = member.offset_data, member.size
        except tarfile.ReadError:  # it is cut off; what came before is there
            pass
    return found


class _RowGroups(NamedTuple):
    """Of a table. ``firsts``: the first row of each, and at the end the number of rows;
    ``mean_bytes``: of an image, by row group and column."""

    firsts: list[int]
    mean_bytes: dict[tuple[int, str], int]


class _Place(NamedTuple):
    """Where an image lies in a table; ``row``: in the row group; ``place``: in a list."""

    table: tuple[str, int, int]
    group: int
    row: int
    column: str
    place: int | None
    mean_bytes: int


def _find_cell(inside: Inside) -> _Place:
    if (found := _CELL.fullmatch(inside.member)) is None:
        raise ItemError("missing_file", "the table has no such row; a name is COLUMN/NUMBER")
    column, row, place = found[1], int(found[2]), found[3]
    try:
        table = _key(inside.path)
        groups = _tables.get(table, lambda: _row_groups(inside.path))
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        raise _unreadable("the table", error) from error
    if row >= groups.firsts[-1]:
        raise ItemError("missing_file", f"the table has {groups.firsts[-1]} rows")
    group = bisect_right(groups.firsts, row) - 1
    if (group, column) not in groups.mean_bytes:
        raise ItemError("missing_file", f"the table has no column {column}")
    mean_bytes = groups.mean_bytes[group, column]
    number = None if place is None else int(place)
    return _Place(table, group, row - groups.firsts[group], column, number, mean_bytes)


def _cell(inside: Inside) -> bytes:
    table, group, row, column, place, _ = _find_cell(inside)
    try:
        cells = _cells.get((table, column, group), lambda: _read_group(inside.path, group, column))
        cell = cells[row]
        if place is not None:
            if not cell.is_valid or place >= len(cell):
                raise ItemError("missing_file", "the list in its row is shorter")
            cell = cell[place]
        value = cell.as_py()
    except (OSError, TypeError, ValueError) as error:
        raise _unreadable("the table", error) from error
    held = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(held, bytes) and held:
        return held
    raise ItemError("missing_file", "its cell holds no image")


def _row_groups(path: str) -> _RowGroups:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as opened:
        metadata = opened.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    mean_bytes: dict[tuple[int, str], int] = {}
    for number, group in enumerate(groups):
        for leaf in map(group.column, range(group.num_columns)):
            mean = leaf.total_uncompressed_size // max(leaf.num_values, 1)
            place = number, leaf.path_in_schema.partition(".")[0]
            mean_bytes[place] = max(mean, mean_bytes.get(place, 0))  # the bytes, not their names
    return _RowGroups([0, *accumulate(group.num_rows for group in groups)], mean_bytes)


def _read_group(path: str, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as opened:
        return opened.read_row_group(group, columns=[column])[column]


def _unreadable(what: str, error: Exception) -> ItemError:
    return ItemError("unreadable", f"{what} cannot be read: {first_line(error)}", transient=True)
