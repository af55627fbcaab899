"""An engine's own log: where its output goes, and the error in it that explains a failed start."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

TAIL_BYTES = 64 * 1024
_ERROR_LINE = re.compile(rb"^[\w.]*(?:Error|Exception): .+", re.MULTILINE)


def write_output_to(path: str) -> None:
    """Send this process's output, and that of what it starts, to a log instead of the terminal."""
    log = os.open(Path(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)


def explain(error: Exception, path: str) -> str:
    """One line for a failed start: vLLM's own error often only says that the cause is above, so
    the last error that another process of the engine has written is taken, if there is one."""
    sys.stderr.flush()
    said = f"{type(error).__name__}: {error}"
    tail = Path(path).read_bytes()[-TAIL_BYTES:]
    lines = [line.decode("utf-8", "replace") for line in _ERROR_LINE.findall(tail)]
    causes = [line for line in lines if "See root cause above" not in line]
    if "See root cause above" in said and causes:
        said = causes[-1]
    return f"{said} (log: {path})"
