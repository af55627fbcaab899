"""Silent or slow: time limits, which a pause of the whole process does not consume."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from vllm_caption.engines.patient_threads import PatientThreads
from vllm_caption.scheduling.stand_still import StandStill


def test_ticks_on_time_or_a_little_late_are_not_a_pause() -> None:
    clock = StandStill(0.5)
    assert [clock.since_last_tick_s(now_s) for now_s in (10.0, 10.5, 11.9, 12.4)] == [0.0] * 4


def test_pause_is_the_time_beyond_one_tick() -> None:
    clock = StandStill(0.5)
    clock.since_last_tick_s(10.0)
    assert clock.since_last_tick_s(310.5) == 300.0
    assert clock.since_last_tick_s(311.0) == 0.0


def test_call_returns_or_raises_like_its_function() -> None:
    async def run() -> None:
        threads = PatientThreads(1, 5.0, "t")
        assert await threads.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 7, 0)
        threads.shutdown()

    asyncio.run(run())


def test_hanging_thread_is_abandoned_and_replaced() -> None:
    hanging = threading.Event()

    async def run() -> None:
        threads = PatientThreads(1, 0.1, "t")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await threads.run(hanging.wait, 60)
        threads._limit_s = 60.0  # its thread may start late
        assert await threads.run(divmod, 7, 2) == (3, 1)
        threads.shutdown()

    try:
        asyncio.run(run())
    finally:
        hanging.set()


def test_no_more_threads_work_than_allowed() -> None:
    at_work, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        with lock:
            at_work -= 1

    async def run() -> None:
        threads = PatientThreads(2, 5.0, "t")
        await asyncio.gather(*(threads.run(work) for _ in range(12)))
        threads.shutdown()

    asyncio.run(run())
    assert most == 2


def test_pause_of_the_loop_uses_up_one_slice_at_most() -> None:
    async def run() -> None:
        threads = PatientThreads(1, 2.5, "t")
        calling = asyncio.ensure_future(threads.run(time.sleep, 3.5))
        await asyncio.sleep(0.05)
        time.sleep(3)  # the loop stands still, as in a process that is stopped
        await calling
        threads.shutdown()

    asyncio.run(run())
