"""How the captions of two output folders differ for the same images, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vllm_caption.commands.report.facts import has_flag, num_words
from vllm_caption.commands.report.items import Items
from vllm_caption.errors import CAPTION_FLAGS


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first folder against another. ``in_both``, ``in_first``, ``in_other``: items with a row
    in both, or in one of them only. The rest is about items that both have captioned: ``words``:
    the mean difference in length (other - first); ``flags``: each flag, with its items in the first
    folder only and in the other only."""

    label: str
    in_both: int
    in_first: int
    in_other: int
    both: int
    only_first: int
    only_other: int
    same: int
    longer: int
    shorter: int
    words: float
    flags: list[tuple[str, int, int]]

    @property
    def different(self) -> int:
        """Items whose captions differ."""
        return self.both - self.same

    @property
    def same_items(self) -> bool:
        """Whether both folders have the same items."""
        return not (self.in_first or self.in_other)

    def describe_items(self, first: str, other: str) -> str:
        """How many items both folders have, or only one, by the names of the folders."""
        are = "item is" if self.in_both == 1 else "items are"
        only = f"{self.in_first:,} only in {first}, {self.in_other:,} only in {other}"
        return f"{self.in_both:,} {are} in both {first} and {other}; {only}"


def compare(items: Items, labels: list[str]) -> list[Comparison]:
    """The first against each other folder."""
    first = items.sides[0]
    pairs = zip(labels[1:], items.sides[1:], strict=True)
    return [_compare(label, first, other) for label, other in pairs]


def _compare(label: str, first: pa.Table, other: pa.Table) -> Comparison:
    done_first, done_other = (_is_captioned(rows) for rows in (first, other))
    both = done_first & done_other
    has_first, has_other = (np.asarray(pc.is_valid(rows["status"])) for rows in (first, other))
    same = both & np.asarray(pc.fill_null(pc.equal(first["caption"], other["caption"]), False))
    difference = (num_words(other["caption"]) - num_words(first["caption"]))[both]
    flags: list[tuple[str, int, int]] = []
    for flag in CAPTION_FLAGS:
        mine, theirs = (np.asarray(has_flag(rows, flag)) for rows in (first, other))
        counts = int((both & mine & ~theirs).sum()), int((both & theirs & ~mine).sum())
        if any(counts):
            flags.append((flag, *counts))
    return Comparison(
        label=label,
        in_both=int((has_first & has_other).sum()),
        in_first=int((has_first & ~has_other).sum()),
        in_other=int((has_other & ~has_first).sum()),
        both=int(both.sum()),
        only_first=int((done_first & ~done_other).sum()),
        only_other=int((done_other & ~done_first).sum()),
        same=int(same.sum()),
        longer=int((difference > 0).sum()),
        shorter=int((difference < 0).sum()),
        words=float(difference.mean()) if len(difference) else 0.0,
        flags=flags,
    )


def _is_captioned(rows: pa.Table) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.equal(rows["status"], "captioned"), False))
