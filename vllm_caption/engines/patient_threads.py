"""Threads for work that may hang, for example on a network drive: a caller waits only so long.

Invariants: besides threads that hang, no more than the given number work; time during which
this process stood still (a suspended machine, SIGSTOP, a debugger) does not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_HANGING: Final = 1000
"""Threads that may be abandoned; if even more hang, all other work waits."""
SLICE_S: Final = 1.0
"""Waiting is counted in slices of this length: a longer one means that this process stood still."""


class PatientThreads:
    """A pool of threads, used from one event loop."""

    def __init__(self, number: int, limit_s: float, name: str) -> None:
        """``limit_s``: how long a call may take once it is its turn."""
        self._limit_s = limit_s
        self._slice_s = min(SLICE_S, limit_s)
        self._turns = asyncio.Semaphore(number)
        self._threads = ThreadPoolExecutor(number + MAX_HANGING, thread_name_prefix=name)
        self._left_s: dict[asyncio.Future[Any], float] = {}
        """The time that each running call has left."""
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, function: Callable[P, T], *arguments: P.args, **_: P.kwargs) -> T:
        """What ``function`` returns or raises. Raises TimeoutError if it takes too long; its thread
        is then abandoned, and another one takes its place."""
        async with self._turns:
            loop = asyncio.get_running_loop()
            calling = loop.run_in_executor(self._threads, function, *arguments)
            # The current slice will count as a whole one, which must not shorten the call's time.
            self._left_s[calling] = self._limit_s + (self._slice_s if self._timer else 0)
            if self._timer is None:
                self._timer = loop.call_later(self._slice_s, self._count, loop)
            try:
                return await calling
            except asyncio.CancelledError:
                if self._left_s[calling] > 0:  # the caller was cancelled, not the call
                    raise
                raise TimeoutError from None
            finally:
                del self._left_s[calling]

    def all_busy(self) -> bool:
        """Whether a call would have to wait for its turn."""
        return self._turns.locked()

    def _count(self, loop: asyncio.AbstractEventLoop) -> None:
        """A time slice is over for all calls: one timer is cheaper than one per call."""
        for calling in self._left_s:
            self._left_s[calling] -= self._slice_s
            if self._left_s[calling] <= 0:
                calling.cancel()
        waits = bool(self._left_s)
        self._timer = loop.call_later(self._slice_s, self._count, loop) if waits else None

    def shutdown(self) -> None:
        """Start nothing more; hanging threads are not awaited."""
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
