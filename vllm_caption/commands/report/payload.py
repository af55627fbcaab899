"""The gallery's data as one block of text for the page: JSON columns, gzip, base64.

Invariants: base64 has no character with a meaning in HTML, so no caption or file name can leave its
block; columns are arrays (repeated names are indices), so that 100,000 items take a few megabytes.
"""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vllm_caption.captions.rules import HAN
from vllm_caption.commands.report.facts import has_flag, num_words
from vllm_caption.commands.report.items import Items
from vllm_caption.commands.report.thumbnails import Thumbnails
from vllm_caption.config import is_remote
from vllm_caption.errors import CAPTION_FLAGS
from vllm_caption.store.recipe import Recipe

MAX_CHARS: Final = 2000
"""Of one caption or reason; the .txt holds all of it."""
STATUSES: Final = ("captioned", "failed")


def make_payload(
    items: Items,
    labels: list[str],
    recipes: dict[str, Recipe],
    thumbnails: Thumbnails,
    images_root: Path | str | None = None,
) -> str:
    """The block."""
    shared = items.shared
    data = {
        "labels": labels,
        "prompts": {id_: recipe.prompt_name for id_, recipe in recipes.items()},
        "han": HAN,
        "flags": CAPTION_FLAGS,
        "statuses": STATUSES,
        "root": _uri(images_root) if images_root else _root_uri(shared),
        "file": shared["file"].to_pylist(),
        "document": _named(shared["document"]),
        "type": _named(shared["element_type"]),
        "backdrop": _named(shared["backdrop"]),
        "width": _numbers(shared["image_width"]),
        "height": _numbers(shared["image_height"]),
        "sides": [_side(side) for side in items.sides],
        "pictures": {str(place): uri for place, uri in thumbnails.pictures.items()},
        "notes": {str(place): note for place, note in thumbnails.notes.items()},
    }
    return base64.b64encode(gzip.compress(msgspec.json.encode(data), 6, mtime=0)).decode()


def _side(rows: pa.Table) -> dict[str, Any]:
    text = pc.coalesce(rows["caption"], rows["error"])
    marks = np.zeros(len(rows), dtype=np.int64)
    for bit, flag in enumerate(CAPTION_FLAGS):
        marks |= np.asarray(has_flag(rows, flag)).astype(np.int64) << bit
    return {
        "status": _numbers(pc.index_in(rows["status"], pa.array(STATUSES))),
        "kind": _named(pc.if_else(pc.equal(rows["status"], "failed"), rows["error_kind"], None)),
        "flags": marks.tolist(),
        "text": pc.fill_null(pc.utf8_slice_codeunits(text, 0, MAX_CHARS), "").to_pylist(),
        "fields": _fields(rows["structured"]),
        "words": num_words(rows["caption"]).tolist(),
        "tokens": _numbers(rows["output_tokens"]),
        "ms": _milliseconds(rows["generate_s"]),
        "engine": _numbers(rows["engine"]),
        "attempts": _numbers(rows["attempts"]),
        "recipe": _named(rows["recipe_id"]),
    }


def _fields(structured: pa.ChunkedArray) -> list[str] | None:
    """JSON of each row, "" for none; None where no row has any."""
    if structured.null_count == len(structured):
        return None
    return pc.fill_null(pc.utf8_slice_codeunits(structured, 0, MAX_CHARS), "").to_pylist()  # type: ignore[no-any-return]


def _named(column: pa.ChunkedArray) -> dict[str, list[Any]]:
    """Its distinct values, and for each row the number of its value, -1 for none."""
    names = pc.unique(column.drop_null())
    return {"names": names.to_pylist(), "of": _numbers(pc.index_in(column, names))}


def _numbers(column: pa.ChunkedArray) -> list[int]:
    return pc.fill_null(column, -1).to_pylist()  # type: ignore[no-any-return]


def _milliseconds(column: pa.ChunkedArray) -> list[int]:
    seconds = np.nan_to_num(np.asarray(pc.fill_null(column, -0.001)), nan=-0.001)
    values: list[int] = np.rint(seconds * 1000).astype(int).tolist()
    return values


def _uri(root: Path | str) -> str | None:
    """For links; a browser opens no `s3://`."""
    return None if is_remote(root) else Path(root or "/").absolute().as_uri()


def _root_uri(shared: pa.Table) -> str | None:
    """Where the files lie, for links; None where the rows do not say."""
    for file, path in zip(
        shared["file"].slice(0, 1000).to_pylist(),
        shared["image_path"].slice(0, 1000).to_pylist(),
        strict=True,
    ):
        if path and path.endswith(f"/{file}"):
            return _uri(path.removesuffix(f"/{file}"))
    return None
