"""The one way to write a file: under a temporary name in the same folder, then renamed.

Invariants: under its own name a file is seen whole or not at all, old or new; a write that fails
leaves no temporary file behind (a death does).
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
    """Write or replace one file. Raises OSError, and what ``content`` raises; returns the answer of
    a file system that does not know how to sync, which the file is written without.

    ``content``: the bytes, or what writes them to the opened file.
    ``dir_fd``: an opened folder that ``path`` is relative to: if another file system is mounted
    over it later, the file still goes to the folder that was opened.
    ``temporary``: the path to write first, where the usual name might be too long, or where two
    processes may write the same file.

    A rename is atomic against a death of this process, but a power loss may take the content, the
    name, or both. Neither is waited for unless the caller has a reason:
    ``sync_content``: where a file that was lost could not be made again (recipes), or where
    something that can be is removed next (a part, whose rows then leave the journal).
    ``sync_name``: where the old files go next (a part, before those that it replaces). Captions ask
    for neither, since an fsync of each would halve the speed: one syncfs brings them to the disk
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
    except PermissionError as error:  # a folder may be written that may not be read
        return error
    try:
        return _sync(descriptor)
    finally:
        os.close(descriptor)
