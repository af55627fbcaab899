"""One run at a time per output folder, with a lock that says who holds it.

The lock is the kernel's (flock), so it is free the moment its holder is dead. On a file system that
has no locks a run goes on without; that it holds the folder is then known on its own machine alone,
from the process that its owner file names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from vllm_caption.config import Shard
from vllm_caption.errors import UsageError
from vllm_caption.store.disk.attempts import Disk
from vllm_caption.store.layout import LOCK, OWNER, shard_folders, state_folder

_PATIENCE_S: Final = 0.2
"""Longer than `find_holder` looks, so that looking never refuses a run."""
_HELD: Final = (BlockingIOError, PermissionError)
"""What flock answers where another holds the lock; some file systems give the second one."""
UNLOCKED: Final = (
    "The file system of --output has no locks, so nothing keeps a second run on another machine out"
    " of this folder: start only one"
)
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

    def in_words(self) -> str:
        """For a sentence."""
        return f"process {self.pid} on {self.host} since {self.since}"


class OutputLock:
    """Held from construction to `release`. Raises UsageError that names the present holder.

    A shard holds its own folder exclusively and shares the output folder with other shards.
    """

    def __init__(self, root: Path, shard: Shard | None = None, disk: Disk | None = None) -> None:
        disk = disk or Disk()
        folder = state_folder(root, shard)
        self._held: list[int] = []
        try:
            if shard is not None:
                self._held.append(_lock(root, fcntl.LOCK_SH, disk))
            self._held.append(_lock(folder, fcntl.LOCK_EX, disk))
        except BaseException:
            self.release()
            raise
        content = msgspec.json.encode(Owner.this_process())
        without = f"{folder / OWNER} cannot be written, so nobody sees who holds the folder"
        disk.try_once("inform", lambda: (folder / OWNER).write_bytes(content), without)

    def release(self) -> None:
        """Let another run in."""
        while self._held:
            descriptor = self._held.pop()
            with contextlib.suppress(OSError):  # a child may have inherited the descriptor
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _lock(folder: Path, how: int, disk: Disk) -> int:
    """A descriptor that holds the lock of a folder, if its file system has any. Raises UsageError
    where another process holds it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = disk.attempt("start", lambda: os.open(folder / LOCK, flags, 0o644))
    try:
        if not disk.attempt(
            "lock", lambda: disk.try_once("lock", lambda: _flock(descriptor, how, folder), UNLOCKED)
        ) and (holder := _living_owner(folder / OWNER)):
            raise UsageError("--output", folder, f"is in use by {holder}; {_REMEDY}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _flock(descriptor: int, how: int, folder: Path) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return
        except _HELD:
            if time.monotonic() > deadline_s:
                raise _in_use(folder) from None
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
    except _HELD:
        return _describe(root / OWNER)
    except OSError:  # a file system without locks
        return _living_owner(root / OWNER)
    finally:
        os.close(descriptor)
    return None


def _describe(owner_path: Path) -> str:
    owner = _read_owner(owner_path)
    return "another run" if owner is None else owner.in_words()


def _living_owner(owner_path: Path) -> str | None:
    """Who wrote an owner file, where that process lives on this machine, and is not this one."""
    owner = _read_owner(owner_path)
    if owner is None or owner.host != socket.gethostname() or owner.pid == os.getpid():
        return None
    began_s = _began_s(owner.pid)
    is_same = began_s is not None and began_s <= datetime.fromisoformat(owner.since).timestamp() + 1
    return owner.in_words() if is_same else None


def _read_owner(owner_path: Path) -> Owner | None:
    try:
        return msgspec.json.decode(owner_path.read_bytes(), type=Owner)
    except (OSError, ValueError, RecursionError):
        return None


def _began_s(pid: int) -> float | None:
    """When a process of this machine began, in seconds since 1970; None where there is none. Its
    number may be that of another one by now."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK")
