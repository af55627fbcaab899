"""The log of an engine: where its output goes, and the error in it that explains its end."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from vllm_caption.engines.deaths import OomKills, describe_end
from vllm_caption.engines.memory_errors import WHILE_LOADING
from vllm_caption.formatting import encodable
from vllm_caption.store.disk.attempts import Disk

TAIL_BYTES = 64 * 1024
_ERROR_LINE = re.compile(rb"(?:^|\] )([\w.]*(?:Error|Exception|Interrupt): .+)$", re.MULTILINE)
"""At the start of a line, or after the prefix of vLLM's logger."""
_ELSEWHERE = "root cause"
"""What vLLM's errors say if the cause is in another process's traceback."""
_LOADING: Final = re.compile(rb", in load_model\s*$", re.MULTILINE)
"""A line of the traceback of an error that came while the engine loaded its weights."""
_NO_CAUSE = "its process ended without an error of its own"
_EXIT_CODES: Final = re.compile(r"Failed core proc\(s\): {.*?: (-?\d+)")
"""vLLM's error of an engine that did not start names how its core ended."""


_LIMITS: Final = (
    ("Too many open files", "raise the limit of open files (`ulimit -n`)"),
    (
        "can't start new thread",
        "raise the limit of processes and threads (`ulimit -u`, or --pids-limit of Docker)",
    ),
)
"""The error of an engine that reached a limit of the system, and what to do."""


def with_limit(error: str) -> str:
    """The error, and which limit of the system to raise if one is the cause."""
    remedy = next((remedy for sign, remedy in _LIMITS if sign in error), None)
    return error if remedy is None else f"{error}; {remedy}"


class EngineLog:
    """The log of one process; earlier processes of the same engine may have written to it."""

    def __init__(self, path: str) -> None:
        """Redirect the output of this process and its children to the log."""
        self.path = path
        self._oom_kills = OomKills.now()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        log = Disk().attempt("start", lambda: os.open(path, flags, 0o666))
        self._begin = os.fstat(log).st_size
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.close(log)

    def explain(self, error: BaseException, exit_codes: Callable[[], Sequence[int]] = tuple) -> str:
        """One line for the end of an engine: its error. If that only refers to another process of
        the engine, the last error in the log; if there is none, how that process ended, by its exit
        code."""
        said = f"{type(error).__name__}: {error}"
        if _ELSEWHERE in said:
            written = self._written()
            causes = [line.decode("utf-8", "replace") for line in _ERROR_LINE.findall(written)]
            cause = next((line for line in reversed(causes) if _ELSEWHERE not in line), None)
            named = [int(code) for code in _EXIT_CODES.findall(said)]
            said = cause or self._without_words([*named, *exit_codes()])
            if _LOADING.search(written):
                said += f" {WHILE_LOADING}"
        return encodable(f"{with_limit(said)} (log: {self.path})")

    def _without_words(self, exit_codes: Sequence[int]) -> str:
        code = next((code for code in exit_codes if code), None)
        if code is None:
            return _NO_CAUSE
        return f"{_NO_CAUSE} ({describe_end(code, self._oom_kills, OomKills.now())})"

    def _written(self) -> bytes:
        """The end of what this process and those that it started have written."""
        sys.stderr.flush()
        try:
            with Path(self.path).open("rb") as log:
                log.seek(max(self._begin, os.fstat(log.fileno()).st_size - TAIL_BYTES))
                return log.read()
        except OSError:  # the folder is gone: the death itself must still be reported
            return b""
