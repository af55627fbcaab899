"""Threads that share a batch of file operations with their caller.

Creating a file mostly waits for the kernel or a server, and Python runs other threads meanwhile.
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
WORTH_HELP_S: Final = 50e-6
"""How long an operation must wait, not counting its time on the processor, for helpers to be worth
it. Below that, one thread alone is faster, since Python threads take turns."""


class HelperThreads:
    """Helper threads for one caller, started when first needed."""

    def __init__(self, num_helpers: int = NUM_HELPERS) -> None:
        self._num_helpers = num_helpers
        self._pool = ThreadPoolExecutor(num_helpers, "output")
        self._usual_s = 0.0
        """Recent average wait of the first operation of a batch, which runs alone."""

    def each(self, do: Callable[[T], R], batch: Sequence[T]) -> list[R]:
        """Call ``do``, which must not raise, on each element; returns the results in order."""
        if not batch:
            return []
        began_s = _waited_s()
        results = {0: do(batch[0])}
        self._usual_s += (_waited_s() - began_s - self._usual_s) / 8
        left = iter(range(1, len(batch)))

        def work() -> None:
            for number in left:
                results[number] = do(batch[number])

        count = min(self._num_helpers, len(batch) - 2) if self._usual_s > WORTH_HELP_S else 0
        helping = [self._pool.submit(work) for _ in range(count)]
        work()
        for helper in helping:
            if not helper.cancel():  # one that has not begun would find nothing left
                helper.result()
        return [results[number] for number in range(len(batch))]

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown()


def _waited_s() -> float:
    """A clock that stands still while this thread is on the processor."""
    return time.perf_counter() - time.thread_time()
