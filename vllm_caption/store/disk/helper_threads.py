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
SLOW_S: Final = 1e-3
"""If the very first operation takes longer than this, helpers share the rest of its batch."""
WORTH_HELP: Final = 0.7
"""Helpers are used if an operation takes less than this share of its time without them: they also
take processor time from the engines."""
RISES: Final = 1.25
"""One slow batch raises the time of its way by no more than this: most are slowed by other work."""
FADES: Final = 0.99
"""Each batch multiplies the time of the other way by this, so that the other way is tried again."""


class HelperThreads:
    """Helper threads for one caller, started when first needed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_HELPERS, "output")
        self._is_new = True
        self._usual_s = {True: 0.0, False: 0.0}
        """How long one operation of a batch takes with help, and without; 0 until measured."""

    def each(self, do: Callable[[T], R], batch: Sequence[T]) -> list[R]:
        """Call ``do``, which must not raise, on each element; returns the results in order."""
        began_s = time.perf_counter()
        results: dict[int, R] = {}
        left = iter(range(len(batch)))

        def work() -> None:
            for number in left:
                results[number] = do(batch[number])

        if is_first := self._is_new and bool(batch):
            self._is_new, results[next(left)] = False, do(batch[0])
            helped = time.perf_counter() - began_s > SLOW_S
        else:
            helped = self._usual_s[True] < WORTH_HELP * self._usual_s[False]
        count = min(NUM_HELPERS, len(batch) - 1) if helped else 0
        helping = [self._pool.submit(work) for _ in range(count)]
        work()
        for helper in helping:
            if not helper.cancel():  # one that has not begun would find nothing left
                helper.result()
        if len(batch) > 1 and not is_first:  # the first batch also creates folders
            each_s = (time.perf_counter() - began_s) / len(batch)
            self._usual_s[helped] = min(each_s, RISES * self._usual_s[helped] or each_s)
            self._usual_s[not helped] *= FADES
        return [results[number] for number in range(len(batch))]

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown()
