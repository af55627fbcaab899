"""Why a process died, in words and with a remedy, from its exit code and the kernel's counters.

A parent sees an out-of-memory kill only as SIGKILL. What shows the cause is a counter of the
control group (the memory limit of a container or a batch job) or of the machine that has grown
since the process started.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Final, NamedTuple

CGROUPS: Final = Path("/sys/fs/cgroup")
PROC: Final = Path("/proc")
_OOM_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_LESS_MEMORY: Final = (
    "use fewer engines (--data-parallel-size), fewer --prepare-threads, a smaller model, or more"
    " memory"
)
_SIGNALS: Final = {
    "SIGBUS": "a full /dev/shm, or a file that became shorter while it was read",
    "SIGXCPU": "the limit on its CPU time (ulimit -t)",
    "SIGXFSZ": "the limit on the size of its files (ulimit -f)",
    "SIGABRT": "it found an error in itself, or no memory was left",
    "SIGSEGV": "a bug in a library or a driver, or a broken GPU",
    "SIGILL": "a library that was built for another processor",
}
_FROM_OUTSIDE: Final = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


class OomKills(NamedTuple):
    """Processes that the kernel has killed for lack of memory so far; None if unknown."""

    group: int | None
    machine: int | None

    @staticmethod
    def now() -> OomKills:
        """The counts of this process' control group and of the whole machine."""
        return OomKills(_of_group(), _count(PROC / "vmstat"))


def describe_end(exit_code: int, before: OomKills, now: OomKills) -> str:
    """A clause to follow "its process ended"; ``before``: the counts when it was started."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
    if name == "SIGKILL" and _grew(before.group, now.group):
        return f"killed by the kernel: the memory limit of its control group; {_LESS_MEMORY}"
    if name == "SIGKILL" and _grew(before.machine, now.machine):
        return f"killed by the kernel: no memory was left on the machine; {_LESS_MEMORY}"
    if name in _FROM_OUTSIDE:
        return (
            f"killed from outside by {name}: by a person, a batch system or a watchdog (see dmesg)"
        )
    return f"{name}: {_SIGNALS[name]}" if name in _SIGNALS else name


def _grew(before: int | None, now: int | None) -> bool:
    return before is not None and now is not None and now > before


def _of_group() -> int | None:
    """cgroup v2, or the memory controller of v1. A container sees its own group as the root."""
    try:
        entries = [line.split(":", 2) for line in (PROC / "self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    found = {controllers: path.lstrip("/") for _, controllers, path in entries}
    places = (
        [CGROUPS / found[""] / "memory.events", CGROUPS / "memory.events"] if "" in found else []
    )
    if "memory" in found:
        group = CGROUPS / "memory" / found["memory"]
        places += [group / "memory.oom_control", CGROUPS / "memory/memory.oom_control"]
    return next((count for place in places if (count := _count(place)) is not None), None)


def _count(path: Path) -> int | None:
    try:
        found = _OOM_KILLS.search(path.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None
