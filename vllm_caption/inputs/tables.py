"""The source for a table with a row per image: JSON lines, CSV, TSV, Parquet, or a folder of
Parquet files.

Each pass reads a table from start to end. It keeps the columns that name the image, the row and its
type, and those that the prompt uses.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from vllm_caption.config import ALL_COLUMNS, InputConfig, files_in, is_folder
from vllm_caption.errors import UsageError
from vllm_caption.formatting import JSON_TYPES, encodable_name
from vllm_caption.inputs.cells import holds_images, holds_lists, read_cells
from vllm_caption.inputs.rows import FAULTS, PARQUET, Broken, read_columns, read_rows, reason
from vllm_caption.inputs.source import (
    Element,
    Group,
    Nouns,
    check_alone,
    check_column,
    id_of,
    listed,
    name_of_container,
    plain_value,
    row_of,
    type_of,
)
from vllm_caption.items import Document, SkippedDocument

IMAGE_COLUMNS: Final = ("image", "file", "file_name", "path")
"""The default column of image names: the first of these that a table has."""


class Table:
    """The rows of a table, or of all tables in a folder, sorted by name."""

    def __init__(self, config: InputConfig, path: Path) -> None:
        self._config = config
        self.left_out: Counter[str] = Counter()
        self._path = path
        root = config.images_root
        self._root = None if isinstance(root, str) else os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118

    def check(self) -> None:
        """Check that each file can be opened and has the given columns."""
        if is_folder(self._path):
            check_alone(self._path, PARQUET)
        config = self._config
        for path in self._paths():
            try:
                columns = read_columns(path)
                image = self._image_column(path, columns)
                if path.suffix.lower() == PARQUET and holds_images(path, image):
                    name_of_container(path, config)
            except FAULTS as error:
                raise UsageError("--input", path, reason(error)) from None
            check_column("--id-column", config.id_column, path, columns)
            check_column("--type-column", config.type_column, path, columns)
            for name in config.columns:
                if name != ALL_COLUMNS:
                    check_column("--prompt", name, path, columns)

    def num_documents(self) -> int:
        """The number of files."""
        return len(self._paths())

    def documents(self) -> Iterator[Group | SkippedDocument]:
        """Each file is a document, or each row if it holds a list of images."""
        for path in self._paths():
            name = encodable_name(path.name)
            try:
                image = self._image_column(path, read_columns(path))
                found: Iterable[Group | SkippedDocument]
                if path.suffix.lower() == PARQUET and holds_images(path, image):
                    found = read_cells(path, image, self._config)
                else:
                    found = [Group(Document(name), self._elements(path, image))]
                for group in found:
                    yield group if isinstance(group, SkippedDocument) else _guarded(group)
            except UsageError as error:
                yield SkippedDocument(name, "missing_key", error.remedy)
            except FAULTS as error:
                yield SkippedDocument(name, "unreadable", reason(error))

    @property
    def nouns(self) -> Nouns:
        """As in the first file: if a row holds a list of images, it is a document of its own."""
        try:
            path = self._paths()[0]
            is_list = path.suffix.lower() == PARQUET and holds_lists(
                path, self._image_column(path, read_columns(path))
            )
        except (*FAULTS, IndexError, UsageError):
            is_list = False
        return Nouns("row", "image") if is_list else Nouns("table", "row")

    def empty_error(self) -> UsageError:
        """The error if it has no rows."""
        return UsageError("--input", self._path, "has no rows")

    def _paths(self) -> list[Path]:
        return files_in(self._path, PARQUET) if is_folder(self._path) else [self._path]

    def _image_column(self, path: Path, columns: tuple[str, ...]) -> str:
        given = self._config.image_column
        check_column("--image-column", given, path, columns)
        if given is not None:
            return given
        if found := next((name for name in IMAGE_COLUMNS if name in columns), None):
            return found
        *others, last = IMAGE_COLUMNS
        remedy = f"has no column {', '.join(others)} or {last}; name the column of the images with"
        raise UsageError("--input", path, f"{remedy} --image-column; it has {listed(columns)}")

    def _elements(self, path: Path, image: str) -> Iterator[Element]:
        config = self._config
        wanted = (image, config.id_column, config.type_column, *config.columns)
        columns = [*dict.fromkeys(name for name in wanted if name is not None)]
        for row in read_rows(path, None if ALL_COLUMNS in config.columns else columns):
            broken = None
            if isinstance(row, Broken):
                broken, row = row.reason, row.values
            if broken and image not in row:
                yield Element("", "", broken)
                continue
            name = self._name(row.get(image))
            fault = broken
            if not (isinstance(name, str) and name):
                found = "empty" if name == "" else JSON_TYPES.get(type(name), "a binary value")
                fault = f"`{image}` is {found}" + ("" if name == "" else ", not a string")
            entry = {"file": plain_value(name)}
            row_id, kind = id_of(row, config), type_of(row, config)
            yield Element(entry, kind, fault, row_of(row, config), row_id)

    def _name(self, value: object) -> object:
        """The name relative to the images root, also for `./x` and for an absolute path to x."""
        if isinstance(value, dict):
            value = value.get("path")  # Hugging Face's, without bytes
        if not isinstance(value, str):
            return value if isinstance(value, bytes) else plain_value(value)
        value = value.strip()
        while value.startswith("./"):
            value = value[2:].lstrip("/")
        if self._root is not None and value.startswith(self._root):
            value = value[len(self._root) :].lstrip("/")
        return value


def _guarded(group: Group) -> Group:
    """The same group, with an entry in place of the rest if that cannot be read."""

    def elements() -> Iterator[Element]:
        try:
            yield from group.elements
        except FAULTS as error:
            yield Element("", "", f"the table ends here: {reason(error)}")

    return group._replace(elements=elements())
