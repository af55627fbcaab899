"""The source that is a table, a row for each image: JSON lines, CSV, TSV, Parquet, or a folder of
Parquet.

A table is read from its beginning to its end in bounded memory, pass after pass. Of its columns
those are kept that name the image and the row, and those that the prompt uses. Invariant: a row
that cannot be taken is an entry with a reason, and the rows around it are taken.
"""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.config import ALL_COLUMNS, InputConfig, files_in
from vllm_caption.errors import UsageError
from vllm_caption.formatting import JSON_TYPES, encodable_name, first_line, printable
from vllm_caption.inputs.cells import holds_images, read_cells
from vllm_caption.inputs.source import Element, Group, id_of, plain_value, row_of
from vllm_caption.items import Document, SkippedDocument

IMAGE_COLUMNS: Final = ("image", "file", "file_name", "path")
"""The first of these that a table has names its images."""
SEPARATED: Final = {".csv": ",", ".tsv": "\t"}
PARQUET: Final = ".parquet"
MAX_LISTED: Final = 12
NUM_LOOKED_AT: Final = 100
"""Rows of JSON lines whose keys are the columns, for a mistake in a name to be seen at once."""
MAX_CELL_CHARS: Final = 2**20
_BATCH: Final = 4096
_FAULTS: Final = (OSError, pa.ArrowException, csv.Error, UnicodeDecodeError)

Row = dict[str, Any]


class Table:
    """The rows of a table, or of all tables in a folder in the order of their names."""

    def __init__(self, config: InputConfig, path: Path) -> None:
        self._config = config
        self._path = path
        root = config.images_root
        self._root = None if isinstance(root, str) else os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118

    def check(self) -> None:
        """Each file can be opened, and has the columns that are asked for."""
        if not self._path.exists():
            raise UsageError("--input", self._path, "does not exist; name a table of images")
        for path in self._paths():
            try:
                columns = _columns(path)
            except _FAULTS as error:
                raise UsageError("--input", path, _reason(error)) from None
            self._image_column(path, columns)
            self._check_column("--id-column", self._config.id_column, path, columns)
            self._check_column("--type-column", self._config.type_column, path, columns)
            for name in self._config.columns:
                if name != ALL_COLUMNS:
                    self._check_column("--prompt", name, path, columns)

    def num_documents(self) -> int:
        """The files."""
        return len(self._paths())

    def documents(self) -> Iterator[Group | SkippedDocument]:
        """Each file is one."""
        for path in self._paths():
            name = encodable_name(path.name)
            try:
                columns = _columns(path)
                image = self._image_column(path, columns)
                found: Iterable[Group | SkippedDocument]
                if path.suffix.lower() == PARQUET and holds_images(path, image):
                    found = read_cells(path, image, self._config)
                else:
                    found = [Group(Document(name), self._elements(path, image))]
                for group in found:
                    yield group if isinstance(group, SkippedDocument) else _guarded(group)
            except UsageError as error:
                yield SkippedDocument(name, "missing_key", error.remedy)
            except _FAULTS as error:
                yield SkippedDocument(name, "unreadable", _reason(error))

    def nothing(self) -> UsageError:
        """It has no rows."""
        return UsageError("--input", self._path, "has no rows")

    def _paths(self) -> list[Path]:
        return files_in(self._path, PARQUET) if self._path.is_dir() else [self._path]

    def _image_column(self, path: Path, columns: tuple[str, ...]) -> str:
        given = self._config.image_column
        self._check_column("--image-column", given, path, columns)
        if given is not None:
            return given
        if found := next((name for name in IMAGE_COLUMNS if name in columns), None):
            return found
        remedy = f"has no column {', '.join(IMAGE_COLUMNS)}; name it by --image-column"
        raise UsageError("--input", path, f"{remedy}: {_listed(columns)}")

    def _check_column(
        self, flag: str, name: str | None, path: Path, columns: tuple[str, ...]
    ) -> None:
        if name is None or name in columns:
            return
        close = difflib.get_close_matches(name, columns, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(flag, name, f"{path} has no such column{hint}; it has {_listed(columns)}")

    def _elements(self, path: Path, image: str) -> Iterator[Element]:
        config = self._config
        wanted = {image: None, **({config.id_column: None} if config.id_column else {})}
        wanted |= dict.fromkeys(config.columns)
        for row in _rows(path, None if ALL_COLUMNS in config.columns else [*wanted]):
            if isinstance(row, str):
                yield Element("", "", row)
                continue
            entry = {"file": self._name(row.get(image))}
            yield Element(entry, "", row=row_of(row, config), item_id=id_of(row, config))

    def _name(self, value: object) -> object:
        """As below the images root: `./x` is x, and so is an absolute path to it."""
        if not isinstance(value, str):
            return plain_value(value)
        value = value.strip()
        while value.startswith("./"):
            value = value[2:].lstrip("/")
        if self._root is not None and value.startswith(self._root):
            value = value[len(self._root) :].lstrip("/")
        return value


def _columns(path: Path) -> tuple[str, ...]:
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        return tuple(pq.read_schema(path).names)
    if suffix in SEPARATED:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            return tuple(next(csv.reader(opened, delimiter=SEPARATED[suffix]), ()))
    rows = (row for row, _ in zip(_lines(path), range(NUM_LOOKED_AT), strict=False))
    return tuple(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))


def _guarded(group: Group) -> Group:
    """The same, with an entry in the place of what can no longer be read."""

    def elements() -> Iterator[Element]:
        try:
            yield from group.elements
        except _FAULTS as error:
            yield Element("", "", f"the table ends here: {_reason(error)}")

    return group._replace(elements=elements())


def _rows(path: Path, columns: list[str] | None) -> Iterator[Row | str]:
    """Each row with these columns, by default all, or what is wrong in its place."""
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        with pq.ParquetFile(path) as opened:
            for batch in opened.iter_batches(_BATCH, columns=columns):
                yield from batch.to_pylist()
    elif suffix in SEPARATED:
        csv.field_size_limit(MAX_CELL_CHARS)
        with path.open(encoding="utf-8-sig", newline="") as opened:
            yield from csv.DictReader(opened, delimiter=SEPARATED[suffix])
    else:
        yield from _lines(path)


def _lines(path: Path) -> Iterator[Row | str]:
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not text:
                continue
            try:
                row = decode(text)
            except (ValueError, RecursionError) as error:
                yield f"line {number} is not JSON: {first_line(error)}"
                continue
            what = JSON_TYPES[type(row)]
            yield row if isinstance(row, dict) else f"line {number} is {what}, not an object"


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start}); save it as UTF-8"
    if isinstance(error, OSError) and error.errno is not None:
        return f"it cannot be read ({error.strerror})"
    return f"it cannot be read as a table: {first_line(error)}"


def _listed(columns: Iterable[str]) -> str:
    names = [printable(name) for name in columns]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{', '.join(names[:MAX_LISTED])}{more}" or "none"
