"""The only way to write a file: under a temporary name in the same folder, then renamed.

Invariants: under its final name a file is always complete, old or new; a failed write leaves no
temporary file behind (a killed process does).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import BinaryIO

from vllm_caption.store.disk.verdicts import judge
from vllm_caption.store.layout import temporary_name

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def write_file(
    path: str | os.PathLike[str],
    content: bytes | Callable[[BinaryIO], object],
    *,
    dir_fd: int | None = None,
    temporary: str | None = None,
    sync_content: bool = False,
    sync_name: bool = False,
) -> OSError | None:
    """Write or replace one file. Raises OSError, and whatever ``content`` raises. If the file
    system cannot sync, the file is written all the same and that error is returned.

    ``content``: the bytes, or a function that writes them to the open file.
    ``dir_fd``: an open folder that ``path`` is relative to: if another file system is mounted over
    it later, the file still goes to the folder that was opened.
    ``temporary``: the path to write first, if the usual name might be too long, or if two processes
    may write the same file.

    A rename is atomic if this process is killed, but a power loss may lose the content, the name,
    or both. Callers fsync only if they have a reason:
    ``sync_content``: a lost file could not be recreated (recipes), or its source is removed next
    (the rows of a part leave the journal).
    ``sync_name``: the files that this one replaces are removed next (older parts).
    Captions use neither, since an fsync of each would halve the speed: one syncfs flushes them
    before their rows leave the journal.
    """
    if temporary is None:
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, temporary_name(name))
    unsynced: OSError | None = None
    renamed = False
    try:
        descriptor = os.open(temporary, _FLAGS, 0o666, dir_fd=dir_fd)
        if isinstance(content, bytes):
            try:
                while content:
                    content = content[os.write(descriptor, content) :]
                if sync_content:
                    unsynced = _sync(descriptor)
            finally:
                os.close(descriptor)
        else:
            with os.fdopen(descriptor, "wb") as file:
                content(file)
                if sync_content:
                    file.flush()
                    unsynced = _sync(descriptor)
        os.replace(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        renamed = True
    finally:
        if not renamed:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=dir_fd)
    if sync_name:
        unsynced = _sync_folder(os.path.dirname(path) or ".", dir_fd) or unsynced
    return unsynced


def _sync(descriptor: int) -> OSError | None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if judge(error.errno, "sync") == "optional":
            return error
        raise
    return None


def _sync_folder(path: str, dir_fd: int | None) -> OSError | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
    except PermissionError as error:  # a folder can be writable without being readable
        return error
    try:
        return _sync(descriptor)
    finally:
        os.close(descriptor)
