"""What every kind of input has in common: documents of elements, in one order, pass after pass.

A new kind is a module with one `Source`, and a line in `inputs.choice`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from vllm_caption.config import ALL_COLUMNS, InputConfig
from vllm_caption.errors import UsageError
from vllm_caption.formatting import did_you_mean, encodable_name, printable
from vllm_caption.items import Document, SkippedDocument

IMAGE_SUFFIXES: Final = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".gif", ".bmp", ".webp"),
        *(".tif", ".tiff", ".ico", ".cur", ".avif"),
    )
)
MAX_LISTED: Final = 12


class Element(msgspec.Struct, frozen=True):
    """One element as its document has it. ``entry``: an object whose `file` names the image, or
    whatever stands in its place; ``fault``: why it cannot be taken; ``row``: the columns of a
    table that the prompt uses; ``item_id``: the table's own name for it."""

    entry: object
    element_type: str
    fault: str | None = None
    row: dict[str, object] | None = None
    item_id: str | None = None


def row_of(values: Mapping[str, Any], config: InputConfig) -> dict[str, object] | None:
    """The columns that the prompt uses; None where it uses none."""
    if not config.columns:
        return None
    names = values if ALL_COLUMNS in config.columns else config.columns
    return {name: plain_value(values.get(name)) for name in names}


def plain_value(value: object) -> object:
    """What JSON can hold, as it is; anything else, as a date, as text."""
    plain = isinstance(value, str | bool | int | float | list | dict | None)
    return value if plain else str(value)


def id_of(values: Mapping[str, Any], config: InputConfig) -> str | None:
    """The table's own name for a row, as text."""
    value = values.get(config.id_column) if config.id_column else None
    return None if value is None else printable(value if isinstance(value, str) else str(value))


def type_of(values: Mapping[str, Any], config: InputConfig) -> str:
    """The type of a row's image; empty where the table has none."""
    column = config.type_column
    return "" if column is None else printable(plain_value(values.get(column)))


def is_image_name(name: str) -> bool:
    """Whether a file name has the ending of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 (for every file)


# --- what is a mistake before anything starts ----------------------------------------------------


def check_column(flag: str, name: str | None, path: Path, columns: Iterable[str]) -> None:
    """Raise UsageError where an input has no column of this name."""
    known = list(columns)
    if name is None or name in known:
        return
    hint = f" ({meant})" if (meant := did_you_mean(name, known)) else ""
    raise UsageError(flag, name, f"{path} has no such column{hint}; it has {listed(known)}")


def refuse_columns(config: InputConfig, *flags: str) -> None:
    """Raise UsageError where one of these flags is given, for an input that has no such column."""
    for flag in flags:
        value = getattr(config, flag.removeprefix("--").replace("-", "_"))
        if value is not None:
            raise UsageError(flag, value, f"belongs to a table, and {config.input} is none")


def listed(columns: Iterable[str]) -> str:
    """Names of columns, for a message."""
    names = [printable(name) for name in columns]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{', '.join(names[:MAX_LISTED])}{more}" or "none"


def check_alone(folder: Path, suffix: str) -> None:
    """Raise UsageError where images or tars lie beside the parts of an input: which is meant?"""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and not e.is_dir()]
    for name in sorted(names):
        if is_image_name(name) or (name.endswith(".tar") and suffix != ".tar"):
            remedy = "name one file, or move what is not meant to another folder"
            problem = f"holds {suffix} files and {printable(encodable_name(name))} beside them"
            raise UsageError("--input", folder, f"{problem}; {remedy}")


def name_of_container(path: Path, config: InputConfig) -> str:
    """The name of a tar or a table that holds its images, as that of an image: below the images
    root, also where it is a link. Raises UsageError."""
    root = config.images_root
    if isinstance(root, str):
        problem = f"is no folder of this machine, and {path} holds its images itself"
        raise UsageError("--images-root", root, f"{problem}; leave the flag out")
    name = os.path.relpath(path.absolute(), root.absolute())
    if name.startswith("../"):
        problem = f"{path} holds its images itself, and is not below it"
        raise UsageError("--images-root", root, f"{problem}; leave the flag out")
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    if not real.startswith(os.path.join(real_root, "")):  # noqa: PTH118
        both = os.path.commonpath((real, os.path.abspath(path)))  # noqa: PTH100
        problem = f"is a link to {real}, and no link is followed out of {root}"
        raise UsageError("--input", path, f"{problem}; give --images-root {both}, or copy it")
    if encodable_name(name) != name:
        raise UsageError("--input", encodable_name(os.fspath(path)), "is no UTF-8; rename it")
    return name


class Group(NamedTuple):
    """A document that can be taken, with its elements in their order."""

    document: Document
    elements: Iterable[Element]
    first_index: int = 0
    """Of its elements in the document, which may come in several groups."""


class Source(Protocol):
    """One kind of input."""

    def check(self) -> None:
        """Raise UsageError, before anything starts, for what cannot be an input of this kind."""

    def num_documents(self) -> int | None:
        """How many `documents` will yield; None where only reading them tells."""

    def documents(self) -> Iterator[Group | SkippedDocument]:
        """One after the other; nothing in them makes the iteration raise."""

    def nothing(self) -> UsageError:
        """What to say where all of it was read and no element was there."""
