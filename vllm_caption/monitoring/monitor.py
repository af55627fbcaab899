"""The monitor thread: samples the machine, stores the samples, and warns.

All measuring happens in this thread; the driver's loop only hands over its counts and takes the
last reading. Invariant: whatever goes wrong here, the run loses figures at most, and the problem is
reported once.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from vllm_caption.monitoring.figures import EngineFigures, HostFigures
from vllm_caption.monitoring.gpus import GpuReading, Gpus
from vllm_caption.monitoring.host import Host
from vllm_caption.monitoring.pressure import Pressure, gpu_memory_limit
from vllm_caption.monitoring.samples import (
    FAULTS,
    OF_ENGINE,
    OF_HOST,
    OF_RUN,
    Series,
    read_series,
    write_series,
)
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.monitoring.status import RunStatus
from vllm_caption.store.layout import SAMPLES

EVERY_S: Final = 5.0
FIRST_EVERY_S: Final = 2.0
FIRST_S: Final = 60.0
"""Samples are more frequent for this long, so that a short run has some, too."""
WRITE_EVERY_S: Final = 60.0
PATIENCE_S: Final = 5.0
_FAULTS: Final = (*FAULTS, psutil.Error)


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of the machine. ``gpus``: by engine; ``rss_mib``: by worker's process id."""

    host: HostFigures
    gpus: list[GpuReading]
    rss_mib: dict[int, float]

    def put_into(self, engines: Sequence[EngineFigures]) -> None:
        """Set the measured figures of each engine."""
        for engine, gpu in zip(engines, self.gpus, strict=True):
            engine.rss_mib = None if engine.pid is None else self.rss_mib.get(engine.pid)
            for name, value in msgspec.structs.asdict(gpu).items():
                setattr(engine, name, value)


class Monitor:
    """Watches one run, from `start` to `close`."""

    def __init__(self, root: Path, gpus: Sequence[str | None], engine_args: Sequence[str]) -> None:
        """``gpus``: `CUDA_VISIBLE_DEVICES` of each engine; None on the CPU."""
        self._root = root
        self._assigned = gpus
        on_cpu = not any(gpus)
        limit = gpu_memory_limit(engine_args)
        self._pressure = Pressure(os.fspath(root), on_cpu=on_cpu, gpu_memory_limit=limit)
        self._status: RunStatus | None = None
        self._reading: Reading | None = None
        self._warnings: list[str] = []
        self._notes: deque[str] = deque()
        self._noted: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        try:
            self._folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            self._note(f"The monitor cannot start: {error}")
            return
        self._thread.start()

    def show(self, stats: RunStats) -> None:
        """Put the last reading into the run's statistics."""
        if (reading := self._reading) is None:
            return
        stats.host = reading.host
        stats.warnings = self._warnings
        reading.put_into(stats.engines)

    def follow(self, status: RunStatus) -> None:
        """Hand over the run's current counts, for the next sample."""
        self._status = status

    def take_notes(self) -> Iterator[str]:
        """The sentences for the user, once each."""
        while self._notes:
            yield self._notes.popleft()

    def close(self) -> None:
        """Take a last sample and write the file, unless the machine hangs."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE_S)

    # --- in the thread -------------------------------------------------------------------------

    def _watch(self) -> None:
        series, gpus, host = self._earlier(), Gpus(self._assigned), Host(self._root)
        started_s = written_s = time.monotonic()
        is_last = False
        while not is_last:
            is_young = time.monotonic() - started_s < FIRST_S
            is_last = self._ended.wait(FIRST_EVERY_S if is_young else EVERY_S)
            try:
                self._sample(series, gpus, host, last=is_last)
                if is_last or time.monotonic() - written_s >= WRITE_EVERY_S:
                    written_s = time.monotonic()
                    write_series(self._folder, series.table())
            except _FAULTS as error:
                self._note(f"The monitor continues without some of its figures: {error}")
        gpus.close()
        os.close(self._folder)

    def _earlier(self) -> Series:
        try:
            return Series(read_series(self._root))
        except FAULTS as error:
            self._note(f"{self._root / SAMPLES} cannot be read and is replaced: {error}")
            return Series()

    def _sample(self, series: Series, gpus: Gpus, host: Host, *, last: bool) -> None:
        reading = Reading(host.read(), gpus.read(), host.rss_mib())
        self._reading = reading
        if (status := self._status) is None:
            return
        series.add(sample(status, reading, datetime.now(UTC)), last=last)
        memory = [gpu.gpu_memory_percent for gpu in reading.gpus]
        self._notes.extend(self._pressure.check(reading.host, memory))
        self._warnings = list(self._pressure.active.values())

    def _note(self, text: str) -> None:
        """Keep a sentence for the user, once per kind: a full disk must not fill the screen."""
        kind = text.partition(":")[0]
        if kind not in self._noted:
            self._noted.add(kind)
            self._notes.append(text)


def sample(status: RunStatus, reading: Reading, at: datetime) -> dict[str, Any]:
    """One row of monitor.parquet."""
    engines = [copy.copy(engine) for engine in status.engines]
    reading.put_into(engines)
    return {
        "at": at,
        "run_id": status.run_id,
        **{name: getattr(status, name) for name in OF_RUN},
        "in_flight": sum(engine.in_flight for engine in engines),
        **{name: getattr(reading.host, name) for name in OF_HOST},
        "engines": [{name: getattr(engine, name) for name in OF_ENGINE} for engine in engines],
    }
