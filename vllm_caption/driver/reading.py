"""The scan in a thread of its own, since it blocks on files; its batches come to the driver's loop.

Invariant: `read` always returns, with the failure if there was one, so nobody waits for a thread
that is gone, and no failure passes for the end of the input. What nobody foresaw
goes on to the hook that prints a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from vllm_caption.driver.pending import Batch, Scan
from vllm_caption.errors import RunStopped


class Reading:
    """One scan."""

    def __init__(self, scan: Scan, take: Callable[[Batch], None]) -> None:
        """``take`` gets every batch, in the thread of the running loop."""
        self._scan = scan
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[RunStopped | None] = self._loop.create_future()

    async def read(self) -> RunStopped | None:
        """Read to the end, or until `leave`; returns what stopped the reading before its end."""
        threading.Thread(target=self._read, name="scan", daemon=True).start()
        return await self._ended

    def leave(self) -> None:
        """Nobody wants the rest; the thread leaves when it can, and is not waited for."""
        self._scan.leave()
        self._end(None)

    def _read(self) -> None:
        failure: RunStopped | None = RunStopped("a bug stopped the reading of the input, see above")
        try:
            for batch in self._scan.batches():
                self._call(self._take_in, batch)
            failure = None
        except OSError as error:
            failure = RunStopped(f"{error.filename or 'the input'} cannot be read: {error}")
        finally:  # whatever it was, it must not look like the end
            self._call(self._end, failure)

    def _call(self, what: Callable[..., None], argument: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
            self._loop.call_soon_threadsafe(what, argument)

    def _take_in(self, batch: Batch) -> None:
        if self._ended.done():
            return
        failure: RunStopped | None = RunStopped("a bug stopped the queueing of items, see above")
        try:
            self._take(batch)
            failure = None
        except RunStopped as stopped:
            failure = stopped
        finally:
            if failure:
                self._end(failure)

    def _end(self, failure: RunStopped | None) -> None:
        if not self._ended.done():
            self._ended.set_result(failure)
