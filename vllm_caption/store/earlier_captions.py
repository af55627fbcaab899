"""The captions of earlier runs by image content and prompt: an image that was captioned under
another name is not captioned again.

A million captions take about 80 MB: keys in sorted columns, names in one Arrow array. Without .txt
files to read them from, the texts are kept beside the names.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import reduce
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vllm_caption.scheduling.duplicates import Made
from vllm_caption.store.layout import MANIFEST, parts
from vllm_caption.store.reader import last_rows
from vllm_caption.store.rows import hash_of

_COLUMNS: Final = ("file", "status", "caption", "structured", "flags", "recipe_id", "twin_key")


class EarlierCaptions:
    """Twin key → one of the files with this key that has a caption."""

    def __init__(
        self,
        files: pa.ChunkedArray,
        keys: np.ndarray,
        text_hashes: np.ndarray,
        structured: pa.ChunkedArray,
        captions: pa.ChunkedArray | None = None,
    ) -> None:
        """One entry per caption: ``keys`` are two unsigned 64-bit halves each, ``text_hashes`` are
        signed."""
        self._order = np.argsort(keys[:, 0], kind="stable").astype(np.uint32)
        self._first, self._second = keys[self._order, 0], keys[self._order, 1]
        self._files = files
        self._text_hashes = text_hashes
        self._structured = structured
        self._captions = captions

    def get(self, key: bytes) -> Made | None:
        """A caption with this key; None if there is none."""
        if not len(self._first):
            return None
        first, second = (int.from_bytes(half, "big") for half in (key[:8], key[8:]))
        place = int(np.searchsorted(self._first, np.uint64(first)))
        while place < len(self._first) and int(self._first[place]) == first:
            if int(self._second[place]) == second:
                row = int(self._order[place])
                caption = None if self._captions is None else str(self._captions[row].as_py())
                file, structured = (c[row].as_py() for c in (self._files, self._structured))
                return Made(file, int(self._text_hashes[row]), caption, structured)
            place += 1
        return None


def read_earlier(
    root: Path, recipe_ids: Collection[str], num_known: int, with_captions: bool = False
) -> EarlierCaptions:
    """The captions of one recipe in the manifest of an output folder, except flagged ones.

    ``num_known``: how many items have a row; 0 if unknown.
    """
    files: list[pa.Array] = []
    captions: list[pa.Array] = []
    keys = [np.empty((0, 2), dtype=np.uint64)]
    text_hashes = [np.empty(0, dtype=np.int64)]
    structured: list[pa.Array] = []
    for rows in last_rows(parts(root / MANIFEST), _COLUMNS, num_known):
        usable = rows.filter(_is_usable(rows, pa.array(list(recipe_ids))))
        files += usable["file"].chunks
        structured += usable["structured"].chunks
        captions += usable["caption"].chunks if with_captions else ()
        halves = np.frombuffer(bytes.fromhex("".join(usable["twin_key"].to_pylist())), dtype=">u8")
        keys.append(halves.reshape(-1, 2).astype(np.uint64))
        text_hashes.append(np.fromiter(map(hash_of, usable["caption"].to_pylist()), np.int64))
    return EarlierCaptions(
        pa.chunked_array(files, pa.string()),
        np.concatenate(keys),
        np.concatenate(text_hashes),
        pa.chunked_array(structured, pa.string()),
        pa.chunked_array(captions, pa.string()) if with_captions else None,
    )


def _is_usable(rows: pa.Table, recipe_ids: pa.Array) -> pa.Array:
    num_flags = pc.fill_null(pc.list_value_length(rows["flags"]), 0)
    tests = (
        pc.equal(rows["status"], "captioned"),
        pc.equal(num_flags, 0),
        pc.is_in(rows["recipe_id"], recipe_ids),
        pc.is_valid(rows["twin_key"]),
    )
    return reduce(pc.and_kleene, tests)
