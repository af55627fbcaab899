"""The engine slots of a run: each worker started, listened to, watched, replaced and ended.

Invariants: each slot is served by one task; a worker that was started is joined; nothing here
waits without a limit, not even for a process that SIGKILL does not end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from vllm_caption.config import EngineConfig
from vllm_caption.engines.executors.base import Executor, WorkerHandle, WorkerSpec
from vllm_caption.engines.memory_fit import describe, shortage, smaller, with_advice
from vllm_caption.items import Item
from vllm_caption.messages import (
    Cancelled,
    Captioned,
    DriverMessage,
    EngineDown,
    Failed,
    ImageRead,
    Ready,
    Stop,
)
from vllm_caption.monitoring.stats import EngineState, RunStats
from vllm_caption.scheduling.dispatcher import Dispatcher, GiveUp

JOIN_TIMEOUT_S = 10.0

Answer = Captioned | Failed | ImageRead | Cancelled


class SlotOwner(Protocol):
    """What the slots need of the driver."""

    def ending(self) -> bool:
        """Whether no engine should be started any more."""

    def answered(self, engine: int, message: Answer) -> None:
        """A worker says something about an item."""

    def convicted(self, engine: int, poison: GiveUp[Item]) -> None:
        """An item was found to kill engines."""

    def feed(self, engine: int) -> None:
        """An engine may have room."""

    def feed_all(self) -> None:
        """Any engine may have room."""

    def wake(self) -> None:
        """The state of some engine has changed."""


class Slots:
    """All engine slots of one run."""

    def __init__(
        self,
        config: EngineConfig,
        dispatcher: Dispatcher[Item],
        stats: RunStats,
        tell: Callable[[str], None],
        owner: SlotOwner,
    ) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self._stats = stats
        self._tell = tell
        self._owner = owner
        self._workers: dict[int, WorkerHandle] = {}
        self._last_progress_s: dict[int, float] = {}
        self.last_error = ""

    def state(self, engine: int) -> EngineState:
        """Of one slot."""
        return self._stats.engines[engine].state

    def running(self) -> list[int]:
        """Slots that have a worker, up or starting."""
        return list(self._workers)

    def send(self, engine: int, message: DriverMessage) -> None:
        """Queue a message to a slot's worker."""
        self._workers[engine].send(message)

    def begins_work(self, engine: int) -> None:
        """An idle engine gets work: its clock starts now."""
        self._last_progress_s[engine] = asyncio.get_running_loop().time()

    async def serve(self, executor: Executor, engine: int) -> None:
        """Keep one slot's engine running until the end of the run, or of the slot."""
        while self._dispatcher.may_restart(engine) and not self._owner.ending():
            await self._rest(self._dispatcher.restart_delay_s(engine))
            self._set_state(engine, "waiting")
            if not await self._placed(executor, engine):
                continue
            self._set_state(engine, "starting")
            self.begins_work(engine)
            spec = executor.spec
            try:
                async with asyncio.timeout(self._config.start_timeout_s):
                    worker = self._workers[engine] = await executor.start(engine)
            except OSError as refusal:  # no process or memory left for it, or no answer in time
                reason = str(refusal) or f"no process after {self._config.start_timeout_s:.0f} s"
                self._lost(engine, "did not start", reason)
                continue
            what, error = await self._serve_worker(engine, worker)
            if not (what == "did not start" and self._fitted(engine, executor, spec, error)):
                self._lost(engine, what, error)
        self._set_state(engine, "stopped" if self._dispatcher.may_restart(engine) else "retired")

    async def _placed(self, executor: Executor, engine: int) -> bool:
        """Wait for room for an engine; False at the end of the run, or of the slot."""
        placing = asyncio.ensure_future(executor.place(engine))
        since_s = asyncio.get_running_loop().time()
        while not self._owner.ending():
            await asyncio.wait([placing], timeout=0.1)
            if placing.done():
                if (refusal := placing.exception()) is None:
                    return True
                self._lost(engine, "found no room", str(refusal))
                return False
            now_s = asyncio.get_running_loop().time()
            if self._workers:  # others work meanwhile
                since_s = now_s
            elif now_s - since_s > self._config.start_timeout_s:
                self._dispatcher.retire(engine)
                reason = f"no node had room for it for {now_s - since_s:.0f} s"
                self._lost(engine, "found no room", reason)
                break
        placing.cancel()
        return False

    async def _serve_worker(self, engine: int, worker: WorkerHandle) -> tuple[str, str]:
        """What came to an end, and why."""
        self._dispatcher.engine_started(engine)
        if self._owner.ending():  # while the process was being started
            worker.kill()
        error = await self._listen(engine, worker)
        what = "died" if self.state(engine) == "up" else "did not start"
        self._set_state(engine, "stopped")
        ended = await worker.join(JOIN_TIMEOUT_S)
        del self._workers[engine]
        self._stats.engines[engine].pid = None
        if not ended.gone:
            self._dispatcher.retire(engine)
        return what, error or f"its process ended ({ended.how})"

    def _fitted(
        self, engine: int, executor: Executor, tried: WorkerSpec | None, error: str
    ) -> bool:
        """Whether smaller memory settings are to be tried after this error."""
        assert tried is not None
        assert executor.spec is not None
        if not self._config.auto_fit or shortage(error) is None or self._owner.ending():
            return False
        if executor.spec is tried:  # nobody else has changed them meanwhile
            settings = smaller(tried.memory, error)
            if settings is None:
                return False
            executor.spec = replace(tried, memory=settings)
            change = describe(settings, tried.memory)
            self._tell(f"Engine {engine} lacks memory ({error}); --auto-fit tries {change}")
        return True

    async def _listen(self, engine: int, worker: WorkerHandle) -> str:
        """Take messages until the worker is gone; returns the error it named, if any."""
        while (message := await worker.receive()) is not None:
            self._last_progress_s[engine] = asyncio.get_running_loop().time()
            if isinstance(message, EngineDown):
                return message.error
            if isinstance(message, Ready):
                self._stats.engines[engine].pid = message.pid
                self._set_state(engine, "up")
            else:
                self._owner.answered(engine, message)
            self._owner.feed(engine)
        return ""

    def _lost(self, engine: int, what: str, error: str) -> None:
        """The engine died: suspects, verdicts, and whether it starts again."""
        self.last_error = error = with_advice(error)
        for poison in self._dispatcher.engine_lost(engine):
            self._owner.convicted(engine, poison)
        if not self._owner.ending():
            if self._dispatcher.may_restart(engine):
                self._stats.engines[engine].restarts += 1
                self._tell(f"Engine {engine} {what} and is started again: {error}")
            else:
                self._tell(f"Engine {engine} {what} too often and is taken out: {error}")
            self._owner.feed_all()
        self._owner.wake()

    def _set_state(self, engine: int, state: EngineState) -> None:
        self._stats.engines[engine].state = state
        self._owner.wake()

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while seconds and not self._owner.ending():
                    await asyncio.sleep(0.1)

    def kill_the_silent(self, now_s: float) -> None:
        """Kill workers that hold items, or start, and have said nothing for too long."""
        for engine, worker in self._workers.items():
            silent_s = now_s - self._last_progress_s[engine]
            starting = self.state(engine) == "starting"
            limit_s = self._config.start_timeout_s if starting else self._config.stall_timeout_s
            if silent_s > limit_s and (starting or self._dispatcher.busy(engine)):
                doing = "did not start" if starting else "made no progress"
                self._tell(f"Engine {engine} {doing} for {silent_s:.0f} s and is killed.")
                self._last_progress_s[engine] = now_s  # told once
                worker.kill()

    def kill(self) -> None:
        """End every worker now."""
        for worker in self._workers.values():
            worker.kill()

    async def stop(self, served: list[asyncio.Task[None]], *, at_once: bool) -> None:
        """End every worker, and the tasks that serve the slots."""
        for engine, worker in self._workers.items():
            if self.state(engine) == "up" and not at_once:
                worker.send(Stop())
            else:
                worker.kill()
        if not served:
            return
        await asyncio.wait(served, timeout=JOIN_TIMEOUT_S)
        self.kill()  # one that no longer listens must not hold the end of the run,
        await asyncio.wait(served, timeout=2 * JOIN_TIMEOUT_S)
        for task in served:  # nor one that does not even end
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
