"""The driver: one loop that takes events from one queue until nothing is left to do.

    thread that reads the input   Batch, InputEnded          ┐
    engine slots                  Changed, Answered, Lost    ├─ queue → Driver → dispatcher,
    opening of the engines        Opened                     │                   recorder, slots
    clock, signals                Tick, Interrupted          ┘

Only the loop calls the dispatcher, which decides about items, and the recorder, which writes; only
it starts and feeds the slots. It runs in one asyncio thread.

Invariants: whatever stops the run stops it at once; every wait has a limit; a caption is on
disk before the loop waits, and after at most MAX_UNWRITTEN others; failures may wait in the
recorder.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vllm_caption.config import EngineConfig
from vllm_caption.driver.engine_slot import (
    Answered,
    Broken,
    Changed,
    EngineSlot,
    Lost,
    SlotEvent,
    close_all,
)
from vllm_caption.driver.recorder import MAX_UNWRITTEN, Recorder
from vllm_caption.driver.resume import Batch, InputEnded, Pending
from vllm_caption.engines.executors.base import Executor
from vllm_caption.engines.memory_errors import is_transient, with_advice
from vllm_caption.errors import RunStopped
from vllm_caption.formatting import counted
from vllm_caption.items import Item
from vllm_caption.messages import Cancel, Cancelled, ImageRead, Lease
from vllm_caption.monitoring.figures import EngineState
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.scheduling.dispatcher import Dispatcher
from vllm_caption.scheduling.stand_still import StandStill
from vllm_caption.scheduling.start_errors import StartErrors

TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class Opened:
    """Engines can start, or the future holds the error."""

    opening: asyncio.Future[Executor]


@dataclass(frozen=True, slots=True)
class Tick:
    """Half a second has passed."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """`Driver.interrupt` was called."""


Event = SlotEvent | Batch | InputEnded | Opened | Tick | Interrupted


class Driver:
    """One run, from the first item read to the last worker joined."""

    def __init__(
        self,
        config: EngineConfig,
        recorder: Recorder,
        dispatcher: Dispatcher[Item],
        stats: RunStats,
        tell: Callable[[str], None],
        open_engines: Callable[[], Awaitable[Executor]],
        *,
        first_alone: bool = False,
        on_tick: Callable[[float], None] = lambda now_s: None,
    ) -> None:
        """``tell`` shows one line to the user. ``open_engines`` is awaited once there is work for
        an engine. ``first_alone``: start one engine at a time until one is up, so that the others
        find its caches. ``on_tick`` is called with the loop's time twice a second."""
        self._config = config
        self._recorder = recorder
        self._dispatcher = dispatcher
        self._stats = stats
        self._tell = tell
        self._open_engines = open_engines
        self._first_alone = first_alone
        self._on_tick = on_tick
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._slots = [
            EngineSlot(number, self._put, config.start_timeout_s)
            for number in range(len(stats.engines))
        ]
        self._held_back = list(self._slots)
        """Slots that have not been started yet."""
        self._hungry: dict[EngineSlot, None] = {}
        """Slots with an answer since they were last fed. Answers that come together make room for
        one message of several requests, sent before the loop writes captions or waits."""
        self._started: set[EngineSlot] = set()
        """Slots that have been started and not been lost since."""
        self._none_is_usable = False
        """Whether every slot is retired. Changes only when one is lost."""
        self._start_errors = StartErrors(len(self._slots))
        self._failed_starts: dict[EngineSlot, str] = {}
        """Slots whose start failed while no engine has ever been up, and why."""
        self._executor: Executor | None = None
        self._pending: Pending | None = None
        self._opening: asyncio.Future[Executor] | None = None
        self._stopped: RunStopped | None = None
        self._closing = False
        self._drain_ends_s: float | None = None
        self._stand_still = StandStill(TICK_S)
        self._last_error = ""
        self.interrupts = 0

    def state(self, engine: int) -> EngineState:
        """The state of a slot, or "retired" once the dispatcher has taken it out."""
        slot = self._slots[engine]
        if slot.state == "stopped" and not self._dispatcher.may_restart(engine):
            return "retired"
        return slot.state

    async def run(self, pending: Pending) -> None:
        """Handle events until nothing is left to do, or until the run is interrupted.

        Raises RunStopped, and whatever ``open_engines`` raises.
        """
        self._pending = pending
        ticking = asyncio.create_task(self._tick())
        pending.start(self._put)
        try:
            while not self._is_over():
                if self._events and self._recorder.num_unwritten < MAX_UNWRITTEN:
                    self._do(self._react, self._events.popleft())
                elif self._hungry:
                    self._do(self._feed, self._hungry.popitem()[0])
                elif self._recorder.num_unwritten:
                    self._do(self._recorder.write)
                else:
                    self._arrived.clear()
                    await self._arrived.wait()
        finally:
            self._closing = True
            self._do(self._recorder.write)
            pending.leave()
            for task in (ticking, self._opening):
                if task is not None:
                    task.cancel()
            await close_all(self._slots, at_once=self._must_leave())
        while self._events:  # the workers' last messages
            self._do(self._react, self._events.popleft())
        self._do(self._recorder.write)
        self._stats.scanning = False
        if self._stopped is not None:
            raise self._stopped
        self._recorder.finish()
        if not self._dispatcher.finished and not self.interrupts:
            raise RunStopped(f"no engine is left; the last error was: {self._last_error}")

    def interrupt(self) -> None:
        """Ctrl+C: the first time, hand out no more items; the second time, leave now."""
        self.interrupts += 1
        if self._pending is not None:
            self._pending.leave()
        self._dispatcher.close()
        if self.interrupts > 1:
            for slot in self._slots:
                slot.kill()
        else:
            left = self._dispatcher.num_in_flight
            doing = f"finishing {counted(left, 'item')}" if left else "no item is"
            self._tell(f"Interrupted: {doing} in flight; press Ctrl+C again to stop now.")
        self._put(Interrupted())

    def drain(self) -> None:
        """A batch system's warning, which may come more than once: acts as the first Ctrl+C."""
        if not self.interrupts:
            self.interrupt()

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._arrived.set()

    # --- the end -------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        if self._must_leave():
            return True
        if self._recorder.num_unwritten:  # if one cannot be written, its twins are left to do
            return False
        if self._dispatcher.finished:
            return True
        return self._none_is_usable and all(map(self._is_spent, self._slots))

    def _must_leave(self) -> bool:
        return self._stopped is not None or self.interrupts > 1

    def _is_spent(self, slot: EngineSlot) -> bool:
        """Whether a retired slot has nothing left to report."""
        return slot.is_idle or not self._dispatcher.busy(slot.number)

    # --- outside the loop ----------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            self._put(Tick())
            await asyncio.sleep(TICK_S)

    def _opened(self, opening: asyncio.Future[Executor]) -> None:
        if not opening.cancelled():
            opening.exception()  # marks it as retrieved; the event carries it, if it still matters
            self._put(Opened(opening))

    # --- events --------------------------------------------------------------------------------

    def _do(self, step: Callable[..., object], *arguments: object) -> None:
        try:
            step(*arguments)
        except RunStopped as stopped:
            self._stopped = self._stopped or stopped

    def _react(self, event: Event) -> None:
        match event:
            case Answered():
                self._take_answer(event)
            case Changed():
                self._note_change(event)
            case Lost():
                self._replace(event)
            case Batch():
                self._take_in(event)
            case InputEnded():
                self._stats.scanning = False
                self._dispatcher.end_input()
                if event.failure is not None:
                    raise event.failure
            case Opened() if not (self.interrupts or self._closing):
                self._executor = event.opening.result()
                self._start_slots(self._next_to_start())
            case Tick() if not self._closing:
                self._watch(asyncio.get_running_loop().time())
            case Broken():
                raise event.error

    def _take_in(self, batch: Batch) -> None:
        self._stats.total = batch.num_found
        self._recorder.take_in(batch)
        if batch.pending and self._opening is None and not (self.interrupts or self._closing):
            self._opening = asyncio.ensure_future(self._open_engines())
            self._opening.add_done_callback(self._opened)
        self._feed_all()

    def _take_answer(self, event: Answered) -> None:
        slot, message = event.slot, event.message
        if isinstance(message, ImageRead):
            if self._recorder.image_read(slot.number, message):
                slot.send(Cancel(message.lease))
        elif isinstance(message, Cancelled):
            self._dispatcher.cancelled(slot.number, message.lease)
        elif error := self._recorder.answered(slot.number, message):
            same = f"gives the same error again and again while others caption ({error})"
            self._tell(f"Engine {slot.number} {same} and is killed.")
            slot.kill()
        self._hungry[slot] = None

    def _note_change(self, event: Changed) -> None:
        slot, figures = event.slot, self._stats.engines[event.slot.number]
        figures.state, figures.pid = self.state(slot.number), event.pid
        if slot.is_up:
            self._start_errors.came_up()
            self._retry_failed_starts()
            self._start_slots(self._held_back)
            self._feed(slot)

    def _replace(self, event: Lost) -> None:
        """A slot has lost its worker: find suspects and verdicts, and start it again or not."""
        slot, engine = event.slot, event.slot.number
        self._started.discard(slot)
        if not self._closing:
            if not event.gone:
                self._dispatcher.retire(engine)
            self._last_error = error = with_advice(event.error)
            for poison in self._dispatcher.engine_lost(engine):
                self._recorder.settle(poison, engine)
            failed_start = event.what == "did not start" and event.explained
            if failed_start and not is_transient(error) and self._start_errors.add(engine, error):
                raise RunStopped(f"no engine can start: {error}")
            if failed_start and self._start_errors.none_was_up:
                self._failed_starts[slot] = error  # until another engine is up, or fails too
            else:
                self._start_again(slot, event.what, error)
            self._start_slots(self._next_to_start())
            if not self._started:
                self._retry_failed_starts()
            self._feed_all()
        self._none_is_usable = self._dispatcher.num_usable == 0
        self._stats.engines[engine].state = self.state(engine)
        self._stats.engines[engine].pid = None

    def _retry_failed_starts(self) -> None:
        failed, self._failed_starts = self._failed_starts, {}
        for slot, error in failed.items():
            self._start_again(slot, "did not start", error)

    def _start_again(self, slot: EngineSlot, what: str, error: str) -> None:
        if self._is_ending():
            return
        if self._dispatcher.may_restart(slot.number):
            self._stats.engines[slot.number].restarts += 1
            self._tell(f"Engine {slot.number} {what} and is started again: {error}")
            self._start_slots([slot])
        else:
            self._tell(f"Engine {slot.number} {what} and is taken out: {error}")

    def _is_ending(self) -> bool:
        """Whether no engine should be started any more."""
        return self._must_leave() or self._dispatcher.finished or self.interrupts > 0

    # --- slots ---------------------------------------------------------------------------------

    def _next_to_start(self) -> list[EngineSlot]:
        """The slots that should start first: all, or only one until one is up."""
        alone = self._first_alone and self._start_errors.none_was_up
        return self._held_back[: 1 if alone else None]

    def _start_slots(self, slots: list[EngineSlot]) -> None:
        if self._executor is None or self._is_ending():
            return
        self._held_back = [slot for slot in self._held_back if slot not in slots]
        for slot in slots:
            self._dispatcher.engine_started(slot.number)
            self._started.add(slot)
            slot.start(self._executor, self._dispatcher.restart_delay_s(slot.number))

    def _feed_all(self) -> None:
        for slot in self._slots:
            self._feed(slot)

    def _feed(self, slot: EngineSlot) -> None:
        """Send the engine as many items as it has room for."""
        if slot.state != "up" or self._must_leave():
            return
        if not self._dispatcher.busy(slot.number):  # its clock starts when it gets work
            slot.touch()
        if requests := self._recorder.requests(slot.number, self._config.window):
            slot.send(Lease(requests))

    def _watch(self, now_s: float) -> None:
        """Twice a second: items to retry, slots that hang, the end of a drain."""
        self._forgive(self._stand_still.since_last_tick_s(now_s), now_s)
        self._dispatcher.advance(now_s)
        self._feed_all()
        for slot in self._slots:
            if slot.state == "waiting" and not slot.is_idle:
                self._limit_waiting(slot, now_s)
            elif slot.has_worker:
                self._limit_silence(slot, now_s)
        if self.interrupts == 1:
            if self._drain_ends_s is None:
                self._drain_ends_s = now_s + self._config.drain_timeout_s
            elif now_s > self._drain_ends_s:
                self.interrupt()
        self._on_tick(now_s)

    def _forgive(self, pause_s: float, now_s: float) -> None:
        """Time during which this process stood still does not count towards any limit."""
        for slot in self._slots:
            slot.since_s = min(slot.since_s + pause_s, now_s)
        if self._drain_ends_s is not None:
            self._drain_ends_s += pause_s

    def _limit_waiting(self, slot: EngineSlot, now_s: float) -> None:
        """A slot may wait for room as long as others are working."""
        waited_s = now_s - slot.since_s
        if any(other.has_worker for other in self._slots):
            slot.touch()
        elif waited_s > self._config.start_timeout_s:
            self._dispatcher.retire(slot.number)
            slot.give_up()
            reason = f"no node had room for it for {waited_s:.0f} s"
            self._replace(Lost(slot, "found no room", reason))

    def _limit_silence(self, slot: EngineSlot, now_s: float) -> None:
        """Kill a worker that is starting, or holds items, and has been silent for too long."""
        silent_s, starting = now_s - slot.since_s, slot.state == "starting"
        limit_s = self._config.start_timeout_s if starting else self._config.stall_timeout_s
        if silent_s > limit_s and (starting or self._dispatcher.busy(slot.number)):
            doing = "did not start" if starting else "made no progress"
            self._tell(f"Engine {slot.number} {doing} for {silent_s:.0f} s and is killed.")
            slot.touch()  # reported once
            slot.kill()
