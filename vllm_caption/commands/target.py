"""The file that a command writes its result to, as its flag names it."""

from __future__ import annotations

from pathlib import Path

from vllm_caption.errors import UsageError


def check_target(flag: str, path: Path, *, replaces: bool = False) -> None:
    """Raise UsageError before the work where the file could not be written after it.

    ``replaces``: the file is put in place whole, and must not take the place of a device or pipe.
    """
    if not path.absolute().parent.is_dir():
        raise UsageError(flag, path, "is in a folder that does not exist; create it first")
    if path.is_dir():
        raise UsageError(flag, path, "is a folder; name a file")
    if replaces and path.exists() and not path.is_file():
        raise UsageError(flag, path, "is not a regular file; name another")
