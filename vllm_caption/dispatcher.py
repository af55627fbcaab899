"""Decides who gets which item next, what is tried again and what is given up.

Pure state: no process, no clock, no disk. The driver asks `take` whenever an engine has room and
reports what came back; each report is answered with what to do about the item.

Invariants:
- every added item ends exactly once, as `Accept` or `GiveUp`, unless the run is stopped;
- an item is with at most one engine at a time, under a lease number that is never reused;
- a death of an engine charges no item a retry: items in flight become suspects and run alone, and
  only one that kills twice while alone is `poison`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vllm_caption.checks import Flag, rank, verdict
from vllm_caption.decisions import Accept, Decision, GiveUp, Leased, TryAgain
from vllm_caption.messages import Captioned, Failed

T = TypeVar("T")

SOLO_DEATHS_TO_CONVICT = 2


@dataclass(slots=True, eq=False)
class Task(Generic[T]):
    """An item and what has happened to it so far."""

    item: T
    attempts: int = 0
    rejected: int = 0
    best: Captioned | None = None
    best_flags: tuple[Flag, ...] = ()
    solo_deaths: int = 0
    killed: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Engine(Generic[T]):
    """One engine slot as the dispatcher sees it."""

    in_flight: dict[int, Task[T]] = field(default_factory=dict)
    leaving: set[int] = field(default_factory=set)
    solo: bool = False
    emptying: bool = False
    finished_since_start: int = 0
    ever_finished: bool = False
    deaths_in_a_row: int = 0
    retired: bool = False


class Dispatcher(Generic[T]):
    """The queue of one run. ``T`` is the item; it is never looked into."""

    def __init__(self, num_engines: int, *, max_retries: int, max_engine_restarts: int) -> None:
        self._max_retries = max_retries
        self._max_engine_restarts = max_engine_restarts
        self._engines: list[_Engine[T]] = [_Engine() for _ in range(num_engines)]
        self._fresh: deque[Task[T]] = deque()
        self._again: deque[Task[T]] = deque()
        self._suspects: deque[Task[T]] = deque()
        self._next_lease = 0
        self._input_ended = False
        self._closed = False

    # --- what the driver puts in -------------------------------------------------------------

    def add(self, items: Iterable[T]) -> None:
        """Queue items for their first attempt, in order."""
        self._fresh.extend(Task(item) for item in items)

    def end_input(self) -> None:
        """No more items will be added."""
        self._input_ended = True

    def close(self) -> None:
        """Hand out nothing more; what is in flight may still finish (Ctrl+C once)."""
        self._closed = True

    # --- what the driver asks ----------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Items that no engine holds."""
        return len(self._fresh) + len(self._again) + len(self._suspects)

    @property
    def num_in_flight(self) -> int:
        """Items that some engine holds."""
        return sum(len(engine.in_flight) for engine in self._engines)

    @property
    def finished(self) -> bool:
        """Nothing is left to hand out or to wait for."""
        if self.num_in_flight:
            return False
        return self._closed or (self._input_ended and not self.num_waiting)

    @property
    def num_usable(self) -> int:
        """Engines that are not retired."""
        return sum(not engine.retired for engine in self._engines)

    def in_flight(self, engine: int) -> list[T]:
        """Items that one engine holds."""
        return [task.item for task in self._engines[engine].in_flight.values()]

    def take(self, engine: int, window: int) -> list[Leased[T]]:
        """Hand out what this engine should start now so that it holds at most ``window`` items."""
        slot = self._engines[engine]
        if self._closed or slot.retired or slot.solo:
            return []
        if self._should_try_suspect(engine):
            if slot.in_flight or slot.leaving:
                slot.emptying = True
                return []
            slot.emptying, slot.solo = False, True
            return [self._lease(engine, self._pop_suspect(engine))]
        slot.emptying = False
        room = window - len(slot.in_flight) - len(slot.leaving)
        return [self._lease(engine, task) for task in self._pop_many(room)]

    # --- what the driver reports -------------------------------------------------------------

    def captioned(
        self, engine: int, result: Captioned, flags: tuple[Flag, ...]
    ) -> Decision[T] | None:
        """An engine answered. None: the lease is not known (late or doubled), ignore it."""
        task = self._finish(engine, result.lease)
        if task is None:
            return None
        task.attempts += 1
        if verdict(flags) == "accept":
            return Accept(task.item, task.attempts, result, flags)
        task.rejected += 1
        if task.best is None or rank(flags) < rank(task.best_flags):
            task.best, task.best_flags = result, flags
        if task.attempts <= self._max_retries:
            return self._retry(task)
        reason = f"every attempt broke a rule, the best one: {', '.join(task.best_flags)}"
        return self._settle(
            task, GiveUp(task.item, task.attempts, "caption_rejected", reason, result)
        )

    def failed(self, engine: int, failure: Failed) -> Decision[T] | None:
        """An attempt failed while its engine is well. None: the lease is not known."""
        task = self._finish(engine, failure.lease)
        if task is None:
            return None
        task.attempts += 1
        if failure.retryable and task.attempts <= self._max_retries:
            return self._retry(task)
        give_up = GiveUp(task.item, task.attempts, failure.kind, failure.reason, failure)
        return self._settle(task, give_up)

    def held(self, engine: int, lease: int) -> T | None:
        """The item behind a lease; None when the lease is not known."""
        task = self._engines[engine].in_flight.get(lease)
        return None if task is None else task.item

    def withdraw(self, engine: int, lease: int) -> None:
        """Take an item out: it ends without this engine, which may still be at it until
        `dropped`, so that nobody else is blamed for what it does there."""
        slot = self._engines[engine]
        del slot.in_flight[lease]
        slot.leaving.add(lease)
        slot.solo = False

    def dropped(self, engine: int, lease: int) -> None:
        """The engine has let go of an item that was withdrawn."""
        self._engines[engine].leaving.discard(lease)

    def engine_started(self, engine: int) -> None:
        """A new process serves this slot."""
        self._engines[engine].finished_since_start = 0

    def engine_lost(self, engine: int) -> list[GiveUp[T]]:
        """The engine died: its items become suspects; one that killed twice alone is poison.

        Whether the slot may be started again is `may_restart`.
        """
        slot = self._engines[engine]
        tasks, alone = list(slot.in_flight.values()), slot.solo
        slot.in_flight.clear()
        slot.leaving.clear()
        slot.solo = slot.emptying = False
        slot.deaths_in_a_row += 1
        if slot.deaths_in_a_row > self._max_engine_restarts:
            slot.retired = True
        if not alone:
            self._suspects.extend(tasks)
            return []
        (task,) = tasks
        task.solo_deaths += 1
        task.killed.add(engine)
        if task.solo_deaths < SOLO_DEATHS_TO_CONVICT:
            self._suspects.appendleft(task)
            return []
        if slot.ever_finished:  # the item is to blame, not the engine
            slot.deaths_in_a_row, slot.retired = 0, False
        reason = f"its engine died {task.solo_deaths} times while it ran alone"
        return [GiveUp(task.item, task.attempts, "poison", reason)]

    def may_restart(self, engine: int) -> bool:
        """False once the slot has died too often without finishing anything."""
        return not self._engines[engine].retired

    # --- inside --------------------------------------------------------------------------------

    def _lease(self, engine: int, task: Task[T]) -> Leased[T]:
        self._next_lease += 1
        self._engines[engine].in_flight[self._next_lease] = task
        return Leased(self._next_lease, task.item, task.rejected)

    def _pop_many(self, count: int) -> list[Task[T]]:
        taken: list[Task[T]] = []
        while len(taken) < count and (self._again or self._fresh):
            taken.append((self._again or self._fresh).popleft())
        return taken

    def _retry(self, task: Task[T]) -> TryAgain[T]:
        self._again.append(task)
        return TryAgain(task.item)

    def _settle(self, task: Task[T], give_up: GiveUp[T]) -> Decision[T]:
        """Out of tries: an earlier caption that only breaks a style rule beats none."""
        if task.best is not None and verdict(task.best_flags) == "retry_or_flag":
            return Accept(task.item, task.attempts, task.best, task.best_flags)
        return give_up

    def _finish(self, engine: int, lease: int) -> Task[T] | None:
        slot = self._engines[engine]
        slot.leaving.discard(lease)  # it answered before it could be dropped
        task = slot.in_flight.pop(lease, None)
        if task is not None:
            slot.solo = False
            slot.finished_since_start += 1
            slot.ever_finished = True
            slot.deaths_in_a_row = 0
        return task

    def _should_try_suspect(self, engine: int) -> bool:
        """A trial must mean something: on an engine that has just worked, not on one that the
        suspect has killed before; where neither can be had any more, on any engine."""
        if not self._trial_candidates(engine):
            return False
        slot = self._engines[engine]
        others = sum(e.emptying for e in self._engines if e is not slot)
        if others >= len(self._suspects):
            return False
        return slot.finished_since_start > 0 or not (self._fresh or self._again)

    def _trial_candidates(self, engine: int) -> list[Task[T]]:
        if self.num_usable < 2:
            return list(self._suspects)
        return [task for task in self._suspects if engine not in task.killed]

    def _pop_suspect(self, engine: int) -> Task[T]:
        task = self._trial_candidates(engine)[0]
        self._suspects.remove(task)
        return task
