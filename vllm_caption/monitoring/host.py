"""The machine around the engines: CPU, memory, disk, and the memory of each worker.

Invariant: a value that cannot be read is None.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from pathlib import Path

import psutil

from vllm_caption.monitoring.figures import HostFigures
from vllm_caption.process import DECODER_NAME

MIB, GIB = 2**20, 2**30
CGROUP, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_NO_LIMIT = 2**60


class Host:
    """This machine. CPU use is measured since the last reading."""

    def __init__(self, disk: Path) -> None:
        """``disk``: a folder on the disk to watch."""
        self._disk = disk
        self._driver = psutil.Process()
        self._groups = [CGROUP, *own_groups(CGROUP, OWN_GROUP)]
        psutil.cpu_percent()  # the first answer is always 0

    def read(self) -> HostFigures:
        """The current figures."""
        try:
            disk = psutil.disk_usage(str(self._disk))
        except OSError:  # the folder is unavailable for a moment
            disk = None
        if disk is not None and not disk.total:  # the size is unknown
            disk = None
        return HostFigures(
            cpu_percent=psutil.cpu_percent(),
            ram_percent=max(psutil.virtual_memory().percent, *map(limit_percent, self._groups)),
            driver_rss_mib=self._driver.memory_info().rss / MIB,
            disk_free_gib=None if disk is None else disk.free / GIB,
            disk_percent=None if disk is None else disk.percent,
        )

    def rss_mib(self) -> dict[int, float]:
        """Session leader → memory of its session. Each worker leads one, with its engine core;
        memory that forked processes share is counted in each of them, so the decoders of images,
        which use little of their own, are left out."""
        found: Counter[int] = Counter()
        for process in self._driver.children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if process.name() == DECODER_NAME:
                    continue
                found[os.getsid(process.pid)] += process.memory_info().rss
        return {leader: rss / MIB for leader, rss in found.items()}


def own_groups(root: Path, own: Path) -> list[Path]:
    """The control groups (version 2) around this process, innermost first: those of a container, a
    batch job, a service. Each may have a limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    paths = (line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    return [root / part for path in paths if path for part in (Path(path), *Path(path).parents)]


def limit_percent(group: Path) -> float:
    """Percent of its memory limit that a control group uses, without caches; 0.0 without a limit.

    At the limit the kernel kills, however much memory the machine has left.
    """
    used, limit = _memory_limit(group) or (0, 1)
    return 100.0 * used / limit


def _memory_limit(group: Path) -> tuple[int, int] | None:
    """Bytes that a control group uses, without caches, and its limit; None without a limit."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        held = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
    except (OSError, ValueError):  # without a limit, the file says `max`
        return None
    cache = held.get("file", 0) - held.get("shmem", 0)
    return (max(used - cache, 0), limit) if 0 < limit < _NO_LIMIT else None


def available_bytes() -> int:
    """Memory that new processes may use, within the limits of our control groups."""
    limits = map(_memory_limit, (CGROUP, *own_groups(CGROUP, OWN_GROUP)))
    left = [max(limit - used, 0) for used, limit in filter(None, limits)]
    return int(min(psutil.virtual_memory().available, *left, sys.maxsize))


def usable_cores() -> float:
    """Cores that this process may use, by CPU affinity and the quotas of its control groups."""
    cores = float(len(os.sched_getaffinity(0)))
    for group in (CGROUP, *own_groups(CGROUP, OWN_GROUP)):
        with contextlib.suppress(OSError, ValueError):
            quota, period = map(int, (group / "cpu.max").read_text().split())
            cores = min(cores, quota / period)
    return cores
