"""What every kind of input has in common: documents of elements, in one order, pass after pass.

A new kind is a module with one `Source`, and a line in `inputs.choice`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from vllm_caption.config import ALL_COLUMNS, InputConfig
from vllm_caption.errors import UsageError
from vllm_caption.formatting import printable
from vllm_caption.items import Document, SkippedDocument


class Element(msgspec.Struct, frozen=True):
    """One element as its document has it. ``entry``: an object whose `file` names the image, or
    whatever stands in its place; ``fault``: why there is no such thing; ``row``: the columns of a
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
