"""A small run that says what the large one will be like: which items, and what to do next.

The items are chosen from the whole input: of each element type in proportion, at least one; within
a type evenly along the sizes of the files, from the smallest to the largest. Invariants: the same
input gives the same pilot, so that a pilot that is run again goes on; memory holds a bounded number
of candidates, however large the input is.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from heapq import heappush, heappushpop
from typing import Final

from vllm_caption.config import InputConfig, RunConfig
from vllm_caption.errors import ItemError
from vllm_caption.formatting import duration
from vllm_caption.images.files import num_bytes
from vllm_caption.images.object_store import FETCH_THREADS
from vllm_caption.inputs.manifest import ManifestReader
from vllm_caption.items import Item
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.store.layout import REPORT

CANDIDATES_PER_ITEM: Final = 4
MIN_CANDIDATES: Final = 256
MAX_TYPES: Final = 64
"""Types that are told apart; further ones count as one."""
OTHER_TYPES: Final = ""
SHORT_S: Final = 30.0
"""A pilot that is shorter says little about speed: engines warm up and run dry in this time."""


@dataclass(frozen=True, slots=True)
class Pilot:
    """The items that were chosen. ``num_items``, ``num_documents``: of the whole input."""

    input: InputConfig
    num_items: int
    num_documents: int
    by_type: dict[str, int]

    @property
    def size(self) -> int:
        """Items chosen."""
        return sum(self.by_type.values())


class _Sample:
    """A fair sample of the files of one type: those with the smallest hashes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, str]] = []
        self.seen = 0

    def add(self, file: str) -> None:
        self.seen += 1
        # A hash as large as Python's own would differ from process to process.
        digest = blake2b(file.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        entry = (-int.from_bytes(digest, "big"), file)
        if len(self._heap) < self._most:
            heappush(self._heap, entry)
        else:
            heappushpop(self._heap, entry)

    def files(self) -> list[str]:
        return [file for _, file in self._heap]


def choose_pilot(config: InputConfig, size: int) -> Pilot:
    """Read the whole input and choose ``size`` of its items, or all where there are fewer."""
    reader = ManifestReader(config)
    samples: dict[str, _Sample] = {}
    most = max(MIN_CANDIDATES, CANDIDATES_PER_ITEM * size)
    for entry in reader:
        if isinstance(entry, Item):
            kind = entry.element_type if len(samples) < MAX_TYPES else OTHER_TYPES
            kind = entry.element_type if entry.element_type in samples else kind
            samples.setdefault(kind, _Sample(most)).add(entry.file)
    shares = share_out(size, {kind: sample.seen for kind, sample in samples.items()})
    root = os.fspath(config.images_root)
    chosen: set[str] = set()
    by_type: dict[str, int] = {}
    for kind, number in shares.items():
        files = spread(samples[kind].files(), number, root)
        chosen.update(files)
        by_type[kind] = len(files)
    return Pilot(
        # The chosen ones lie within a limit; it must not end the reading before the last of them.
        replace(config, only=frozenset(chosen), limit=None),
        num_items=reader.counts.items,
        num_documents=reader.counts.documents,
        by_type=by_type,
    )


def share_out(size: int, available: dict[str, int]) -> dict[str, int]:
    """``size`` in proportion to what is available, at least one each while it lasts."""
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
    """So many of the files, evenly along their sizes; the smallest and the largest among them."""
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
    """Size on disk; -1 for what will fail, which has its share in a pilot too."""
    try:
        return num_bytes(images_root, file)
    except ItemError:
        return -1


def next_steps(pilot: Pilot, config: RunConfig, stats: RunStats) -> str:
    """What to look at, the line of the full run, and how long it may take."""
    types = ", ".join(f"{kind or 'others'} {n}" for kind, n in Counter(pilot.by_type).most_common())
    kept = "makes these anew too" if config.resume.redo == "all" else "keeps these captions"
    full = shlex.join(["python", "-m", "vllm_caption", *without_pilot(config.arguments)])
    lines = [
        f"Pilot: {pilot.size} of {pilot.num_items:,} items in {pilot.num_documents:,} documents,"
        f" over all sizes of files: {types}",
        f"  Look at it: {config.output / REPORT} (anew: python -m vllm_caption report"
        f" {shlex.join([f'--output={config.output}'])})",
        f"  The full run, which {kept}: {full}",
    ]
    left, images_per_s = pilot.num_items - pilot.size, stats.mean_images_per_s
    if images_per_s and left:
        lines.append(
            f"  It takes about {duration(left / images_per_s)} for {left:,} further items at the"
            f" pilot's {images_per_s:.1f} images/s, less what is captioned already."
        )
        if stats.generating_s < SHORT_S:
            lines.append(
                f"  It generated for {stats.generating_s:.1f} s only: a larger pilot says more."
            )
    return "\n".join(lines)


def without_pilot(arguments: Iterable[str]) -> list[str]:
    """A command line without its --pilot."""
    kept: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--pilot":
            next(left, None)
        elif not argument.startswith("--pilot="):
            kept.append(argument)
    return kept
