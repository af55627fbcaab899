"""One run at a time per output folder, with a lock that says who holds it.

The lock is the kernel's (through filelock), so it is free the moment its holder is dead.
"""

from __future__ import annotations

import fcntl
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from filelock import FileLock, Timeout

from vllm_caption.errors import UsageError

LOCK_NAME: Final = ".run.lock"
_OWNER_NAME: Final = ".run.owner.json"
_PATIENCE_S: Final = 0.2
"""Longer than `find_holder` looks, so that looking never refuses a run."""
_REMEDY: Final = "wait for it, stop it, or choose another folder"


class Owner(msgspec.Struct, frozen=True):
    """Who holds the lock."""

    host: str
    pid: int
    since: str

    @staticmethod
    def this_process() -> Owner:
        """This process, from now."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return Owner(socket.gethostname(), os.getpid(), since)


class OutputLock:
    """Held from construction to `release`. Raises UsageError that names the present holder."""

    def __init__(self, root: Path) -> None:
        self._lock = FileLock(root / LOCK_NAME)
        owner_path = root / _OWNER_NAME
        try:
            self._lock.acquire(timeout=_PATIENCE_S)
        except Timeout:
            remedy = f"is in use by {_describe(owner_path)}; {_REMEDY}"
            raise UsageError("--output", root, remedy) from None
        owner_path.write_bytes(msgspec.json.encode(Owner.this_process()))

    def release(self) -> None:
        """Let another run in."""
        self._lock.release()


def find_holder(root: Path) -> str | None:
    """Who holds the folder at this moment, in words; None when nobody does."""
    try:
        descriptor = os.open(root / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # free again when it is closed
    except BlockingIOError:
        return _describe(root / _OWNER_NAME)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return None


def _describe(owner_path: Path) -> str:
    try:
        owner = msgspec.json.decode(owner_path.read_bytes(), type=Owner)
    except (OSError, msgspec.DecodeError):
        return "another run"
    return f"process {owner.pid} on {owner.host} since {owner.since}"
