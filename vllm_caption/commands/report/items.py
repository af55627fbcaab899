"""The items of one or several output folders, side by side: what the gallery shows.

Invariants: each `file` is one item, in the order of documents and elements; where a folder has no
row of it, that folder's columns are null. If there are more items than the page can hold, those
that failed or are flagged in any folder stay, with an even sample of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vllm_caption.commands.report.facts import is_flagged
from vllm_caption.commands.report.records import Records

ORDER = [(name, "ascending") for name in ("document", "element_index", "file")]
SHARED = (
    *("document", "element_index", "element_type", "image_path"),
    *("image_width", "image_height", "backdrop", "image_sha256"),
)


@dataclass(frozen=True, slots=True)
class Items:
    """``shared``: `file` and the columns that do not depend on the folder; ``sides``: the rows of
    each folder; ``total``: items before any were left out."""

    shared: pa.Table
    sides: list[pa.Table]
    total: int

    def __len__(self) -> int:
        return len(self.shared)


def align(records: list[Records]) -> Items:
    """All items of all the folders."""
    if len(records) == 1:
        rows = records[0].rows  # one row of each item, in order already
        return Items(rows.select(["file", *SHARED]), [rows], total=len(rows))
    return _side_by_side([r.rows for r in records])


def _side_by_side(tables: list[pa.Table]) -> Items:
    files = pc.unique(pa.chunked_array([c for rows in tables for c in rows["file"].chunks]))
    sides = [rows.take(pc.index_in(files, rows["file"])) for rows in tables]
    shared = pa.table(
        {"file": files} | {name: pc.coalesce(*(side[name] for side in sides)) for name in SHARED}
    )
    order = pc.sort_indices(shared, ORDER)
    return Items(shared.take(order), [side.take(order) for side in sides], total=len(files))


def is_troubled(items: Items) -> np.ndarray:
    """Which items failed or are flagged in any folder."""
    troubled = np.zeros(len(items), dtype=bool)
    for side in items.sides:
        failed = pc.fill_null(pc.equal(side["status"], "failed"), False)
        troubled |= np.asarray(pc.or_(failed, is_flagged(side)))
    return troubled


def sample(items: Items, most: int) -> Items:
    """At most ``most`` of the items."""
    if len(items) <= most:
        return items
    troubled = is_troubled(items)
    chosen = _evenly(np.flatnonzero(troubled), most)
    others = _evenly(np.flatnonzero(~troubled), most - len(chosen))
    kept = np.sort(np.concatenate([chosen, others]))
    return Items(items.shared.take(kept), [side.take(kept) for side in items.sides], items.total)


def _evenly(places: np.ndarray, most: int) -> np.ndarray:
    if len(places) <= most:
        return places
    return places[np.linspace(0, len(places) - 1, most).astype(np.int64)] if most else places[:0]
