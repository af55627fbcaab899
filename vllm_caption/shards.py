"""A stable n-th of the items, for runs side by side that know nothing of each other.

A shard writes its captions where a run without shards would, and keeps everything else (manifest,
journal, lock, status, logs) in a folder of its own, until a merge makes one manifest of all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from zlib import crc32

_TEXT: Final = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """Number ``index`` of ``count``, from 1."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """`3/8`. Raises ValueError."""
        found = _TEXT.fullmatch(text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"{text} is no I/N with I from 1 to N, as 3/8")
        return Shard(int(found[1]), int(found[2]))

    def takes(self, name: str) -> bool:
        """Whether the item of this name belongs to it: by CRC-32 of the name, so the same names
        come to the same shard on every machine, whatever else is in the input."""
        return crc32(name.encode(errors="surrogatepass")) % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
