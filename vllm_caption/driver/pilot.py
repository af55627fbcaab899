"""Which items a pilot captions: a small run that shows what the full run will be like.

The items are chosen from the whole input: each element type in proportion, with at least one item;
within a type evenly across file sizes, from the smallest to the largest. Invariants: the same input
gives the same pilot, so a repeated pilot resumes; the number of candidates in memory is bounded,
however large the input.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from heapq import heappush, heappushpop
from typing import Final

from vllm_caption.config import InputConfig
from vllm_caption.errors import ItemError
from vllm_caption.images.files import num_bytes
from vllm_caption.images.object_store import FETCH_THREADS
from vllm_caption.inputs.reader import InputReader
from vllm_caption.items import Item

CANDIDATES_PER_ITEM: Final = 4
MIN_CANDIDATES: Final = 256
MAX_TYPES: Final = 64
"""How many types are counted separately; all others count as one."""
OTHER_TYPES: Final = ""


@dataclass(frozen=True, slots=True)
class Pilot:
    """The chosen items: ``input`` reads only these, from ``documents``. The numbers are those of
    the whole input, except ``by_type``."""

    input: InputConfig
    num_items: int
    num_documents: int
    by_type: dict[str, int]
    documents: frozenset[str] = frozenset()


class _Sample:
    """A representative sample of the files of one type: those with the smallest hashes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, str, str]] = []
        self.seen = 0

    def add(self, file: str, document: str) -> None:
        self.seen += 1
        # Python's hash of a string differs from process to process.
        digest = blake2b(file.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "big"), file, document)
        if len(self._heap) < self._most:
            heappush(self._heap, entry)
        else:
            heappushpop(self._heap, entry)

    def files(self) -> dict[str, str]:
        """The files, each with its document."""
        return {file: document for _, file, document in self._heap}


def choose_pilot(config: InputConfig, size: int) -> Pilot:
    """Read the whole input and choose ``size`` of its items, or all if there are fewer."""
    reader = InputReader(config)
    samples: dict[str, _Sample] = {}
    most = max(MIN_CANDIDATES, CANDIDATES_PER_ITEM * size)
    for entry in reader:
        if isinstance(entry, Item):
            kind = entry.element_type if len(samples) < MAX_TYPES else OTHER_TYPES
            kind = entry.element_type if entry.element_type in samples else kind
            samples.setdefault(kind, _Sample(most)).add(entry.file, entry.document.name)
    shares = share_out(size, {kind: sample.seen for kind, sample in samples.items()})
    root = os.fspath(config.images_root)
    chosen: dict[str, str] = {}
    by_type: dict[str, int] = {}
    for kind, number in shares.items():
        of_type = samples[kind].files()
        files = spread(list(of_type), number, root)
        chosen.update((file, of_type[file]) for file in files)
        by_type[kind] = len(files)
    return Pilot(
        # Without the limit, which would stop before the last chosen item.
        replace(config, only=frozenset(chosen), limit=None),
        num_items=reader.counts.items,
        num_documents=reader.counts.documents,
        by_type=by_type,
        documents=frozenset(chosen.values()),
    )


def share_out(size: int, available: dict[str, int]) -> dict[str, int]:
    """Share out ``size`` in proportion to what is available, with at least one each as far as
    possible."""
    kinds = sorted(available, key=lambda kind: (-available[kind], kind))[:size]
    size = min(size, sum(available.values()))
    shares = dict.fromkeys(kinds, 1)
    total = sum(available[kind] for kind in kinds)
    wanted = {kind: size * available[kind] / total for kind in kinds}
    for _ in range(size - len(kinds)):
        short = (kind for kind in kinds if shares[kind] < available[kind])
        shares[max(short, key=lambda kind: wanted[kind] - shares[kind])] += 1
    return shares


def spread(files: Sequence[str], number: int, images_root: str) -> list[str]:
    """``number`` of the files, evenly across their sizes, with the smallest and the largest."""
    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        sizes = threads.map(partial(_bytes, images_root), files)
    by_size = [file for _, file in sorted(zip(sizes, files, strict=True))]
    if number >= len(by_size):
        return by_size
    if number == 1:
        return [by_size[len(by_size) // 2]]
    last = len(by_size) - 1
    return [by_size[round(index * last / (number - 1))] for index in range(number)]


def _bytes(images_root: str, file: str) -> int:
    """Size on disk; -1 for a file that will fail, since those have their share in a pilot, too."""
    try:
        return num_bytes(images_root, file)
    except ItemError:
        return -1
