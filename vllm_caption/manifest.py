"""Documents → items, streamed: what is to be captioned, and what cannot be, with its reason.

Invariants: one ``Item`` per distinct ``file`` (the first document in sorted order gives the
context); every document is taken whole or left out with a kind and a sentence; whatever an input
holds, iterating raises nothing; every text that leaves this module can be encoded as UTF-8.

A document is decoded by msgspec; what msgspec refuses, the standard decoder sees again: it accepts
a little more (NaN, a lone surrogate in a title) and otherwise says what is wrong.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from vllm_caption.config import InputConfig
from vllm_caption.errors import DocumentError, DocumentKind, ItemError, UsageError

SUFFIX: Final = ".json"
MAX_TEXT_CHARS: Final = 500
MAX_KEYWORDS: Final = 64
MAX_KEYWORD_CHARS: Final = 100
MAX_SHOWN_CHARS: Final = 200
MAX_CANVAS_PX: Final = 1_000_000_000

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_COMMAS: Final = re.compile("[,;，、；]")
_JSON_TYPES: Final[dict[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
_Side = Literal["manifest", "detail"]


class Document(msgspec.Struct, frozen=True, gc=False):
    """The context that every element of one document shares; missing metadata is None or empty."""

    name: str
    category: str | None = None
    title: str | None = None
    keywords: tuple[str, ...] = ()
    canvas_width: float | int | None = None
    canvas_height: float | int | None = None


class Item(msgspec.Struct, frozen=True, gc=False):
    """One distinct ``file``, with the element that named it first."""

    file: str
    document: Document
    element_index: int
    element_type: str


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


class Element(msgspec.Struct, frozen=True):
    """One element as it stands in the document: ``entry`` is any JSON value of `images`."""

    entry: object
    element_type: str


@dataclass(slots=True)
class InputCounts:
    """What was read so far; ``shape_references`` = ``items`` + ``duplicates`` + ``bad_entries``."""

    documents: int = 0
    skipped: int = 0
    documents_without_shapes: int = 0
    elements: int = 0
    shape_references: int = 0
    items: int = 0
    duplicates: int = 0
    bad_entries: int = 0
    elements_by_type: Counter[str] = field(default_factory=Counter)
    skipped_elements: Counter[str] = field(default_factory=Counter)


class ManifestReader:
    """Iterates over the input once per ``iter()``; ``counts`` and ``complete`` follow along."""

    def __init__(self, config: InputConfig) -> None:
        self.config = config
        self.counts = InputCounts()
        self.complete = False
        self._skip_types = frozenset(name.casefold() for name in config.skip_types)
        self._seen: set[str] = set()

    @property
    def no_type_was_skipped(self) -> bool:
        """The whole input was read and no element had a type to skip: the names may differ."""
        counts = self.counts
        wanted = bool(self._skip_types) and counts.elements > 0
        return self.complete and wanted and not counts.skipped_elements

    def __iter__(self) -> Iterator[Item | BadEntry | SkippedDocument]:
        self.counts, self.complete, self._seen = InputCounts(), False, set()
        limit = self.config.limit
        if limit is not None and limit <= 0:
            return
        for name in document_names(self.config.jsons):
            for found in self._read(name):
                yield found
                if self.counts.items == limit:
                    return
        self.complete = True

    def _read(self, name: str) -> Iterator[Item | BadEntry | SkippedDocument]:
        self.counts.documents += 1
        try:
            document, elements = read_document(self.config, name)
        except DocumentError as error:
            self.counts.skipped += 1
            yield SkippedDocument(encodable_name(name), error.kind, error.reason)
            return
        references_before = self.counts.shape_references
        for index, element in enumerate(elements):
            found = self._take(document, index, element)
            if found is not None:
                yield found
        self.counts.documents_without_shapes += self.counts.shape_references == references_before

    def _take(self, document: Document, index: int, element: Element) -> Item | BadEntry | None:
        counts, kind = self.counts, element.element_type
        counts.elements += 1
        counts.elements_by_type[kind] += 1
        if kind.casefold() in self._skip_types:
            counts.skipped_elements[kind] += 1
            return None
        counts.shape_references += 1
        try:
            file = _usable_name(element.entry)
        except ItemError as error:
            counts.bad_entries += 1
            shown = _printable(_named(element.entry))
            return BadEntry(document.name, index, kind, shown, error.reason)
        if file in self._seen:
            counts.duplicates += 1
            return None
        self._seen.add(file)
        counts.items += 1
        return Item(file, document, index, kind)


def check_input_folders(config: InputConfig) -> None:
    """Refuse folders that cannot hold an input, before anything starts."""
    _check_folder("--jsons", config.jsons, "the folder with one NAME.json per document")
    _check_folder("--json-detail", config.json_detail, "the folder with the details of each NAME")
    _check_folder("--images-root", config.images_root, "the folder that `file` paths start from")
    if not document_names(config.jsons):
        remedy = "holds no file ending in .json; name the folder that holds the manifests"
        raise UsageError("--jsons", config.jsons, remedy)


def _check_folder(flag: str, path: Path, role: str) -> None:
    try:
        with os.scandir(path):
            return
    except FileNotFoundError:
        problem = "does not exist"
    except NotADirectoryError:
        problem = "is not a folder"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise UsageError(flag, path, f"{problem}; name {role}")


def document_names(jsons: Path) -> list[str]:
    """NAME of each NAME.json directly in the folder, sorted by code points.

    Names that are not UTF-8 carry surrogate escapes, so that they still open their files; what
    is recorded of them goes through ``encodable_name``.
    """
    with os.scandir(jsons) as entries:
        return sorted(e.name[: -len(SUFFIX)] for e in entries if _is_manifest(e.name))


def _is_manifest(filename: str) -> bool:
    return filename.endswith(SUFFIX) and not filename.startswith(".")


def encodable_name(name: str) -> str:
    """A file system name as text for records: bytes that are not UTF-8 are shown as ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# ----------------------------------------------------------------------- one document
def read_document(config: InputConfig, name: str) -> tuple[Document, list[Element]]:
    """Both files of one document, checked against each other; raises DocumentError."""
    manifest = _decode(_read_file(config.jsons, name, "manifest"), "manifest")
    entries = _list(manifest, "images", "manifest")
    detail = _decode(_read_file(config.json_detail, name, "detail"), "detail")
    num_details = len(_list(detail, "images", "detail"))
    types = _list(detail, "types", "detail")
    if len(entries) != num_details:
        reason = f"the manifest lists {len(entries)} images, the detail {num_details}"
        raise DocumentError("length_mismatch", reason)
    if len(types) != len(entries):
        reason = f"the manifest lists {len(entries)} images, the detail {len(types)} types"
        raise DocumentError("types_length", reason)
    document = Document(
        name=encodable_name(name),
        category=_text(detail.get("category"), MAX_TEXT_CHARS),
        title=_text(detail.get("title"), MAX_TEXT_CHARS),
        keywords=_keywords(detail.get("keywords")),
        canvas_width=_pixels(manifest.get("width")),
        canvas_height=_pixels(manifest.get("height")),
    )
    return document, [Element(e, _printable(t)) for e, t in zip(entries, types, strict=True)]


def _read_file(folder: Path, name: str, side: _Side) -> bytes:
    path = f"{folder}/{name}{SUFFIX}"
    try:
        # Not waiting: opening a FIFO would otherwise hang until somebody writes to it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DocumentError("not_a_file", f"the {side} is not a regular file")
            return io.FileIO(fd, closefd=False).readall()
        finally:
            os.close(fd)
    except OSError as error:
        if side == "detail" and error.errno == errno.ENOENT and not Path(path).is_symlink():
            raise DocumentError("missing_detail", "there is no detail of this name") from None
        kind: DocumentKind = "not_a_file" if error.errno == errno.ENXIO else "unreadable"
        raise DocumentError(kind, f"the {side} cannot be read: {error.strerror}") from None
    except MemoryError:
        raise DocumentError("unreadable", f"the {side} does not fit into memory") from None


def _decode(data: bytes, side: _Side) -> dict[str, Any]:
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
        content = _loads(text)
    except UnicodeDecodeError as error:
        reason = f"the {side} is not UTF-8: {error.reason} at byte {error.start}"
        raise DocumentError("bad_encoding", reason) from None
    except RecursionError:
        raise DocumentError("invalid_json", f"the {side} is nested too deeply") from None
    except ValueError as error:
        problem = str(error).partition(";")[0] if data.strip() else "it is empty"
        raise DocumentError("invalid_json", f"the {side} is not JSON: {problem}") from None
    if not isinstance(content, dict):
        reason = f"the {side} is {_JSON_TYPES[type(content)]}, not an object"
        raise DocumentError("not_object", reason)
    return content


def _loads(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return json.loads(text)


def _list(content: dict[str, Any], key: str, side: _Side) -> list[Any]:
    if key not in content:
        raise DocumentError("missing_key", f"the {side} has no `{key}`")
    value = content[key]
    if not isinstance(value, list):
        reason = f"`{key}` of the {side} is {_JSON_TYPES[type(value)]}, not a list"
        raise DocumentError("bad_type", reason)
    return value


# ------------------------------------------------------------------------ single values
def _usable_name(entry: object) -> str:
    """The `file` of an element, as it stands; raises ItemError."""
    if not isinstance(entry, dict):
        found = _JSON_TYPES[type(entry)]
        raise ItemError("bad_name", f"the element is {found}, not an object with `file`")
    if "file" not in entry:
        raise ItemError("bad_name", "the element has no `file`")
    file = entry["file"]
    if not isinstance(file, str):
        raise ItemError("bad_name", f"`file` is {_JSON_TYPES[type(file)]}, not a string")
    if not file:
        raise ItemError("bad_name", "`file` is empty")
    if "\0" in file:
        raise ItemError("bad_name", "`file` holds a NUL character")
    if _LONE_SURROGATE.search(file):
        raise ItemError("bad_name", "`file` holds half a surrogate pair, which no name can hold")
    return file


def _named(entry: object) -> object:
    return entry.get("file", "") if isinstance(entry, dict) else entry


def _printable(value: object) -> str:
    """Any JSON value as text of bounded length: a string as it is, the rest as JSON,
    and what no terminal or column should hold as an escape."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except RecursionError:
            value = _JSON_TYPES[type(value)]
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", value[:MAX_SHOWN_CHARS])


def _text(value: object, max_chars: int) -> str | None:
    """Text and numbers are metadata; anything else is as good as missing."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return _LONE_SURROGATE.sub("\ufffd", str(value).strip()[:max_chars]) or None


def _keywords(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = _COMMAS.split(value)
    if not isinstance(value, list):
        return ()
    texts = (_text(keyword, MAX_KEYWORD_CHARS) for keyword in value[:MAX_KEYWORDS])
    return tuple(text for text in texts if text is not None)


def _pixels(value: object) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 < value <= MAX_CANVAS_PX else None
