"""The driver's loop, in one asyncio thread: items in from the scan, messages carried between the
engine slots and the clerk, the end of the run.

Nothing is decided here about items (the dispatcher does) and nothing is written (the clerk does).
Invariant: whatever stops the run stops it at once, and nothing is waited for without a limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from vllm_caption.config import EngineConfig
from vllm_caption.driver.engine_slot import Answer, Slots
from vllm_caption.driver.pending import Batch, Scan
from vllm_caption.driver.reading import Reading
from vllm_caption.driver.recorder import Clerk
from vllm_caption.engines.executors.base import Executor
from vllm_caption.errors import RunStopped
from vllm_caption.items import Item
from vllm_caption.messages import Cancel, Cancelled, ImageRead, Lease
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.scheduling.dispatcher import Dispatcher, GiveUp

T = TypeVar("T")


class Driver:
    """One run, from the first scanned item to the last joined worker."""

    def __init__(
        self,
        config: EngineConfig,
        clerk: Clerk,
        dispatcher: Dispatcher[Item],
        stats: RunStats,
        tell: Callable[[str], None],
    ) -> None:
        """``tell`` shows one line to the user."""
        self._config = config
        self._clerk = clerk
        self._dispatcher = dispatcher
        self._stats = stats
        self._tell = tell
        self._slots = Slots(config, dispatcher, stats, tell, self)
        self._changed = asyncio.Event()
        self._work_found = asyncio.Event()
        self._stopped: RunStopped | None = None
        self._reading: Reading | None = None
        self.interrupts = 0

    async def scan(self, scan: Scan) -> None:
        """Read the whole input beside the engines, queueing what must be done. Returns at its end,
        or when nobody wants the rest."""
        self._reading = Reading(scan, lambda batch: self._scanned(batch, scan))
        if failure := await self._reading.read():
            self.stop(failure)
        self._stats.scanning = False
        self._dispatcher.end_input()
        self.wake()

    def leave_scan(self) -> None:
        """Let the scanning thread end early; nobody waits for it any more."""
        if self._reading is not None:
            self._reading.leave()

    async def wait_for_work(self) -> bool:
        """Wait until an engine is needed (True) or there is no work, or no run, left (False)."""
        await self._work_found.wait()
        self.raise_if_stopped()
        return self._dispatcher.num_waiting > 0 and not self.interrupts

    def raise_if_stopped(self) -> None:
        """Raise what `stop` was told."""
        if self._stopped is not None:
            raise self._stopped

    async def unless_interrupted(self, work: Awaitable[T]) -> T | None:
        """The result of ``work``, or None as soon as the run is interrupted or stopped."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._changed.set())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # no news if left
        while not (task.done() or self.interrupts or self._stopped):
            self._changed.clear()
            await self._changed.wait()
        if self.interrupts or self._stopped:
            task.cancel()
            return None
        return task.result()

    async def serve(self, executor: Executor, *, first_alone: bool) -> None:
        """Run every engine until nothing is left to do. Raises RunStopped.

        ``first_alone``: start the others once engine 0 is up, with what it left in the caches.
        """
        served: list[asyncio.Task[None]] = []
        first = self._stats.engines[0]
        try:
            for engine in range(len(self._stats.engines)):
                served.append(asyncio.create_task(self._slots.serve(executor, engine)))
                served[-1].add_done_callback(lambda _: self._changed.set())
                if first_alone and engine == 0:
                    await self._until(lambda: first.state in ("up", "retired") or first.restarts)
            await self._until(lambda: all(task.done() for task in served) or _failed(served))
        finally:
            await self._slots.stop(served, at_once=self._must_leave())
        if failed := _failed(served):
            raise failed
        self.raise_if_stopped()
        if not self._dispatcher.finished and not self.interrupts:
            raise RunStopped(f"no engine is left; the last error was: {self._slots.last_error}")

    def interrupt(self) -> None:
        """Ctrl+C: the first time hand out nothing more, the second time leave now."""
        self.interrupts += 1
        self.leave_scan()
        self._dispatcher.close()
        if self.interrupts > 1:
            self._slots.kill()
        else:
            left = self._dispatcher.num_in_flight
            self._tell(f"Interrupted: finishing {left} items in flight; once more to stop now.")
        self.wake()

    async def _until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition, for the end of the work, or for the end of the run."""
        while not (condition() or self._dispatcher.finished or self._must_leave()):
            self._changed.clear()
            await self._changed.wait()

    def _must_leave(self) -> bool:
        return self._stopped is not None or self.interrupts > 1

    def ending(self) -> bool:
        """Whether no engine should be started any more."""
        return self._must_leave() or self._dispatcher.finished or self.interrupts > 0

    def stop(self, stopped: RunStopped) -> None:
        """The run cannot go on: leave as soon as the workers are ended."""
        self._stopped = self._stopped or stopped
        self.wake()

    def wake(self) -> None:
        """Something changed that somebody may wait for."""
        self._work_found.set()
        self._changed.set()

    # --- items ---------------------------------------------------------------------------------

    def _scanned(self, batch: Batch, scan: Scan) -> None:
        self._stats.total = scan.reader.counts.items + scan.reader.counts.bad_entries
        self._clerk.take_in(batch)
        if batch.pending:
            self._work_found.set()
            self.feed_all()

    def answered(self, engine: int, message: Answer) -> None:
        """A worker says something about an item."""
        try:
            if isinstance(message, Cancelled):
                self._dispatcher.cancelled(engine, message.lease)
            elif not isinstance(message, ImageRead):
                self._clerk.answered(engine, message)
            elif self._clerk.seen(engine, message):
                self._slots.send(engine, Cancel(message.lease))
        except RunStopped as stopped:
            self.stop(stopped)
        if self._dispatcher.finished:
            self._changed.set()

    def feed_all(self) -> None:
        """Any engine may have room."""
        for engine in self._slots.running():
            self.feed(engine)

    def feed(self, engine: int) -> None:
        """An engine may have room."""
        if self._slots.state(engine) != "up" or self._must_leave():
            return
        if not self._dispatcher.busy(engine):  # an idle engine's clock starts with its work
            self._slots.begins_work(engine)
        try:
            if requests := self._clerk.requests(engine, self._config.window):
                self._slots.send(engine, Lease(requests))
        except RunStopped as stopped:
            self.stop(stopped)

    def convicted(self, engine: int, poison: GiveUp[Item]) -> None:
        """An item was found to kill engines: it fails."""
        try:
            self._clerk.settle(poison, engine)
        except RunStopped as stopped:
            self.stop(stopped)

    def tick(self, now_s: float) -> None:
        """Call now and then: hands out what has rested, and looks for engines that stand still."""
        if self._dispatcher.advance(now_s):
            self.feed_all()
        self._slots.kill_the_silent(now_s)


def _failed(tasks: list[asyncio.Task[None]]) -> BaseException | None:
    """The exception that ended one of the tasks."""
    ended = (task for task in tasks if task.done() and not task.cancelled())
    return next((error for task in ended if (error := task.exception())), None)
