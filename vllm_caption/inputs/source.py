"""What every kind of input has in common: documents of elements, in the same order on every pass.

To add a kind, add a module with one `Source`, and a line in `inputs.choice`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from vllm_caption.config import ALL_COLUMNS, InputConfig, is_folder
from vllm_caption.errors import UsageError
from vllm_caption.formatting import counted, did_you_mean, encodable_name, printable, tally
from vllm_caption.items import Document, SkippedDocument

IMAGE_SUFFIXES: Final = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".gif", ".bmp", ".webp"),
        *(".tif", ".tiff", ".ico", ".cur", ".avif"),
    )
)
SIDECAR_SUFFIXES: Final = frozenset(
    f".{name}"
    for name in (
        *("txt", "caption", "tags", "json", "jsonl", "ndjson", "csv", "tsv", "parquet", "xml"),
        *("yaml", "yml", "toml", "ini", "md", "html", "log", "db", "npy", "npz"),
    )
)
"""Of files that are often beside images, and that nobody expects to be captioned."""
MAX_LISTED: Final = 12
MAX_SUFFIXES: Final = 5


class Element(msgspec.Struct, frozen=True):
    """One element as found in its document. ``entry``: an object whose `file` names the image, or
    whatever is there instead; ``fault``: why it cannot be captioned; ``row``: the columns of a
    table that the prompt uses; ``item_id``: the value of ``--id-column``."""

    entry: object
    element_type: str
    fault: str | None = None
    row: dict[str, object] | None = None
    item_id: str | None = None


def row_of(values: Mapping[str, Any], config: InputConfig) -> dict[str, object] | None:
    """The columns that the prompt uses; None if it uses none."""
    if not config.columns:
        return None
    names = values if ALL_COLUMNS in config.columns else config.columns
    return {name: plain_value(values.get(name)) for name in names}


def plain_value(value: object) -> object:
    """The value itself if JSON can hold it; anything else, such as a date, as text."""
    plain = isinstance(value, str | bool | int | float | list | dict | None)
    return value if plain else str(value)


def id_of(values: Mapping[str, Any], config: InputConfig) -> str | None:
    """The value of ``--id-column`` as text."""
    value = values.get(config.id_column) if config.id_column else None
    return None if value is None else printable(value if isinstance(value, str) else str(value))


def type_of(values: Mapping[str, Any], config: InputConfig) -> str:
    """The type of a row's image; empty without ``--type-column``."""
    column = config.type_column
    return "" if column is None else printable(plain_value(values.get(column)))


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return suffix_of(name) in IMAGE_SUFFIXES


def suffix_of(name: str) -> str:
    """The ending of a file name, in lower case."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (for every file)


def files_left_out(by_suffix: Mapping[str, int]) -> str:
    """The note for files that are not named like an image, most frequent endings first."""
    found = Counter(dict(by_suffix))  # a copy: the reader may be adding to it
    listed = found.most_common(MAX_SUFFIXES)
    shown = tally({printable(encodable_name(name)) or "no ending": n for name, n in listed})
    rest = found.total() - sum(number for _, number in listed)
    more = f", others {rest:,}" if rest else ""
    are, were = ("is", "was") if found.total() == 1 else ("are", "were")
    files = counted(found.total(), "file")
    return f"{files} {are} not named like an image and {were} left out: {shown}{more}"


# --- checks before anything starts ---------------------------------------------------------------


def check_column(flag: str, name: str | None, path: Path, columns: Iterable[str]) -> None:
    """Raise UsageError if an input has no column with this name, which a flag or the prompt
    uses."""
    known = list(columns)
    if name is None or name in known:
        return
    hint = f" ({meant})" if (meant := did_you_mean(name, known)) else ""
    if flag == "--prompt":
        remedy = f"uses the column {name}, which {path} does not have{hint}; it has {listed(known)}"
        raise UsageError(flag, None, remedy)
    raise UsageError(flag, name, f"{path} has no such column{hint}; it has {listed(known)}")


def refuse_columns(config: InputConfig, *flags: str) -> None:
    """Raise UsageError if one of these flags is given: the input has no columns."""
    for flag in flags:
        value = getattr(config, flag.removeprefix("--").replace("-", "_"))
        if value is not None:
            raise UsageError(flag, value, f"applies to a table, and {config.input} is not one")


def refuse_prompt_columns(config: InputConfig, which: str) -> None:
    """Raise UsageError for a prompt that uses columns; ``which``: the input, which has none."""
    if name := next((name for name in config.columns if name != ALL_COLUMNS), None):
        raise UsageError("--prompt", None, f"uses the column {name}, but {which} no columns")


def listed(columns: Iterable[str]) -> str:
    """The names of columns, for a message."""
    names = [printable(name) for name in columns]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{', '.join(names[:MAX_LISTED])}{more}" or "none"


def check_alone(folder: Path, suffix: str) -> None:
    """Raise UsageError if there are images or tars beside the parts of an input: which is meant?"""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".")]
    for name in sorted(names):
        is_input = is_image_name(name) or (name.endswith(".tar") and suffix != ".tar")
        if is_input and not is_folder(folder / name):
            remedy = "name one file, or move what is not meant to another folder"
            problem = f"holds {suffix} files and {printable(encodable_name(name))} beside them"
            raise UsageError("--input", folder, f"{problem}; {remedy}")


def name_of_container(path: Path, config: InputConfig) -> str:
    """The name of a tar or table that contains its images, relative to the images root like that of
    an image. It must be below that root, even if it is a link. Raises UsageError."""
    root = config.images_root
    if isinstance(root, str):
        problem = f"is not a folder on this machine, but {path} contains its images"
        raise UsageError("--images-root", root, f"{problem}; leave the flag out")
    name = os.path.relpath(path.absolute(), root.absolute())
    if name.startswith("../"):
        problem = f"{path} contains its images and is not below this folder"
        raise UsageError("--images-root", root, f"{problem}; leave the flag out")
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    if not real.startswith(os.path.join(real_root, "")):  # noqa: PTH118
        both = os.path.commonpath((real, os.path.abspath(path)))  # noqa: PTH100
        problem = f"is a link to {real}, and no link is followed out of {root}"
        raise UsageError("--input", path, f"{problem}; give --images-root {both}, or copy it")
    if encodable_name(name) != name:
        raise UsageError("--input", encodable_name(os.fspath(path)), "is not UTF-8; rename it")
    return name


class Nouns(msgspec.Struct, frozen=True):
    """What one ``document`` and one ``element`` of an input are called, where people read it."""

    document: str = "document"
    element: str = "element"


class Group(NamedTuple):
    """An accepted document with its elements, in order."""

    document: Document
    elements: Iterable[Element]
    first_index: int = 0
    """The index of the first element in the document, which may come in several groups."""


class Source(Protocol):
    """One kind of input."""

    @property
    def nouns(self) -> Nouns:
        """What is counted in this kind of input."""

    @property
    def left_out(self) -> Counter[str]:
        """By ending, how many files the last pass has left out because of their names."""

    def check(self) -> None:
        """Raise UsageError, before anything starts, if this cannot be an input of this kind."""

    def num_documents(self) -> int | None:
        """How many documents there are; None if only reading them can tell."""

    def documents(self) -> Iterator[Group | SkippedDocument]:
        """Yield one document after the other; whatever they contain, this does not raise."""

    def empty_error(self) -> UsageError:
        """The mistake to report if the whole input was read and has no element."""
