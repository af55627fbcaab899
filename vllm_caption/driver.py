"""The driver's loop, in one asyncio thread: items in from the scan, engines started and ended,
messages carried between the engines and the clerk.

Nothing is decided here about items (the dispatcher does) and nothing is written (the clerk does).
Invariants: each engine slot is served by one task; a worker that was started is joined.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

from vllm_caption.clerk import Clerk
from vllm_caption.config import EngineConfig
from vllm_caption.dispatcher import Dispatcher
from vllm_caption.errors import RunStopped
from vllm_caption.executors.base import Executor, WorkerHandle
from vllm_caption.manifest import Item
from vllm_caption.messages import Drop, Dropped, EngineDown, Lease, Ready, Seen, Stop, WorkerMessage
from vllm_caption.scan import Batch, Scan
from vllm_caption.stats import RunStats

T = TypeVar("T")

JOIN_TIMEOUT_S = 10.0


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
        self._workers: dict[int, WorkerHandle] = {}
        self._last_progress_s: dict[int, float] = {}
        self._changed = asyncio.Event()
        self._work_found = asyncio.Event()
        self._stopped: RunStopped | None = None
        self._last_error = ""
        self._scan_left = False
        self.interrupts = 0

    # --- the run -------------------------------------------------------------------------------

    async def scan(self, scan: Scan) -> None:
        """Read the whole input in a thread, queueing what must be done. Returns at its end."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                for batch in scan.batches():
                    if self._scan_left:
                        return
                    loop.call_soon_threadsafe(self._scanned, batch, scan)
            except OSError as error:
                failure = RunStopped(f"the input can no longer be read: {error}")
                loop.call_soon_threadsafe(self.stop, failure)
            finally:
                loop.call_soon_threadsafe(ended.set_result, None)

        threading.Thread(target=read, name="scan", daemon=True).start()
        await ended
        self._stats.scanning = False
        self._dispatcher.end_input()
        self._wake()

    def leave_scan(self) -> None:
        """Let the scanning thread end early; nobody waits for it any more."""
        self._scan_left = True

    async def wait_for_work(self) -> bool:
        """Wait until an engine is needed (True) or there is no work, or no run, left (False)."""
        await self._work_found.wait()
        if self._stopped is not None:
            raise self._stopped
        return self._dispatcher.num_waiting > 0 and not self.interrupts

    async def unless_interrupted(self, work: Awaitable[T]) -> T | None:
        """The result of ``work``, or None as soon as the run is interrupted."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._changed.set())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # no news if left
        while not (task.done() or self.interrupts):
            self._changed.clear()
            await self._changed.wait()
        if not self.interrupts:
            return task.result()
        task.cancel()
        return None

    async def serve(self, executor: Executor, *, first_alone: bool) -> None:
        """Run every engine until nothing is left to do. Raises RunStopped.

        ``first_alone``: start the others once engine 0 is up, with what it left in the caches.
        """
        served: list[asyncio.Task[None]] = []
        try:
            for engine in range(len(self._stats.engines)):
                served.append(asyncio.create_task(self._serve_slot(executor, engine)))
                served[-1].add_done_callback(lambda _: self._changed.set())
                if first_alone and engine == 0:
                    await self._until(lambda: self._stats.engines[0].state in ("up", "retired"))
            await self._until(
                lambda: (
                    not self._dispatcher.num_usable
                    or any(task.done() and task.exception() for task in served)
                )
            )
        finally:
            await self._stop_workers(served)
        if self._stopped is not None:
            raise self._stopped
        if not self._dispatcher.finished and not self.interrupts:
            raise RunStopped(f"no engine is left; the last error was: {self._last_error}")

    def interrupt(self) -> None:
        """Ctrl+C: the first time hand out nothing more, the second time leave now."""
        self.interrupts += 1
        self.leave_scan()
        self._dispatcher.close()
        if self.interrupts > 1:
            self._kill_workers()
        else:
            left = self._dispatcher.num_in_flight
            self._tell(f"Interrupted: finishing {left} items in flight; once more to stop now.")
        self._wake()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, for the end of the work, or for the end of the run."""
        while not (condition() or self._dispatcher.finished or self._must_leave()):
            self._changed.clear()
            await self._changed.wait()

    def _must_leave(self) -> bool:
        return self._stopped is not None or self.interrupts > 1

    def _ending(self) -> bool:
        return self._must_leave() or self._dispatcher.finished or self.interrupts > 0

    def stop(self, stopped: RunStopped) -> None:
        """The run cannot go on: leave as soon as the workers are ended."""
        self._stopped = self._stopped or stopped
        self._wake()

    def _wake(self) -> None:
        self._work_found.set()
        self._changed.set()

    # --- items ---------------------------------------------------------------------------------

    def _scanned(self, batch: Batch, scan: Scan) -> None:
        self._stats.total = scan.reader.counts.items + scan.reader.counts.bad_entries
        try:
            self._clerk.take_in(batch)
        except RunStopped as stopped:
            self.stop(stopped)
        if batch.pending:
            self._work_found.set()
            self._feed_all()

    def _answered(self, engine: int, message: WorkerMessage) -> None:
        if isinstance(message, Ready | EngineDown):
            return
        try:
            if isinstance(message, Dropped):
                self._dispatcher.dropped(engine, message.lease)
            elif not isinstance(message, Seen):
                self._clerk.answered(engine, message)
            elif self._clerk.seen(engine, message):
                self._workers[engine].send(Drop(message.lease))
        except RunStopped as stopped:
            self.stop(stopped)
        if self._dispatcher.finished:
            self._changed.set()

    def _feed_all(self) -> None:
        for engine in self._workers:
            self._feed(engine)

    def _feed(self, engine: int) -> None:
        if not self._is_up(engine) or self._must_leave():
            return
        if not self._dispatcher.in_flight(engine):  # an idle engine's clock starts with its work
            self._last_progress_s[engine] = asyncio.get_running_loop().time()
        try:
            if requests := self._clerk.requests(engine, self._config.window):
                self._workers[engine].send(Lease(requests))
        except RunStopped as stopped:
            self.stop(stopped)

    # --- engines -------------------------------------------------------------------------------

    async def _serve_slot(self, executor: Executor, engine: int) -> None:
        stats = self._stats.engines[engine]
        while self._dispatcher.may_restart(engine) and not self._ending():
            stats.state = "starting"
            self._last_progress_s[engine] = asyncio.get_running_loop().time()
            try:
                worker = self._workers[engine] = await executor.start(engine)
            except OSError as refusal:  # the machine has no process or memory left for it
                self._lost(engine, "did not start", str(refusal))
                continue
            self._dispatcher.engine_started(engine)
            if self._ending():  # while the process was being started
                worker.kill()
            error = await self._listen(engine, worker)
            what = "died" if self._is_up(engine) else "did not start"
            stats.state = "stopped"
            how = await worker.join(JOIN_TIMEOUT_S)
            del self._workers[engine]
            if not self._ending():
                self._lost(engine, what, error or f"its process ended ({how})")
        if not self._dispatcher.may_restart(engine):
            stats.state = "retired"
        self._changed.set()

    def _is_up(self, engine: int) -> bool:
        return self._stats.engines[engine].state == "up"

    async def _listen(self, engine: int, worker: WorkerHandle) -> str:
        """Take messages until the worker is gone; returns the error it named, if any."""
        while (message := await worker.receive()) is not None:
            self._last_progress_s[engine] = asyncio.get_running_loop().time()
            if isinstance(message, EngineDown):
                return message.error
            if isinstance(message, Ready):
                self._stats.engines[engine].state = "up"
                self._stats.engines[engine].pid = message.pid
                self._changed.set()
            self._answered(engine, message)
            self._feed(engine)
        return ""

    def _lost(self, engine: int, what: str, error: str) -> None:
        """The engine died: suspects, verdicts, and whether it starts again."""
        self._last_error = error
        for poison in self._dispatcher.engine_lost(engine):
            try:
                self._clerk.settle(poison, engine)
            except RunStopped as stopped:
                self.stop(stopped)
        if self._dispatcher.may_restart(engine):
            self._stats.engines[engine].restarts += 1
            self._tell(f"Engine {engine} {what} and is started again: {error}")
        else:
            self._tell(f"Engine {engine} {what} too often and is taken out: {error}")
        self._feed_all()
        self._changed.set()

    def watch_for_stalls(self, now_s: float) -> None:
        """Kill workers that hold items and have said nothing for too long; call now and then."""
        for engine, worker in self._workers.items():
            silent_s = now_s - self._last_progress_s[engine]
            starting = self._stats.engines[engine].state == "starting"
            limit_s = self._config.start_timeout_s if starting else self._config.stall_timeout_s
            if silent_s > limit_s and (starting or self._dispatcher.in_flight(engine)):
                doing = "did not start" if starting else "made no progress"
                self._tell(f"Engine {engine} {doing} for {silent_s:.0f} s and is killed.")
                self._last_progress_s[engine] = now_s  # told once
                worker.kill()

    async def _stop_workers(self, served: list[asyncio.Task[None]]) -> None:
        for engine, worker in self._workers.items():
            if self._is_up(engine) and not self._must_leave():
                worker.send(Stop())
            else:
                worker.kill()
        if served:  # one that does not listen any more must not hold the end of the run
            await asyncio.wait(served, timeout=JOIN_TIMEOUT_S)
            self._kill_workers()
        await asyncio.gather(*served)

    def _kill_workers(self) -> None:
        for worker in self._workers.values():
            worker.kill()
