"""The captions of earlier runs, found by what was asked: so a twin is not captioned again.

A million captions take about 70 MB: keys in sorted columns, names in one Arrow array.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vllm_caption.store.layout import parts
from vllm_caption.store.parts import last_rows, num_rows, read_part

_COLUMNS = ["file", "status", "flags", "recipe_id", "twin_key"]


class EarlierCaptions:
    """Captions by `twins.twin_key`."""

    def __init__(self, files: pa.ChunkedArray, keys: np.ndarray) -> None:
        """``keys``: two unsigned 64-bit halves each, as many as ``files``."""
        self._order = np.argsort(keys[:, 0], kind="stable").astype(np.uint32)
        self._first, self._second = keys[self._order, 0], keys[self._order, 1]
        self._files = files

    def get(self, key: bytes) -> str | None:
        """The file whose caption answers this key; None when there is none."""
        if not len(self._first):
            return None
        first, second = (int.from_bytes(half, "big") for half in (key[:8], key[8:]))
        place = int(np.searchsorted(self._first, np.uint64(first)))
        while place < len(self._first) and int(self._first[place]) == first:
            if int(self._second[place]) == second:
                return str(self._files[int(self._order[place])].as_py())
            place += 1
        return None


def read_earlier(root: Path, recipe_id: str, num_known: int) -> EarlierCaptions:
    """The unflagged captions that the manifest of an output folder holds of one recipe.

    ``num_known``: items that have a row; where they are as many as rows, each row is the last one.
    """
    paths = parts(root / "manifest.parquet")
    last = np.ones(num_known, dtype=bool)
    if sum(num_rows(path) for path in paths) != num_known:
        names = [read_part(path, ["file"])["file"] for path in paths]
        last = last_rows(pa.chunked_array([c for name in names for c in name.chunks], pa.string()))
    files: list[pa.Array] = []
    keys, begin = [np.empty((0, 2), dtype=np.uint64)], 0
    for path in paths:
        table = read_part(path, _COLUMNS)
        table = table.filter(_wanted(table, recipe_id, last[begin : (begin := begin + len(table))]))
        files += table["file"].chunks
        halves = np.frombuffer(bytes.fromhex("".join(table["twin_key"].to_pylist())), dtype=">u8")
        keys.append(halves.reshape(-1, 2).astype(np.uint64))
    return EarlierCaptions(pa.chunked_array(files, pa.string()), np.concatenate(keys))


def _wanted(table: pa.Table, recipe_id: str, last: np.ndarray) -> pa.Array:
    flags = pc.fill_null(pc.list_value_length(table["flags"]), 0)
    tests = (
        pc.equal(table["status"], "captioned"),
        pc.equal(flags, 0),
        pc.equal(table["recipe_id"], recipe_id),
        pc.is_valid(table["twin_key"]),
        pa.array(last),  # only an item's last row says what its .txt holds
    )
    return reduce(pc.and_kleene, tests)
