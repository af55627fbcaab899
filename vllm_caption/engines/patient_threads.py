"""Threads for work that may hang, as on a network drive: whoever waits gives up after a time.

Invariants: at most as many are at work as were asked for, besides those that hang; time in which
this process stood still (a suspended machine, SIGSTOP, a debugger) does not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_HANGING: Final = 1000
"""Threads that are left to themselves; all other work waits where even more hang."""
SLICE_S: Final = 1.0
"""Waiting is counted in slices of that: a longer one says that this process stood still."""


class PatientThreads:
    """A pool of threads, used from one event loop."""

    def __init__(self, number: int, limit_s: float, name: str) -> None:
        """``limit_s``: how long a call may take from when its turn came."""
        self._limit_s = limit_s
        self._turns = asyncio.Semaphore(number)
        self._threads = ThreadPoolExecutor(number + MAX_HANGING, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *arguments: P.args, **_: P.kwargs) -> T:
        """What ``function`` returns or raises. Raises TimeoutError where it takes too long; it is
        left to itself, and another thread takes its place."""
        loop = asyncio.get_running_loop()
        async with self._turns:
            calling = loop.run_in_executor(self._threads, function, *arguments)
            left_s = self._limit_s
            while left_s > 0:
                slice_s = min(SLICE_S, left_s)
                await asyncio.wait([calling], timeout=slice_s)
                if calling.done():
                    return calling.result()
                left_s -= slice_s
            calling.add_done_callback(_forget)
            raise TimeoutError

    def shutdown(self) -> None:
        """Begin nothing more; what hangs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _forget(calling: asyncio.Future[T]) -> None:
    if not calling.cancelled():
        calling.exception()
