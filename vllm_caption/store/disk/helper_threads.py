"""Threads that share a batch of file operations with their caller.

Creating a file keeps the kernel or a server busy, and Python runs other threads meanwhile. Whether
that outweighs what the threads cost each other depends on the disk and the machine, so both ways
are timed, and the faster one is used.

Invariant: when `each` returns, no helper is working on the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")
NUM_HELPERS: Final = 3
WORTH_HELP_S: Final = 200e-6
"""If the very first operation takes longer than this, helpers share the rest of its batch."""
NEW_SHARE: Final = 0.25
"""The weight of a batch in the average of its way (with or without help)."""
FADES: Final = 0.99
"""Each batch multiplies the average of the other way by this, so that the other way is tried again:
after 140 batches if it takes four times as long."""


class HelperThreads:
    """Helper threads for one caller, started when first needed."""

    def __init__(self, num_helpers: int = NUM_HELPERS) -> None:
        self._num_helpers = num_helpers
        self._pool = ThreadPoolExecutor(num_helpers, "output")
        self._usual_s = {True: WORTH_HELP_S, False: 0.0}
        """How long one operation of a batch takes with help, and without."""

    def each(self, do: Callable[[T], R], batch: Sequence[T]) -> list[R]:
        """Call ``do``, which must not raise, on each element; returns the results in order."""
        began_s = time.perf_counter()
        results: dict[int, R] = {}
        left = iter(range(len(batch)))

        def work() -> None:
            for number in left:
                results[number] = do(batch[number])

        if batch and not self._usual_s[False]:
            results[next(left)] = do(batch[0])
            self._usual_s[False] = time.perf_counter() - began_s
        helped = self._usual_s[True] < self._usual_s[False]
        count = min(self._num_helpers, len(batch) - 1) if helped else 0
        helping = [self._pool.submit(work) for _ in range(count)]
        work()
        for helper in helping:
            if not helper.cancel():  # one that has not begun would find nothing left
                helper.result()
        if len(batch) > 1:
            usual_s = self._usual_s[helped]
            each_s = (time.perf_counter() - began_s) / len(batch)
            # A moment when the disk stood still says nothing about either way.
            self._usual_s[helped] += NEW_SHARE * (min(each_s, 2 * usual_s) - usual_s)
            self._usual_s[not helped] *= FADES
        return [results[number] for number in range(len(batch))]

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown()
