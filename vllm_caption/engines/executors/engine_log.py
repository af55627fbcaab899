"""An engine's own log: where its output goes, and the error in it that explains its end."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

TAIL_BYTES = 64 * 1024
_ERROR_LINE = re.compile(rb"(?:^|\] )([\w.]*(?:Error|Exception|Interrupt): .+)$", re.MULTILINE)
"""At the start of a line, or after the prefix of vLLM's logger."""
_ELSEWHERE = "root cause"
"""What vLLM's errors say when the cause is in another process's traceback."""
_NO_CAUSE = "its process ended without an error of its own, as after a kill or without memory"


class EngineLog:
    """The log of one process; earlier processes of the same engine may have written to it."""

    def __init__(self, path: str) -> None:
        """Send this process's output, and that of what it starts, there, not to the terminal."""
        self.path = path
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._begin = os.fstat(log).st_size
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.close(log)

    def explain(self, error: BaseException) -> str:
        """One line for the end of an engine: its error, or the last one that another process of
        the engine has written, where the error only says that the cause is there."""
        said = f"{type(error).__name__}: {error}"
        if _ELSEWHERE in said:
            said = next(reversed(self._causes()), _NO_CAUSE)
        return f"{said} (log: {self.path})"

    def _causes(self) -> list[str]:
        sys.stderr.flush()
        try:
            with Path(self.path).open("rb") as log:
                log.seek(max(self._begin, os.fstat(log.fileno()).st_size - TAIL_BYTES))
                written = log.read()
        except OSError:  # the folder is gone: the death itself must still be told
            return []
        lines = [line.decode("utf-8", "replace") for line in _ERROR_LINE.findall(written)]
        return [line for line in lines if _ELSEWHERE not in line]
