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
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Final, NamedTuple, TypeVar

from vllm_caption.errors import ItemError
from vllm_caption.formatting import first_line

_INSIDE: Final = re.compile(r"(.*?\.(?:tar|parquet))/(.+)", re.IGNORECASE | re.DOTALL)
_CELL: Final = re.compile(r"(.+?)/(\d{8,})(?:/(\d{1,7}))?", re.DOTALL)
_MAX_KEPT: Final = 4
K = TypeVar("K")
V = TypeVar("V")


class Inside(NamedTuple):
    """A file, and what in it is meant."""

    path: str
    member: str


def find_inside(images_root: str, file: str) -> Inside | None:
    """Where a name leads into a tar or a table; None for the name of a file of its own."""
    found = _INSIDE.fullmatch(file)
    if found is None:
        return None
    path = os.path.join(images_root, found[1])  # noqa: PTH118 (for every item)
    return Inside(path, found[2]) if os.path.isfile(path) else None  # noqa: PTH113


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
    """Bytes of an image. Raises ItemError."""
    if inside.path.lower().endswith(".tar"):
        return _member(inside)[1]
    return len(_cell(inside))


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        limit = f"the limit is {max_bytes / 2**20:.0f} MiB"
        raise ItemError("too_large", f"it has {size / 2**20:.0f} MiB; {limit}")


class _Kept:
    """The last few of what is costly to make, by what it was made from; made once where several
    threads ask for it."""

    def __init__(self) -> None:
        self._held: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        with self._lock:
            if key not in self._held:
                self._held[key] = make()
                if len(self._held) > _MAX_KEPT:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            found: V = self._held[key]
            return found


_tars = _Kept()
_tables = _Kept()
_cells = _Kept()


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


def _index(path: str) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    with tarfile.open(path, "r:") as opened:
        try:
            for member in opened:
                if member.isreg():
                    found[member.name] = member.offset_data, member.size
                opened.members.clear()  # type: ignore[attr-defined]
        except tarfile.ReadError:  # it is cut off; what came before is there
            pass
    return found


def _cell(inside: Inside) -> bytes:
    if (found := _CELL.fullmatch(inside.member)) is None:
        raise ItemError("missing_file", "the table has no such row; a name is COLUMN/NUMBER")
    column, row, place = found[1], int(found[2]), found[3]
    try:
        key = _key(inside.path)
        firsts = _tables.get(key, lambda: _row_groups(inside.path))
        if row >= firsts[-1]:
            raise ItemError("missing_file", f"the table has {firsts[-1]} rows")
        group = bisect_right(firsts, row) - 1
        cells = _cells.get((key, column, group), lambda: _read_group(inside.path, group, column))
        value = cells[row - firsts[group]].as_py()
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among them
        raise _unreadable("the table", error) from error
    if place is not None:
        if not isinstance(value, list) or int(place) >= len(value):
            raise ItemError("missing_file", "the list in its row is shorter")
        value = value[int(place)]
    return _bytes(value)


def _bytes(value: object) -> bytes:
    held = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(held, bytes) and held:
        return held
    raise ItemError("missing_file", "its cell holds no image")


def _row_groups(path: str) -> list[int]:
    """The first row of each row group, and at the end the number of rows."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as opened:
        sizes = [opened.metadata.row_group(n).num_rows for n in range(opened.num_row_groups)]
    return [0, *accumulate(sizes)]


def _read_group(path: str, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as opened:
        return opened.read_row_group(group, columns=[column])[column]


def _unreadable(what: str, error: Exception) -> ItemError:
    return ItemError("unreadable", f"{what} cannot be read: {first_line(error)}", transient=True)
