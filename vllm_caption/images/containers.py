"""Images inside other files: a member of a tar, a cell of a Parquet table.

A name leads into such a file as into a folder: `shard.tar/a/b.png`, `part.parquet/image/00000012`
for a row of a column, and `part.parquet/images/00000012/3` if the cell holds a list. Nothing is
unpacked: a member is read at its offset, a cell with its row group. Each process caches the index
of the files that it read last.
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
from vllm_caption.formatting import first_line, printable

TAR_FAULTS: Final = (
    *(EOFError, LookupError, MemoryError, OSError, OverflowError, tarfile.TarError, ValueError),
)
"""What `tarfile` raises for damaged bytes."""
_BLOCK: Final = 512
_LOOKED_AT: Final = 2**20
"""How many bytes after the end of a tar are searched for another tar."""
_INSIDE: Final = re.compile(r"(.*?\.(?:tar|parquet))/(.+)", re.IGNORECASE | re.DOTALL)
_CELL: Final = re.compile(r"(.+?)/(\d{8,})(?:/(\d{1,7}))?", re.DOTALL)
K = TypeVar("K")
V = TypeVar("V")


class Inside(NamedTuple):
    """A file and the name of an image in it. ``is_tar``: by the name; ``path``, with links
    resolved, may have another suffix."""

    path: str
    member: str
    is_tar: bool


def split_name(file: str) -> tuple[str, str] | None:
    """Split a name that may lead into a tar or table into the container's name and the rest."""
    found = _INSIDE.fullmatch(file)
    return None if found is None else (found[1], found[2])


def is_tar(name: str) -> bool:
    """Whether a file name is that of a tar."""
    return name.lower().endswith(".tar")


def cell_name(table: str, column: str, row: int) -> str:
    """The name of an image in a cell; if the cell holds a list, `/PLACE` follows."""
    return f"{table}/{column}/{row:08}"


def read_inside(inside: Inside, max_bytes: int) -> bytes:
    """The bytes of an image. Raises ItemError."""
    if inside.is_tar:
        offset, size = _member(inside)
        check_size(size, max_bytes)
        with open(inside.path, "rb", buffering=0) as opened:  # noqa: PTH123
            data = os.pread(opened.fileno(), size, offset)
        if len(data) < size:
            raise ItemError("decode_error", "the tar ends in the middle of it")
        return data
    data = _cell(inside)
    check_size(len(data), max_bytes)
    return data


def size_inside(inside: Inside) -> int:
    """The size of an image in bytes; for a cell the mean of its row group, since the exact size is
    only known after reading it. Raises ItemError."""
    if inside.is_tar:
        return _member(inside)[1]
    return _find_cell(inside).mean_bytes


def check_size(size: int, max_bytes: int) -> None:
    """Raise ItemError if an image has more than ``max_bytes``."""
    if size > max_bytes:
        limit = f"the limit is {max_bytes / 2**20:.0f} MiB"
        raise ItemError("too_large", f"it has {size / 2**20:.0f} MiB; {limit}")


class _Kept:
    """A small LRU cache of expensive values; threads that need the same value make it once."""

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
"""Row groups, with all their images: the items in flight are in two at most."""


def _key(path: str) -> tuple[str, int, int]:
    found = os.stat(path)  # noqa: PTH116
    return path, found.st_mtime_ns, found.st_size


# --- tars ----------------------------------------------------------------------------------------


def member_name(name: str) -> str:
    """The name of a member as that of a file below the tar: `./a//b` becomes a/b, as if it were
    unpacked. An absolute name is unchanged, and `..` stays."""
    if name.startswith("/"):
        return name
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def members_of(opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar except folders, one by one; none is kept in memory, unlike in `tarfile`.

    Raises TAR_FAULTS, even if `tarfile` would mistake damage or truncation for the end."""
    source: Any = opened.fileobj
    num_bytes, before = os.fstat(source.fileno()).st_size, -1
    for member in opened:
        opened.members.clear()  # type: ignore[attr-defined]
        after = opened.offset
        if member.size < 0 or after <= before:
            raise tarfile.ReadError(f"the size of {member.name} is damaged")
        before = after
        if not member.isdir():
            yield member
        if after > num_bytes:
            raise tarfile.ReadError("it is cut off in the middle of a member")
    source.seek(opened.offset)
    block: bytes = source.read(_BLOCK)
    if not block:
        raise tarfile.ReadError("it has no end mark, so it may be cut off")
    if len(block) < _BLOCK:
        raise tarfile.ReadError("it is cut off in the middle of a header")
    if block.strip(b"\0"):
        raise tarfile.ReadError("a header is damaged")
    if source.read(_LOOKED_AT).strip(b"\0"):
        raise tarfile.ReadError("more follows, as if two tars were joined; unpack and repack it")


def _member(inside: Inside) -> tuple[int, int]:
    """The offset and size of a member."""
    try:
        index = _tars.get(_key(inside.path), lambda: _index(inside.path))
    except TAR_FAULTS as error:
        raise _unreadable("the tar", error) from error
    place = index.get(inside.member)
    if place is None:
        raise ItemError("missing_file", "the tar has no such member")
    if isinstance(place, str):
        raise ItemError("not_a_file", place)
    return place


def _index(path: str) -> dict[str, tuple[int, int] | str]:
    """Where each member is, or why it cannot be read as a file."""
    found: dict[str, tuple[int, int] | str] = {}
    with tarfile.open(path, "r:") as opened:
        try:
            for member in members_of(opened):
                place: tuple[int, int] | str = member.offset_data, member.size
                if member.islnk():  # another name for an earlier member
                    link = "it is a link to what is not in the tar before it"
                    place = found.get(member_name(member.linkname), link)
                elif member.issparse():
                    place = "it is stored in pieces; make the tar without --sparse"
                elif not member.isreg():
                    place = "it is a link, pipe or device, not a regular file"
                found[member_name(member.name)] = place
        except OSError:
            raise
        except TAR_FAULTS:  # damaged: keep what came before
            pass
    return found


# --- tables --------------------------------------------------------------------------------------


class _RowGroups(NamedTuple):
    """The row groups of a table. ``firsts``: the first row of each, followed by the number of rows;
    ``mean_bytes``: of an image, by row group and column."""

    firsts: list[int]
    mean_bytes: dict[tuple[int, str], int]


class _Place(NamedTuple):
    """Where an image is in a table; ``row``: within the row group; ``place``: within a list."""

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
    except _table_faults() as error:
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
    except _table_faults() as error:
        raise _unreadable("the table", error) from error
    held = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(held, bytes) and held:
        return held
    named = value.get("path") if isinstance(value, dict) else None
    only = f", only the name {printable(named)}" if named else ""
    raise ItemError("missing_file", f"its cell holds no image{only}")


def _table_faults() -> tuple[type[Exception], ...]:
    """What pyarrow raises for damaged bytes. A function, since pyarrow is imported only if a table
    is read."""
    import pyarrow as pa

    return OSError, OverflowError, TypeError, ValueError, pa.ArrowException


def column_of(opened: Any, leaf: str) -> str:
    """The column of a Parquet file that a leaf of its schema belongs to; either may have dots."""
    names: list[str] = opened.schema_arrow.names
    found = [name for name in names if leaf == name or leaf.startswith(f"{name}.")]
    return max(found, key=len, default="")


def _row_groups(path: str) -> _RowGroups:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as opened:
        metadata = opened.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        leaves = [opened.schema.column(number).path for number in range(len(opened.schema))]
        columns = [column_of(opened, leaf) for leaf in leaves]
    mean_bytes: dict[tuple[int, str], int] = {}
    for number, group in enumerate(groups):
        for leaf, column in zip(map(group.column, range(group.num_columns)), columns, strict=True):
            mean = leaf.total_uncompressed_size // max(leaf.num_values, 1)
            place = number, column
            mean_bytes[place] = max(mean, mean_bytes.get(place, 0))  # of `bytes`, not of `path`
    return _RowGroups([0, *accumulate(group.num_rows for group in groups)], mean_bytes)


def _read_group(path: str, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as opened:
        return opened.read_row_group(group, columns=[column])[column]


def _unreadable(what: str, error: Exception) -> ItemError:
    return ItemError("unreadable", f"{what} cannot be read: {first_line(error)}", transient=True)
