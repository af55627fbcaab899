"""The file that a command writes its result to, as its flag names it."""

from __future__ import annotations

import stat
from pathlib import Path

from vllm_caption.config import is_folder
from vllm_caption.errors import UsageError


def check_target(flag: str, path: Path, *, replaces: bool = False) -> None:
    """Raise UsageError before the work where the file could not be written after it.

    ``replaces``: the file is put in place whole, and must not take the place of a device or pipe.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not is_folder(path.absolute().parent):
            problem = "is in a folder that does not exist; create it first"
            raise UsageError(flag, path, problem) from None
        return
    except OSError as error:
        raise UsageError(flag, path, f"cannot be written ({error.strerror})") from None
    if stat.S_ISDIR(mode):
        raise UsageError(flag, path, "is a folder; name a file")
    if replaces and not stat.S_ISREG(mode):
        raise UsageError(flag, path, "is not a regular file; name another")
