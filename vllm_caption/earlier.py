"""The captions of earlier runs, found by what was asked: so a twin is not captioned again.

A million captions take about 70 MB: keys in sorted columns, names in one Arrow array.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vllm_caption.parts import SCHEMA, last_rows, parts, read_part

_COLUMNS = ["file", "status", "flags", "recipe_id", "twin_key"]


class EarlierCaptions:
    """Captions by `twins.twin_key`."""

    def __init__(self, files: pa.ChunkedArray, keys: pa.ChunkedArray) -> None:
        """``keys``: 16 bytes each, as many as ``files``."""
        halves = np.frombuffer(b"".join(keys.to_pylist()), dtype=">u8").reshape(-1, 2)
        self._order = np.argsort(halves[:, 0], kind="stable").astype(np.uint32)
        self._first, self._second = halves[self._order].astype(np.uint64).T.copy()
        self._files = files

    def get(self, key: bytes) -> str | None:
        """The file whose caption answers this key; None when there is none."""
        first, second = (int.from_bytes(half, "big") for half in (key[:8], key[8:]))
        place = int(np.searchsorted(self._first, np.uint64(first)))
        while place < len(self._first) and int(self._first[place]) == first:
            if int(self._second[place]) == second:
                return str(self._files[int(self._order[place])].as_py())
            place += 1
        return None


def read_earlier(root: Path, recipe_id: str) -> EarlierCaptions:
    """The unflagged captions that the manifest of an output folder holds of one recipe."""
    tables = [read_part(path, _COLUMNS) for path in parts(root / "manifest.parquet")]
    table = pa.concat_tables([*tables, SCHEMA.empty_table().select(_COLUMNS)])
    last = pa.array(last_rows(table["file"]))  # only that says what the .txt holds
    flags = pc.fill_null(pc.list_value_length(table["flags"]), 0)
    wanted = pc.and_kleene(pc.equal(table["status"], "captioned"), pc.equal(flags, 0))
    wanted = pc.and_kleene(wanted, pc.equal(table["recipe_id"], recipe_id))
    wanted = pc.and_kleene(wanted, pc.is_valid(table["twin_key"]))
    kept = table.filter(pc.and_kleene(wanted, last))
    return EarlierCaptions(kept["file"].combine_chunks(), kept["twin_key"])
