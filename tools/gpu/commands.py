"""Commands with a time limit, and what they leave behind.

Every process below a command is noted while it runs, by its id and the time of its creation, so
that what outlives the command is found, and nothing else is ever ended.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

import psutil
import pynvml

POLL_S: Final = 0.2
GONE_WITHIN_S: Final = 10.0
"""How long processes and their memory may take to disappear after a command ends."""
MEMORY_TOLERANCE_MIB: Final = 256


class Command:
    """A command in a session of its own; its output goes to ``log``. Leaving the context ends it,
    and whatever of it is still there."""

    def __init__(
        self, arguments: Sequence[str], log: Path, limit_s: float, **environment: str
    ) -> None:
        self.log = log
        self.started_at = time.time()
        self._deadline_s = time.monotonic() + limit_s
        self._family: set[psutil.Process] = set()
        with log.open("ab") as output:
            self.process = psutil.Popen(
                list(arguments),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | environment,
                start_new_session=True,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._note_family()
        for process in (self.process, *self._family):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(self._family, timeout=GONE_WITHIN_S)

    def until(self, condition: Callable[[], object]) -> bool:
        """Wait until it is true; False if the command ends first or its time is up."""
        while not condition():
            if self.process.poll() is not None or time.monotonic() > self._deadline_s:
                return False
            self._note_family()
            time.sleep(POLL_S)
        self._note_family()
        return True

    def wait(self) -> int | None:
        """Its exit code; None if it timed out."""
        self.until(lambda: self.process.poll() is not None)
        exit_code: int | None = self.process.poll()
        return exit_code

    def engine_cores(self) -> list[psutil.Process]:
        """The living processes of vLLM's engine cores."""
        found = []
        for process in self._family:
            with suppress(psutil.Error):
                if "EngineCore" in f"{process.name()} {process.cmdline()}":
                    found.append(process)
        return found

    def left_behind(self) -> list[str]:
        """The processes that outlive the command by more than allowed."""
        _, alive = psutil.wait_procs(self._family, timeout=GONE_WITHIN_S)
        return [f"{process.pid} {_name(process)}" for process in alive]

    def last_lines(self, number: int = 15) -> list[str]:
        """The last lines of its output."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [line[:300] for line in lines if line.strip()][-number:]

    def _note_family(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._family.update(self.process.children(recursive=True))


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "?"


def used_mib() -> int | None:
    """Memory used on all GPUs together; None if NVML does not respond."""
    try:
        pynvml.nvmlInit()
        try:
            handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
            return sum(int(pynvml.nvmlDeviceGetMemoryInfo(h).used) >> 20 for h in handles)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def used_mib_after(before: int | None) -> int | None:
    """The same, once it is what it was ``before``, or after it had the time to become that."""
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while not memory_is_back(before, used := used_mib()) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    return used


def memory_is_back(before: int | None, after: int | None) -> bool:
    """Whether a command freed its memory; unknown counts as freed."""
    return before is None or after is None or after <= before + MEMORY_TOLERANCE_MIB


def say_what_is_left(
    left_behind: Sequence[str], before: int | None, after: int | None
) -> list[str]:
    """The problems with what a command left behind."""
    problems = []
    if left_behind:
        problems.append(f"processes outlived it: {', '.join(left_behind)}")
    if not memory_is_back(before, after):
        problems.append(f"GPU memory was not given back: {before} MiB before, {after} MiB after")
    return problems


def as_environment(defaults: Mapping[str, str]) -> dict[str, str]:
    """Variables for a command, unless the user has set them."""
    return {name: value for name, value in defaults.items() if name not in os.environ}
