"""One document → its metadata and its elements: NAME.json of both folders, checked together.

Invariants: a document is accepted as a whole or refused with a DocumentError that names the file,
the key and what was found; only regular files are read, so nothing blocks; all text that leaves
this module can be encoded as UTF-8.

msgspec decodes. What it refuses goes to the standard library, which accepts a little more (NaN, a
lone surrogate in a title) and has better error messages.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from vllm_caption.config import InputConfig
from vllm_caption.errors import DocumentError, DocumentKind
from vllm_caption.formatting import JSON_TYPES, encodable_name, printable
from vllm_caption.inputs.source import Element
from vllm_caption.items import Document, Item

SUFFIX: Final = ".json"
MAX_TEXT_CHARS: Final = 500
MAX_KEYWORDS: Final = 64
MAX_KEYWORD_CHARS: Final = 100
MAX_CANVAS_PX: Final = 1_000_000_000

LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_COMMAS: Final = re.compile("[,;，、；]")
_Side = Literal["design", "detail"]


def read_document(config: InputConfig, name: str) -> tuple[Document, list[Element]]:
    """Read both files of one document and check them against each other. Raises DocumentError."""
    design = _decode(_read_file(config.jsons, name, "design"), "design")
    entries = _list(design, "images", "design")
    detail = _decode(_read_file(config.json_detail, name, "detail"), "detail")
    num_details = len(_list(detail, "images", "detail"))
    types = _list(detail, "types", "detail")
    if len(entries) != num_details:
        reason = f"the design lists {len(entries)} images, the detail {num_details}"
        raise DocumentError("length_mismatch", reason)
    if len(types) != len(entries):
        reason = f"the design lists {len(entries)} images, the detail {len(types)} types"
        raise DocumentError("types_length", reason)
    sides = {"canvas_width": design.get("width"), "canvas_height": design.get("height")}
    document = make_document(encodable_name(name), {**detail, **sides})
    return document, [Element(e, printable(t)) for e, t in zip(entries, types, strict=True)]


def make_document(name: str, values: Mapping[str, object]) -> Document:
    """The metadata of a document, from values of any type."""
    return Document(
        name=name,
        category=_text(values.get("category"), MAX_TEXT_CHARS),
        title=_text(values.get("title"), MAX_TEXT_CHARS),
        keywords=_keywords(values.get("keywords")),
        canvas_width=_pixels(values.get("canvas_width")),
        canvas_height=_pixels(values.get("canvas_height")),
    )


def longest_item(columns: Iterable[str] = ()) -> Item:
    """An item with the longest metadata that a document can have; ``columns``: the columns of a
    table that the prompt uses."""
    text = ("wide " * MAX_TEXT_CHARS)[:MAX_TEXT_CHARS].strip()
    keyword = text[:MAX_KEYWORD_CHARS].strip()
    document = Document("a", text, text, (keyword,) * MAX_KEYWORDS, MAX_CANVAS_PX, MAX_CANVAS_PX)
    return Item("a.png", document, 0, "SvgElement", dict.fromkeys(columns, text))


def _read_file(folder: Path, name: str, side: _Side) -> bytes:
    path = f"{folder}/{name}{SUFFIX}"
    try:
        # Without O_NONBLOCK, opening a FIFO would hang until a process writes to it.
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
        reason = f"the {side} is {JSON_TYPES[type(content)]}, not an object"
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
        reason = f"`{key}` of the {side} is {JSON_TYPES[type(value)]}, not a list"
        raise DocumentError("bad_type", reason)
    return value


def _text(value: object, max_chars: int) -> str | None:
    """Text or a number as metadata; anything else counts as missing."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return LONE_SURROGATE.sub("\ufffd", str(value).strip()[:max_chars]) or None


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
