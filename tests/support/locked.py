"""Folders that this process may not enter, also if the tests run as root."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_VERSION: Final = 0x20080522
_IGNORE_PERMISSIONS: Final = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, with which root enters any folder."""


@contextmanager
def locked(*folders: Path) -> Iterator[None]:
    """Nobody may list or enter these folders meanwhile. Holds for this thread, not for the programs
    that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the upper halves
    _check(libc.capget(header, data))
    before = data[0]
    for folder in folders:
        folder.chmod(0)
    try:
        data[0] = before & ~_IGNORE_PERMISSIONS
        _check(libc.capset(header, data))
        yield
    finally:
        data[0] = before
        _check(libc.capset(header, data))
        for folder in folders:
            folder.chmod(0o700)


def _check(failed: int) -> None:
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
