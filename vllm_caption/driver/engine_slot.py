"""One engine slot: its worker placed, started, listened to, and ended.

A slot decides nothing. Whatever happens to it goes into the driver's queue as an event, in order;
whether and when it starts again is the driver's decision.

Invariants:
- a slot has at most one worker, and is the only place that knows whether it is up;
- each `start` ends with exactly one `Lost`, unless the slot was closed or given up meanwhile;
- a worker that was started is joined, and nothing waits without a limit, not even for a process
  that SIGKILL does not end. Only placing an engine may take forever: the driver limits it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vllm_caption.engines.executors.base import Executor, WorkerHandle
from vllm_caption.messages import (
    Beat,
    Cancelled,
    Captioned,
    DriverMessage,
    EngineDown,
    Failed,
    ImageRead,
    Ready,
    Stop,
)

JOIN_TIMEOUT_S = 10.0

SlotState = Literal["waiting", "starting", "up", "stopped"]
"""Waiting for room, starting its worker, accepting requests, or none of these."""
Answer = Captioned | Failed | ImageRead | Cancelled


@dataclass(frozen=True, slots=True)
class Changed:
    """The state of the slot changed. ``pid``: of its worker, once that is up."""

    slot: EngineSlot
    pid: int | None = None


class Answered(NamedTuple):
    """A message from the worker about an item."""

    slot: EngineSlot
    message: Answer


@dataclass(frozen=True, slots=True)
class Lost:
    """The slot has lost its worker. ``what``: verb phrase for a message; ``explained``: the engine
    reported the error; ``gone``: False if not even SIGKILL ends its process, so that its GPU is not
    free."""

    slot: EngineSlot
    what: Literal["found no room", "did not start", "died"]
    error: str
    explained: bool = False
    gone: bool = True


@dataclass(frozen=True, slots=True)
class Broken:
    """A bug ended the slot's task."""

    error: BaseException


SlotEvent = Changed | Answered | Lost | Broken


class EngineSlot:
    """Slot ``number`` of a run; ``put`` receives its events."""

    def __init__(
        self, number: int, put: Callable[[SlotEvent], None], start_timeout_s: float
    ) -> None:
        self.number = number
        self.state: SlotState = "waiting"
        self.since_s = 0.0
        """When the slot entered its state, or its worker last sent something or got work after a
        pause; by the loop's clock."""
        self._put = put
        self._start_timeout_s = start_timeout_s
        self._task: asyncio.Task[Lost] | None = None
        self._worker: WorkerHandle | None = None
        self._closing = False

    @property
    def is_up(self) -> bool:
        """Whether its engine accepts requests."""
        return self.state == "up"

    @property
    def has_worker(self) -> bool:
        """Whether it has a worker process, up or starting."""
        return self._worker is not None

    @property
    def is_idle(self) -> bool:
        """Whether it has no worker, and none is coming."""
        return self._task is None or self._task.done()

    def start(self, executor: Executor, delay_s: float = 0.0) -> None:
        """Find room for a worker and start it, after a pause."""
        assert self.is_idle
        self.touch()
        self._task = asyncio.create_task(self._live(executor, delay_s))
        self._task.add_done_callback(self._ended)

    def send(self, message: DriverMessage) -> None:
        """Queue a message to the worker."""
        assert self._worker is not None
        self._worker.send(message)

    def touch(self) -> None:
        """Start the clock of `since_s` again."""
        self.since_s = asyncio.get_running_loop().time()

    def kill(self) -> None:
        """End the worker now; `Lost` follows."""
        if self._worker is not None:
            self._worker.kill()

    def give_up(self) -> None:
        """Stop waiting for room; no event follows."""
        assert self._task is not None
        self._task.cancel()

    def close(self, *, at_once: bool) -> asyncio.Task[Lost] | None:
        """Ask the worker to exit, or kill it; returns the task that ends with it, if there is one.

        A worker that is being started is killed as soon as it exists.
        """
        self._closing = True
        if self._task is None or self._task.done():
            return None
        if self._worker is None and self.state != "starting":
            self._task.cancel()
        elif self.is_up and not at_once:
            self.send(Stop())
        else:
            self.kill()
        return self._task

    # --- its task ------------------------------------------------------------------------------

    async def _live(self, executor: Executor, delay_s: float) -> Lost:
        await asyncio.sleep(delay_s)
        self._enter("waiting")
        try:
            await executor.place(self.number)
        except OSError as refusal:
            return Lost(self, "found no room", str(refusal))
        self._enter("starting")
        try:
            async with asyncio.timeout(self._start_timeout_s):
                self._worker = await executor.start(self.number)
        except OSError as refusal:  # no process or memory left for it, or no answer in time
            reason = str(refusal) or f"no process after {self._start_timeout_s:.0f} s"
            return Lost(self, "did not start", reason)
        if self._closing:
            self.kill()
        return await self._serve(self._worker)

    async def _serve(self, worker: WorkerHandle) -> Lost:
        error = await self._listen(worker)
        what: Literal["died", "did not start"] = "died" if self.is_up else "did not start"
        self._enter("stopped")
        ended = await worker.join(JOIN_TIMEOUT_S)
        self._worker = None
        how = f"ended ({ended.how})" if ended.gone else f"does not end, {ended.how}"
        reason = error or f"its process {how}"
        return Lost(self, what, reason, explained=bool(error), gone=ended.gone)

    async def _listen(self, worker: WorkerHandle) -> str:
        """Pass on messages until the worker is gone; returns the error that it reported, if any."""
        while (message := await worker.receive()) is not None:
            self.touch()
            if isinstance(message, EngineDown):
                return message.error
            if isinstance(message, Ready):
                self._enter("up", message.pid)
            elif not isinstance(message, Beat):
                self._put(Answered(self, message))
        return ""

    def _enter(self, state: SlotState, pid: int | None = None) -> None:
        self.state = state
        self.touch()
        self._put(Changed(self, pid))

    def _ended(self, task: asyncio.Task[Lost]) -> None:
        self.state, self._worker = "stopped", None
        if task.cancelled():
            return
        error = task.exception()
        self._put(task.result() if error is None else Broken(error))


async def close_all(slots: Sequence[EngineSlot], *, at_once: bool) -> None:
    """End every worker, and the tasks of the slots; takes 30 s at most."""
    tasks = [task for slot in slots if (task := slot.close(at_once=at_once))]
    if not tasks:
        return
    await asyncio.wait(tasks, timeout=JOIN_TIMEOUT_S)
    for slot in slots:  # one that stopped listening must not delay the end of the run,
        slot.kill()
    await asyncio.wait(tasks, timeout=2 * JOIN_TIMEOUT_S)
    for task in tasks:  # nor one that cannot be killed
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
