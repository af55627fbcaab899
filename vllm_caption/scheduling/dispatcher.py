"""Decides which engine gets which item next, what is retried and what is given up.

Pure state: no process, no disk, and no clock but the time passed to `advance`. The driver calls
`take` whenever an engine has room, and reports every result; the return value says what to do with
the item.

Invariants:
- every added item ends exactly once, as `Accept` or `GiveUp`, unless the run is stopped;
- at most one engine holds an item at a time, under a lease number that is never reused;
- the death of an engine costs no item a retry: the items in flight become suspects and run alone,
  and only an item that kills twice while alone is `poison`;
- only a caption proves that an engine works: an engine that dies on everything is retired, even if
  items fail for other reasons in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Generic, NamedTuple, TypeVar

from vllm_caption.captions.rules import rank, verdict
from vllm_caption.errors import CaptionFlag, ItemKind
from vllm_caption.messages import Captioned, Failed

T = TypeVar("T")

SOLO_DEATHS_TO_CONVICT = 2
CONVICTIONS_IN_A_ROW = 8
"""After this many convictions without a caption between them, the engines are to blame."""
MAX_PASSED_OVER = 64
"""How many items an engine may leave to others while it looks for work."""
DEATHS_TO_NARROW = 2
"""After this many deaths in a row an engine gets one item at a time, to show which one kills it."""


@dataclass(slots=True, eq=False)
class Task(Generic[T]):
    """An item and its history. ``refused_by``: the engine of its last attempt; ``killed``: engines
    that died while they held nothing else."""

    item: T
    attempts: int = 0
    refused_by: int | None = None
    rejected: int = 0
    best: Captioned | None = None
    best_flags: tuple[CaptionFlag, ...] = ()
    best_problem: str = ""
    solo_deaths: int = 0
    killed: frozenset[int] = frozenset()


class Leased(NamedTuple, Generic[T]):
    """An item handed to an engine. ``rejected``: how many of its captions have broken a rule; if
    any, the sampling must change, since a greedy model would repeat itself."""

    lease: int
    item: T
    rejected: int


class Accept(NamedTuple, Generic[T]):
    """The item's caption is final."""

    item: T
    attempts: int
    result: Captioned
    flags: tuple[CaptionFlag, ...]


@dataclass(frozen=True, slots=True)
class GiveUp(Generic[T]):
    """The item failed for this run."""

    item: T
    attempts: int
    kind: ItemKind
    reason: str
    last: Captioned | Failed | None = None


@dataclass(frozen=True, slots=True)
class TryAgain(Generic[T]):
    """The item is back in the queue."""

    item: T


Decision = Accept[T] | GiveUp[T] | TryAgain[T]


@dataclass(slots=True)
class _Engine(Generic[T]):
    """One engine slot as the dispatcher sees it."""

    in_flight: dict[int, Task[T]] = field(default_factory=dict)
    leaving: set[int] = field(default_factory=set)
    solo: bool = False
    emptying: bool = False
    proven: bool = False
    deaths_in_a_row: int = 0
    retired: bool = False
    gone: bool = False


class Dispatcher(Generic[T]):
    """The queue of one run. ``T`` is the item, which is opaque here."""

    def __init__(self, num_engines: int, *, max_retries: int, max_engine_restarts: int) -> None:
        self._max_retries = max_retries
        self._max_engine_restarts = max_engine_restarts
        self._engines: list[_Engine[T]] = [_Engine() for _ in range(num_engines)]
        self._fresh: deque[Task[T]] = deque()
        self._again: deque[Task[T]] = deque()
        self._suspects: deque[Task[T]] = deque()
        self._resting: list[tuple[float, int, Task[T]]] = []
        self._now_s = 0.0
        self._convictions_in_a_row = 0
        self._next_lease = 0
        self._input_ended = False
        self._closed = False

    # --- input -------------------------------------------------------------------------------

    def add(self, items: Iterable[T]) -> None:
        """Queue items for their first attempt, in order."""
        self._fresh.extend(Task(item) for item in items)

    def end_input(self) -> None:
        """No more items will be added."""
        self._input_ended = True

    def close(self) -> None:
        """Hand out no more items; those in flight may still finish (first Ctrl+C)."""
        self._closed = True

    def advance(self, now_s: float) -> None:
        """Set the time, from any monotonic clock; items whose wait has ended are handed out
        again."""
        self._now_s = now_s
        while self._resting and self._resting[0][0] <= now_s:
            self._again.append(heappop(self._resting)[2])

    # --- what the driver asks ----------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Items that no engine holds."""
        return len(self._fresh) + len(self._again) + len(self._suspects) + len(self._resting)

    @property
    def num_in_flight(self) -> int:
        """Items that engines hold."""
        return sum(len(engine.in_flight) for engine in self._engines)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to hand out or to wait for."""
        if not self._closed and (not self._input_ended or self.num_waiting):
            return False
        return not any(engine.in_flight for engine in self._engines)

    @property
    def num_usable(self) -> int:
        """Engines that are not retired."""
        return sum(not engine.retired for engine in self._engines)

    def in_flight_of(self, engine: int) -> int:
        """Items that one engine holds."""
        return len(self._engines[engine].in_flight)

    def busy(self, engine: int) -> bool:
        """Whether an engine holds items, or is still cancelling some."""
        return bool(self._engines[engine].in_flight or self._engines[engine].leaving)

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
        if slot.deaths_in_a_row >= DEATHS_TO_NARROW:
            window = 1
        room = window - len(slot.in_flight) - len(slot.leaving)
        return [self._lease(engine, task) for task in self._pop_many(engine, room)]

    # --- what the driver reports -------------------------------------------------------------

    def captioned(
        self, engine: int, result: Captioned, flags: tuple[CaptionFlag, ...], problem: str = ""
    ) -> Decision[T] | None:
        """An engine answered. ``problem`` explains the flags, for messages. Returns None if the
        lease is unknown (a late or duplicate answer): ignore it."""
        task = self._finish(engine, result.lease)
        if task is None:
            return None
        task.refused_by = engine
        if verdict(flags) != "retry_or_fail":
            self._convictions_in_a_row = 0
            slot = self._engines[engine]
            slot.proven, slot.deaths_in_a_row = True, 0
        task.attempts += 1
        if verdict(flags) == "accept":
            return Accept(task.item, task.attempts, result, flags)
        task.rejected += 1
        if task.best is None or rank(flags) < rank(task.best_flags):
            task.best, task.best_flags, task.best_problem = result, flags, problem
        if task.attempts <= self._max_retries:
            return self._retry(task)
        reason = "the caption did not pass the checks; its flags: "
        if task.rejected > 1:
            reason = f"none of {task.rejected} captions passed the checks; flags of the best one: "
        reason += ", ".join(task.best_flags)
        if task.best_problem:
            reason += f" ({task.best_problem})"
        return self._settle(
            task, GiveUp(task.item, task.attempts, "caption_rejected", reason, result)
        )

    def failed(self, engine: int, failure: Failed) -> Decision[T] | None:
        """An attempt failed, but its engine is fine. Returns None if the lease is unknown."""
        task = self._finish(engine, failure.lease)
        if task is None:
            return None
        task.refused_by = engine
        task.attempts += 1
        if failure.retryable and task.attempts <= self._max_retries:
            return self._retry(task, failure.kind)
        give_up = GiveUp(task.item, task.attempts, failure.kind, failure.reason, failure)
        return self._settle(task, give_up)

    def held(self, engine: int, lease: int) -> T | None:
        """The item of a lease; None if the lease is unknown."""
        task = self._engines[engine].in_flight.get(lease)
        return None if task is None else task.item

    def withdraw(self, engine: int, lease: int) -> None:
        """Take an item away from an engine. Until `cancelled`, the engine may still work on it, and
        no other item is blamed for what happens there."""
        slot = self._engines[engine]
        del slot.in_flight[lease]
        slot.leaving.add(lease)
        slot.solo = False

    def cancelled(self, engine: int, lease: int) -> None:
        """The engine has stopped working on a withdrawn item."""
        self._engines[engine].leaving.discard(lease)

    def engine_started(self, engine: int) -> None:
        """A new process has started in this slot."""
        self._engines[engine].proven = False

    def engine_lost(self, engine: int) -> list[GiveUp[T]]:
        """The engine died: its items become suspects, and one that has killed twice while alone is
        given up as poison. `may_restart` says whether the slot may start again."""
        slot = self._engines[engine]
        tasks, alone = list(slot.in_flight.values()), slot.solo
        slot.in_flight.clear()
        slot.leaving.clear()
        slot.solo = slot.emptying = slot.proven = False
        slot.deaths_in_a_row += 1
        slot.retired = slot.retired or slot.deaths_in_a_row > self._max_engine_restarts
        if not alone:
            self._suspects.extend(tasks)
            return []
        (task,) = tasks
        task.solo_deaths += 1
        task.killed |= {engine}
        if task.solo_deaths < SOLO_DEATHS_TO_CONVICT:
            self._suspects.appendleft(task)
            return []
        slot.deaths_in_a_row, slot.retired = 0, slot.gone  # the item is to blame, not the engine
        self._convictions_in_a_row += 1
        if self._convictions_in_a_row >= CONVICTIONS_IN_A_ROW:
            for engine_slot in self._engines:
                engine_slot.retired = True
        reason = f"its engine died {task.solo_deaths} times while it ran alone"
        return [GiveUp(task.item, task.attempts, "poison", reason)]

    def may_restart(self, engine: int) -> bool:
        """Whether the slot may start again: not after too many deaths without a caption."""
        return not self._engines[engine].retired

    def restart_delay_s(self, engine: int) -> float:
        """How long to wait before the next start; see the function of this name."""
        return restart_delay_s(self._engines[engine].deaths_in_a_row)

    def retire(self, engine: int) -> None:
        """The slot cannot start again: its process or its GPU is lost."""
        self._engines[engine].retired = self._engines[engine].gone = True

    # --- inside --------------------------------------------------------------------------------

    def _lease(self, engine: int, task: Task[T]) -> Leased[T]:
        self._next_lease += 1
        self._engines[engine].in_flight[self._next_lease] = task
        return Leased(self._next_lease, task.item, task.rejected)

    def _pop_many(self, engine: int, count: int) -> list[Task[T]]:
        """Retries first, then new items. An engine does not retry its own failures while it has
        other work or another engine is proven: a bad engine must not use up all attempts of an
        item."""
        taken: list[Task[T]] = []
        own: list[Task[T]] = []
        while len(taken) < count and self._again and len(own) < MAX_PASSED_OVER:
            task = self._again.popleft()
            is_own = task.refused_by == engine and self.num_usable > 1
            (own if is_own else taken).append(task)
        while len(taken) < count and self._fresh:
            taken.append(self._fresh.popleft())
        if not own:
            return taken
        others = (slot for slot in self._engines if slot is not self._engines[engine])
        is_alone = not any(slot.proven and not slot.retired for slot in others)
        room = count - len(taken) if is_alone else 0
        self._again.extendleft(reversed(own[room:]))
        return [*taken, *own[:room]]

    def _retry(self, task: Task[T], kind: str = "") -> TryAgain[T]:
        if rest_s := retry_delay_s(kind, task.attempts):
            self._next_lease += 1  # breaks ties in the heap
            heappush(self._resting, (self._now_s + rest_s, self._next_lease, task))
        else:
            self._again.append(task)
        return TryAgain(task.item)

    def _settle(self, task: Task[T], give_up: GiveUp[T]) -> Decision[T]:
        """Out of attempts: a caption that only breaks a rule of style is better than none."""
        if task.best is not None and verdict(task.best_flags) == "retry_or_flag":
            return Accept(task.item, task.attempts, task.best, task.best_flags)
        return give_up

    def _finish(self, engine: int, lease: int) -> Task[T] | None:
        slot = self._engines[engine]
        slot.leaving.discard(lease)  # it answered before it could be cancelled
        task = slot.in_flight.pop(lease, None)
        if task is not None:
            slot.solo = False
        return task

    def _should_try_suspect(self, engine: int) -> bool:
        """A trial must prove something, so it needs an engine that has worked since it started and
        that the suspect has not killed; if no such engine is left, any engine will do."""
        if not self._suspects or not self._trial_candidates(engine):
            return False
        slot = self._engines[engine]
        others = sum(e.emptying for e in self._engines if e is not slot)
        if others >= len(self._suspects):
            return False
        return slot.proven or not (self._fresh or self._again)

    def _trial_candidates(self, engine: int) -> list[Task[T]]:
        if self.num_usable < 2:
            return list(self._suspects)
        return [task for task in self._suspects if engine not in task.killed]

    def _pop_suspect(self, engine: int) -> Task[T]:
        task = self._trial_candidates(engine)[0]
        self._suspects.remove(task)
        return task


def restart_delay_s(deaths_in_a_row: int) -> float:
    """Seconds before an engine restarts: none after the first death, then increasing, since what
    makes a start fail (memory that is not free yet) may pass."""
    return 0.0 if deaths_in_a_row < 2 else min(5.0 ** (deaths_in_a_row - 2), 60.0)


def retry_delay_s(kind: str, attempts: int) -> float:
    """Seconds before an item is retried: waiting only helps if a file system is unavailable for a
    moment."""
    return 4.0 ** (attempts - 1) if kind in ("unreadable", "timeout") else 0.0
