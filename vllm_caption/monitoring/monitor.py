"""The numbers of a run over time, and warnings when the machine runs out of something.

Everything that asks the machine happens in a thread of its own; the driver's loop only hands over
its counts and takes what was seen last. Invariant: nothing that goes wrong here costs the run more
than the numbers; it is told once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil

from vllm_caption.monitoring.gpus import GpuReading, Gpus
from vllm_caption.monitoring.host import Host
from vllm_caption.monitoring.pressure import Pressure, gpu_memory_limit
from vllm_caption.monitoring.samples import FAULTS, Series, read_series, write_series
from vllm_caption.monitoring.stats import HostStats, RunStats
from vllm_caption.monitoring.status import RunStatus
from vllm_caption.store.layout import SAMPLES

EVERY_S: Final = 5.0
FIRST_EVERY_S: Final = 2.0
FIRST_S: Final = 60.0
"""So long the samples are denser: a short run has some too."""
WRITE_EVERY_S: Final = 60.0
PATIENCE_S: Final = 5.0
_FAULTS: Final = (*FAULTS, psutil.Error)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen last. ``rss_mib``: by process id of a worker."""

    host: HostStats
    gpus: list[GpuReading]
    rss_mib: dict[int, float]


class Monitor:
    """Watches one run, from `start` to `close`."""

    def __init__(self, root: Path, gpus: Sequence[str | None], engine_args: Sequence[str]) -> None:
        """``gpus``: `CUDA_VISIBLE_DEVICES` of each engine, None on the CPU."""
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
        """Begin to sample, in a thread of its own."""
        try:
            self._folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            self._note(f"There is no monitor: {error}")
            return
        self._thread.start()

    def show(self, stats: RunStats) -> None:
        """Put what was seen last into the run's numbers."""
        if (reading := self._reading) is None:
            return
        stats.host = reading.host
        stats.warnings = self._warnings
        for engine, gpu in zip(stats.engines, reading.gpus, strict=True):
            engine.rss_mib = None if engine.pid is None else reading.rss_mib.get(engine.pid)
            engine.gpu_percent = gpu.gpu_percent
            engine.gpu_memory_percent = gpu.memory_percent
            engine.gpu_temperature_c = gpu.temperature_c

    def follow(self, status: RunStatus) -> None:
        """The run's present counts: the next sample takes them."""
        self._status = status

    def take_notes(self) -> Iterator[str]:
        """What the user is to be told, once each."""
        while self._notes:
            yield self._notes.popleft()

    def close(self) -> None:
        """Take the last sample, write the file; a machine that hangs is not waited for."""
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
                self._note(f"The monitor goes on without some of its numbers: {error}")
        gpus.close()
        os.close(self._folder)

    def _earlier(self) -> Series:
        try:
            return Series(read_series(self._root))
        except FAULTS as error:
            self._note(f"{self._root / SAMPLES} cannot be read and is begun anew: {error}")
            return Series()

    def _sample(self, series: Series, gpus: Gpus, host: Host, *, last: bool) -> None:
        reading = Reading(host.read(), gpus.read(), host.rss_mib())
        self._reading = reading
        if (status := self._status) is None:
            return
        row = sample(status, reading, datetime.now(UTC))
        series.add(row, last=last)
        memory = [gpu.memory_percent for gpu in reading.gpus]
        self._notes.extend(self._pressure.look(reading.host, memory))
        self._warnings = list(self._pressure.active.values())

    def _note(self, text: str) -> None:
        """Once each, so that a disk that stays full does not fill the screen."""
        kind = text.partition(":")[0]
        if kind not in self._noted:
            self._noted.add(kind)
            self._notes.append(text)


def sample(status: RunStatus, reading: Reading, at: datetime) -> dict[str, Any]:
    """One row of monitor.parquet."""
    return {
        "at": at,
        "run_id": status.run_id,
        "images_per_s": status.images_per_s,
        "tokens_per_s": status.tokens_per_s,
        "captioned": status.captioned,
        "failed": status.failed,
        "in_flight": sum(engine.in_flight for engine in status.engines),
        "cpu_percent": reading.host.cpu_percent,
        "ram_percent": reading.host.ram_percent,
        "driver_rss_mib": reading.host.driver_rss_mib,
        "disk_free_gib": reading.host.disk_free_gib,
        "engines": [
            {
                "engine": engine.engine,
                "state": engine.state,
                "captioned": engine.captioned,
                "output_tokens": engine.output_tokens,
                "in_flight": engine.in_flight,
                "restarts": engine.restarts,
                "rss_mib": None if engine.pid is None else reading.rss_mib.get(engine.pid),
                "gpu_percent": gpu.gpu_percent,
                "gpu_memory_percent": gpu.memory_percent,
                "gpu_temperature_c": gpu.temperature_c,
            }
            for engine, gpu in zip(status.engines, reading.gpus, strict=True)
        ],
    }
