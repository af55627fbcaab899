"""Threads that share file operations: used where they make a batch faster, and only there."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vllm_caption.store.disk.helper_threads import NUM_HELPERS, SLOW_S, HelperThreads

BATCH = range(1 + 6 * (NUM_HELPERS + 1))


@pytest.fixture
def helpers() -> Iterator[HelperThreads]:
    made = HelperThreads()
    yield made
    made.close()


def threads_of(helpers: HelperThreads, do: Callable[[], None]) -> int:
    """How many threads took part in a batch; its results must be in order."""
    used = set()

    def numbered(number: int) -> int:
        used.add(threading.get_ident())
        do()
        return number

    assert helpers.each(numbered, BATCH) == list(BATCH)
    return len(used)


def wait() -> None:
    time.sleep(0.02)


def compute() -> None:
    for _ in range(1000):
        pass


def test_operations_that_wait_are_shared_from_the_first_batch_on(helpers: HelperThreads) -> None:
    begun, together = itertools.count(), threading.Barrier(NUM_HELPERS + 1)

    def wait_for_all() -> None:
        if next(begun):
            together.wait(timeout=60)
        else:  # it is tried alone
            wait()

    assert threads_of(helpers, wait_for_all) == NUM_HELPERS + 1


def test_operations_that_become_slow_are_shared_soon(helpers: HelperThreads) -> None:
    threads_of(helpers, compute)
    assert any(threads_of(helpers, wait) == NUM_HELPERS + 1 for _ in range(200))


def test_operations_that_only_compute_are_not_shared(helpers: HelperThreads) -> None:
    shared = [threads_of(helpers, compute) > 1 for _ in range(100)]
    assert sum(shared) < 50


def test_one_long_wait_does_not_end_the_sharing_of_a_slow_disk(helpers: HelperThreads) -> None:
    waits = iter([1.0])
    for _ in range(200):
        if threads_of(helpers, wait) > 1 and threads_of(helpers, wait) > 1:
            break
    threads_of(helpers, lambda: time.sleep(next(waits, 0.02)))
    assert threads_of(helpers, wait) > 1


def test_batches_of_one_and_of_none_need_no_thread(helpers: HelperThreads) -> None:
    assert helpers.each(lambda number: 2 * number, []) == []
    before = threading.active_count()
    assert helpers.each(lambda number: time.sleep(2 * SLOW_S) or 2 * number, [3]) == [6]
    assert threading.active_count() == before
