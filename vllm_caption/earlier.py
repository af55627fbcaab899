"""The captions of earlier runs, found by what was asked: so a twin is not captioned again.

A million captions take about 70 MB: keys in sorted columns, names in one Arrow array.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vllm_caption.checkpoint import SCHEMA, Known, parts

_COLUMNS = ["file", "twin_key"]


class EarlierCaptions:
    """Unflagged captions of one recipe, by `twins.twin_key`. ``known``: the last row per item."""

    def __init__(
        self, tables: Iterable[pa.Table], known: Mapping[str, Known], recipe_id: str
    ) -> None:
        self._known = known
        self._recipe_id = recipe_id
        # Rows before their item's last one are sorted out when they are asked for.
        kept = pa.concat_tables([*tables, SCHEMA.empty_table().select(_COLUMNS)]).combine_chunks()
        keys = b"".join(kept["twin_key"].to_pylist())
        halves = np.frombuffer(keys, dtype=">u8").reshape(-1, 2).astype(np.uint64)
        self._order = np.argsort(halves[:, 0], kind="stable").astype(np.uint32)
        self._first = halves[self._order, 0]
        self._second = halves[self._order, 1]
        self._files = kept["file"]

    def get(self, key: bytes) -> str | None:
        """The file whose caption answers this key; None when there is none."""
        first, second = (int.from_bytes(half, "big") for half in (key[:8], key[8:]))
        place = int(np.searchsorted(self._first, np.uint64(first)))
        while place < len(self._first) and int(self._first[place]) == first:
            if int(self._second[place]) == second:
                file = self._files[int(self._order[place])].as_py()
                if self._stands(file):
                    return str(file)
            place += 1
        return None

    def _stands(self, file: str) -> bool:
        known = self._known.get(file)
        return (
            known is not None
            and known.status == "captioned"
            and known.recipe_id == self._recipe_id
            and not known.flagged
        )


def read_earlier(root: Path, known: Mapping[str, Known], recipe_id: str) -> EarlierCaptions:
    """What the manifest of an output folder offers to a run with this recipe."""

    def tables() -> Iterable[pa.Table]:
        wanted = (pc.field("recipe_id") == recipe_id) & pc.field("twin_key").is_valid()
        for path in parts(root / "manifest.parquet"):
            yield pq.read_table(path, columns=_COLUMNS, schema=SCHEMA, filters=wanted)

    return EarlierCaptions(tables(), known, recipe_id)
