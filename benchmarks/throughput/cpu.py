"""Processor time of a process and its descendants, sampled while it runs.

It hardly depends on what else the machine does, as images per second do: on N cores that are fully
used, N divided by the seconds per image is the speed.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left

import psutil

EVERY_S = 0.5


class CpuSampler:
    """Samples from construction to `stop`."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seconds: dict[int, float] = {}
        self._times: list[float] = [time.time()]
        self._totals: list[float] = [0.0]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling."""
        self._stopping.set()
        self._thread.join()

    def spent_s(self, begin: float, end: float) -> float:
        """Processor time between two moments."""
        return self._at(end) - self._at(begin)

    def _sample(self) -> None:
        while not self._stopping.wait(EVERY_S):
            try:
                family = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                try:
                    used = process.cpu_times()
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                self._seconds[process.pid] = used.user + used.system
            self._times.append(time.time())
            self._totals.append(sum(self._seconds.values()))

    def _at(self, moment: float) -> float:
        after = min(max(bisect_left(self._times, moment), 1), len(self._times) - 1)
        left, right = self._times[after - 1], self._times[after]
        share = (moment - left) / (right - left) if right > left else 0.0
        return self._totals[after - 1] + share * (self._totals[after] - self._totals[after - 1])
