"""An item: one image to caption, with the document that named it first.

Every kind of input yields these; nothing else of an input reaches the rest of the job.
"""

from __future__ import annotations

import msgspec

from vllm_caption.errors import DocumentKind


class Document(msgspec.Struct, frozen=True, gc=False):
    """The context that every element of one document shares; missing metadata is None or empty."""

    name: str
    category: str | None = None
    title: str | None = None
    keywords: tuple[str, ...] = ()
    canvas_width: float | int | None = None
    canvas_height: float | int | None = None


class Item(msgspec.Struct, frozen=True, gc=False):
    """One distinct ``file``, with the element that named it first. ``row``: the columns of a table
    that the prompt uses; ``item_id``: the table's own name for it."""

    file: str
    document: Document
    element_index: int
    element_type: str
    row: dict[str, object] | None = None
    item_id: str | None = None


class BadEntry(msgspec.Struct, frozen=True, gc=False):
    """An element whose ``file`` is no usable string; ``file`` shows what stood there.

    Its identity is (document, element_index): the shown text may equal a real file's name.
    """

    document: str
    element_index: int
    element_type: str
    file: str
    reason: str


class SkippedDocument(msgspec.Struct, frozen=True, gc=False):
    """A document that is left out."""

    document: str
    kind: DocumentKind
    reason: str
