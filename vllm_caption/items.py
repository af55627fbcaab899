"""An item: one image to caption, with the document that named it first.

Every kind of input yields items; the rest of the job knows nothing else about the input.
"""

from __future__ import annotations

import msgspec

from vllm_caption.errors import DocumentKind


class Document(msgspec.Struct, frozen=True, gc=False):
    """What all elements of one document share; missing metadata is None or empty."""

    name: str
    category: str | None = None
    title: str | None = None
    keywords: tuple[str, ...] = ()
    canvas_width: float | int | None = None
    canvas_height: float | int | None = None


class Item(msgspec.Struct, frozen=True, gc=False):
    """One distinct ``file``, with the element that named it first. ``row``: the columns of an input
    table that the prompt uses; ``item_id``: the value of ``--id-column``; ``fault``: why no prompt
    can be made for this item."""

    file: str
    document: Document
    element_index: int
    element_type: str
    row: dict[str, object] | None = None
    item_id: str | None = None
    fault: str | None = None


class BadEntry(msgspec.Struct, frozen=True, gc=False):
    """An element without a usable file name; ``file`` shows the unusable one.

    Identified by (document, element_index), since that text may equal a real file name.
    """

    document: str
    element_index: int
    element_type: str
    file: str
    reason: str


class SkippedDocument(msgspec.Struct, frozen=True, gc=False):
    """A document that the run leaves out, and why."""

    document: str
    kind: DocumentKind
    reason: str
