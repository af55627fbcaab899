"""One run at a time per output folder, enforced by a lock that names its holder.

The lock is the kernel's (flock), so it is free as soon as its holder is dead. If the file system
has no locks, or somebody removed the lock file, a run continues without one; then only the machine
it runs on can see that the folder is in use, by the process that the owner file names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from vllm_caption.config import Shard
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.formatting import recorded_moment
from vllm_caption.store.disk.attempts import Disk
from vllm_caption.store.journal import read_journal
from vllm_caption.store.layout import (
    LOCK,
    MANIFEST,
    OWNER,
    parts,
    shard_folders,
    state_folder,
)

_PATIENCE_S: Final = 0.2
"""Longer than `find_holder` holds the lock, so that looking never causes a run to be refused."""
_HELD: Final = (BlockingIOError, PermissionError)
"""What flock raises if another process holds the lock; the second on some file systems."""
UNLOCKED: Final = (
    "The file system of the output has no locks, so nothing keeps a second run on another machine"
    " out of this folder: start only one"
)
_REMEDY: Final = "wait for it, stop it, or choose another folder"


class Owner(msgspec.Struct, frozen=True):
    """Who holds the lock."""

    host: str
    pid: int
    since: str
    process: str = ""
    """Distinguishes it from other processes with the same pid: see `_process`."""

    @staticmethod
    def this_process() -> Owner:
        """This process, as the owner from now on."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        return Owner(socket.gethostname(), pid, since, _process(pid))

    def in_words(self) -> str:
        """The owner as part of a sentence."""
        return f"process {self.pid} on {self.host} since {recorded_moment(self.since)}"


class OutputLock:
    """Held from construction to `release`. Raises UsageError that names the current holder.

    A shard holds its own folder exclusively and shares the output folder with other shards.
    """

    def __init__(self, root: Path, shard: Shard | None = None, disk: Disk | None = None) -> None:
        disk = disk or Disk()
        folder = state_folder(root, shard)
        self._disk = disk
        self._owner = folder / OWNER
        self._held: list[tuple[int, Path, int]] = []
        """Descriptors, each with its folder and lock mode."""
        try:
            if shard is not None:
                self._hold(root, fcntl.LOCK_SH)
            self._hold(folder, fcntl.LOCK_EX)
        except BaseException:
            self._release()
            raise
        content = msgspec.json.encode(Owner.this_process())
        without = f"{self._owner} cannot be written, so nobody can see who holds the folder"
        disk.try_once("inform", lambda: self._owner.write_bytes(content), without)

    def _hold(self, folder: Path, how: int) -> None:
        self._held.append((_lock(folder, how, self._disk), folder, how))

    def check(self) -> None:
        """If somebody removed the lock file, lock a new one. Raises RunStopped if another run was
        faster."""
        for descriptor, folder, how in list(self._held):
            try:
                is_ours = _same_file((folder / LOCK).stat(), os.fstat(descriptor))
            except FileNotFoundError:
                is_ours = False
            except OSError:  # it may still be there; the next check decides
                continue
            if not is_ours and not self._hold_again(descriptor, folder, how):
                raise RunStopped(
                    f"another run may have started in {folder}, where the lock file was removed;"
                    " make sure that only one run uses the folder, and run again"
                )

    def _hold_again(self, descriptor: int, folder: Path, how: int) -> bool:
        try:
            self._hold(folder, how)
        except (UsageError, OSError):
            return False
        self._held.remove((descriptor, folder, how))
        os.close(descriptor)
        return True

    def release(self) -> None:
        """Let another run use the folder."""
        owner = _read_owner(self._owner) if self._held else None
        if owner is not None and owner.pid == os.getpid() and _is_here(owner):
            with contextlib.suppress(OSError):
                self._owner.unlink()
        self._release()

    def _release(self) -> None:
        while self._held:
            descriptor, *_ = self._held.pop()
            with contextlib.suppress(OSError):  # a child may have inherited the descriptor
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _lock(folder: Path, how: int, disk: Disk) -> int:
    """A descriptor that holds the lock of a folder, if its file system has locks. Raises UsageError
    if another process holds it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = disk.attempt("start", lambda: os.open(folder / LOCK, flags, 0o666))
    try:
        lock = partial(disk.try_once, "lock", lambda: _flock(descriptor, how, folder), UNLOCKED)
        disk.attempt("lock", lock)
        if holder := _living_owner(folder / OWNER):  # without a lock, or its file was removed
            raise UsageError("--output", folder, f"is in use by {holder}; {_REMEDY}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _same_file(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


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


def check_count(root: Path, shard: Shard | None) -> None:
    """Raise UsageError if shards of another count run in the folder, or have unmerged rows there:
    an item is in a shard of each count, and would be captioned or recorded twice."""
    for other, folder in shard_folders(root).items():
        if shard is None or other.count == shard.count:
            continue
        if _find_holder(folder) or has_rows(folder):
            remedy = f"{root} has shards of {other.count} that are not merged, whose items would be"
            remedy += f" captioned twice; use I/{other.count}, or merge them first"
            raise UsageError("--shard", shard, f"{remedy} (`merge --output {root}`)")


def has_rows(folder: Path) -> bool:
    """Whether a shard has rows that are not merged."""
    return bool(parts(folder / MANIFEST) or read_journal(folder).rows)


def is_held_by_another(folder: Path) -> bool:
    """Whether a process other than this one holds the folder."""
    owner = _read_owner(folder / OWNER)
    if owner is not None and owner.pid == os.getpid() and _is_here(owner):
        return False
    return _find_holder(folder) is not None


def find_holder(root: Path) -> str | None:
    """Who holds the folder or one of its shards now, in words; None if nobody does."""
    if holder := _find_holder(root):
        return holder
    for shard, folder in shard_folders(root).items():
        if holder := _find_holder(folder):
            return f"shard {shard}: {holder}"
    return None


def _find_holder(root: Path) -> str | None:
    with contextlib.suppress(OSError):  # no lock file, or a file system without locks
        descriptor = os.open(root / LOCK, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # free again when it is closed
        except _HELD:
            return _describe(root / OWNER)
        finally:
            os.close(descriptor)
    return _living_owner(root / OWNER)


def _describe(owner_path: Path) -> str:
    owner = _read_owner(owner_path)
    return "another run" if owner is None else owner.in_words()


def _living_owner(owner_path: Path) -> str | None:
    """Who wrote an owner file, if that process is alive on this machine and is not this one."""
    owner = _read_owner(owner_path)
    if owner is None or owner.pid == os.getpid():
        return None
    return owner.in_words() if _is_here(owner) else None


def _is_here(owner: Owner) -> bool:
    """Whether the owner is alive on this machine."""
    is_here = owner.host == socket.gethostname() and owner.process != ""
    return is_here and owner.process == _process(owner.pid)


def _read_owner(owner_path: Path) -> Owner | None:
    try:
        return msgspec.json.decode(owner_path.read_bytes(), type=Owner)
    except (OSError, ValueError, RecursionError):
        return None


def _process(pid: int) -> str:
    """Identifies a process among all that ever had its pid, whatever the clock says: the boot, and
    when the process started since then. Empty if there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot} {ticks}"
