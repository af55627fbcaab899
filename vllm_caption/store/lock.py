"""One run at a time per output folder, with a lock that says who holds it.

The lock is the kernel's (through filelock), so it is free the moment its holder is dead.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from filelock import FileLock, Timeout

from vllm_caption.config import Shard
from vllm_caption.errors import UsageError
from vllm_caption.store.layout import LOCK, OWNER, shard_folders, state_folder

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
    """Held from construction to `release`. Raises UsageError that names the present holder.

    A shard holds its own folder exclusively and shares the output folder with other shards.
    """

    def __init__(self, root: Path, shard: Shard | None = None) -> None:
        folder = state_folder(root, shard)
        self._shared = None if shard is None else _share(root)
        self._lock = FileLock(folder / LOCK)
        owner_path = folder / OWNER
        try:
            self._lock.acquire(timeout=_PATIENCE_S)
        except Timeout:
            self._unshare()
            raise _in_use(folder) from None
        owner_path.write_bytes(msgspec.json.encode(Owner.this_process()))

    def release(self) -> None:
        """Let another run in."""
        self._lock.release()
        self._unshare()

    def _unshare(self) -> None:
        if self._shared is not None:
            os.close(self._shared)
            self._shared = None


def _share(root: Path) -> int:
    """A descriptor that keeps runs without shards out. Raises UsageError."""
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                os.close(descriptor)
                raise _in_use(root) from None
            time.sleep(_PATIENCE_S / 10)


def _in_use(folder: Path) -> UsageError:
    holder = find_holder(folder) or _describe(folder / OWNER)
    return UsageError("--output", folder, f"is in use by {holder}; {_REMEDY}")


def find_holder(root: Path) -> str | None:
    """Who holds the folder, or one of its shards, at this moment, in words; None when nobody."""
    if holder := _find_holder(root):
        return holder
    for shard, folder in shard_folders(root).items():
        if holder := _find_holder(folder):
            return f"shard {shard}: {holder}"
    return None


def _find_holder(root: Path) -> str | None:
    try:
        descriptor = os.open(root / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # free again when it is closed
    except BlockingIOError:
        return _describe(root / OWNER)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return None


def _describe(owner_path: Path) -> str:
    try:
        owner = msgspec.json.decode(owner_path.read_bytes(), type=Owner)
    except (OSError, ValueError):
        return "another run"
    return f"process {owner.pid} on {owner.host} since {owner.since}"
