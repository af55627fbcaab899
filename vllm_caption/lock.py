"""One run at a time per output folder, with a lock that says who holds it.

The lock is the kernel's (through filelock), so it is free the moment its holder is dead.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from vllm_caption.errors import UsageError


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
        self._lock = FileLock(root / ".run.lock")
        owner_path = root / ".run.owner.json"
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UsageError("--output", root, f"is in use by {_describe(owner_path)}") from None
        owner_path.write_bytes(msgspec.json.encode(Owner.this_process()))

    def release(self) -> None:
        """Let another run in."""
        self._lock.release()


def _describe(owner_path: Path) -> str:
    try:
        owner = msgspec.json.decode(owner_path.read_bytes(), type=Owner)
    except (OSError, msgspec.DecodeError):
        return "another run; wait for it or choose another folder"
    return (
        f"process {owner.pid} on {owner.host} since {owner.since};"
        " wait for it, stop it, or choose another folder"
    )
