"""The captions on disk: one .txt each, seen whole or not at all.

Invariant: a name that `check_name` refuses never reaches the disk, so nothing outside the output
folder is read or written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, NamedTuple

from vllm_caption.errors import ItemError
from vllm_caption.store.atomic import write_file
from vllm_caption.store.layout import (
    CAPTION_SUFFIX,
    MANIFEST,
    caption_name,
    is_reserved,
    is_temporary,
    temporary_caption_name,
    temporary_parts,
)

MAX_NAME_BYTES: Final = 255
MAX_PATH_BYTES: Final = 4095
MAX_CAPTION_BYTES: Final = 64 * 2**20
"""A larger file is no caption."""
_OBSTACLES: Final = (NotADirectoryError, FileExistsError, IsADirectoryError)

State = Literal["there", "empty", "gone", "unreadable"]


class Inspected(NamedTuple):
    """What lies where a caption should be: ``text`` where it is one, ``reason`` where it is gone or
    unreadable."""

    state: State
    text: str = ""
    reason: str = ""
    written_s: float = 0.0


class CaptionFiles:
    """The .txt files below one output folder. ``file`` is an item's name in the manifests."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._made: set[str] = set()

    def check_name(self, file: str) -> None:
        """Raise ItemError when no .txt can be named after ``file``."""
        if is_reserved(file):
            reason = "its caption needs a folder with the name of a file that the job itself writes"
            raise ItemError("output_conflict", reason)
        if len(os.fsencode(os.path.basename(file))) > MAX_NAME_BYTES - len(CAPTION_SUFFIX):
            reason = f"with {CAPTION_SUFFIX} the name is over {MAX_NAME_BYTES} bytes; shorten it"
            raise ItemError("bad_name", reason)

    def path(self, file: str) -> str:
        """Where the caption of ``file`` lies."""
        return f"{self._root}/{caption_name(file)}"

    def read(self, file: str) -> str | None:
        """The caption on disk; None when there is none, or only an empty file."""
        try:
            text = Path(self.path(file)).read_text("utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # such a path cannot hold a caption
                return None
            raise
        return text if text.strip() else None

    def inspect(self, file: str) -> Inspected:
        """As `read`, but whatever lies there is described; never waits, as on a FIFO."""
        try:
            descriptor = os.open(self.path(file), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError:
            return Inspected("gone")
        except OSError as error:
            state: State = "unreadable" if isinstance(error, PermissionError) else "gone"
            return Inspected(state, reason=error.strerror or str(error))
        try:
            facts = os.fstat(descriptor)
            if stat.S_ISDIR(facts.st_mode):
                return Inspected("gone", reason="a folder is in its place")
            if not stat.S_ISREG(facts.st_mode):
                return Inspected("unreadable", reason="it is not a regular file")
            if facts.st_size > MAX_CAPTION_BYTES:
                reason = f"it has {facts.st_size:,} bytes; no caption does"
                return Inspected("unreadable", reason=reason)
            with open(descriptor, encoding="utf-8", errors="replace", closefd=False) as opened:
                text = opened.read()
        except OSError as error:
            return Inspected("unreadable", reason=error.strerror or str(error))
        finally:
            os.close(descriptor)
        return Inspected("there" if text.strip() else "empty", text, written_s=facts.st_mtime)

    def check_place(self, file: str) -> None:
        """Raise ItemError when what is on disk leaves no place for this caption."""
        try:
            mode = os.stat(self.path(file)).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            if refusal := _refusal(error):
                raise refusal from error
            raise
        if stat.S_ISDIR(mode):
            raise _conflict()

    def write(self, file: str, caption: str) -> None:
        """Put a caption on disk, whole or not at all.

        Raises ItemError where the path cannot be had, OSError for the disk.
        """
        if len(os.fsencode(self.path(file))) > MAX_PATH_BYTES:  # it could not be read by its path
            raise _too_long()
        path = caption_name(file)
        folder, name = os.path.split(path)
        temporary = temporary_caption_name(hashlib.sha1(os.fsencode(name)).hexdigest())
        temporary = f"{folder}/{temporary}" if folder else temporary
        content = caption.encode("utf-8")
        try:
            try:
                self._make_folder(folder)
                write_file(path, content, dir_fd=self._root_fd, temporary=temporary)
            except FileNotFoundError:  # somebody removed a folder that was made here
                self._made.clear()
                self._make_folder(folder)
                write_file(path, content, dir_fd=self._root_fd, temporary=temporary)
        except OSError as error:
            if refusal := _refusal(error):
                raise refusal from error
            raise

    @cached_property
    def _root_fd(self) -> int:
        """Everything is written below one opened folder: if another file system is mounted over it,
        captions stay with their rows."""
        return os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)

    def _make_folder(self, folder: str) -> None:
        if not folder or folder in self._made:
            return
        self._make_folder(os.path.dirname(folder))
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, dir_fd=self._root_fd)
        self._made.add(folder)

    def walk(self) -> Iterator[tuple[str, bool]]:
        """(path below the output folder, whether it is temporary) of every .txt and of what is
        being written, or was when its writer died. No link to another folder is followed."""
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                entries = os.scandir(f"{self._root}/{folder}")
            except OSError:
                continue  # gone, or not ours to read: its .txt files show as unreadable
            with entries:
                for entry in entries:
                    path = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if path != MANIFEST:
                            folders.append(f"{path}/")
                    elif entry.name.endswith(CAPTION_SUFFIX):
                        yield path, False
                    elif is_temporary(path):
                        yield path, True
        for part in temporary_parts(Path(self._root, MANIFEST)):
            yield f"{MANIFEST}/{part.name}", True


def _conflict() -> ItemError:
    reason = "another item's caption is a file where this one needs a folder, or the reverse"
    return ItemError("output_conflict", reason)


def _too_long() -> ItemError:
    return ItemError("bad_name", "below --output its path is too long; take a shorter --output")


def _refusal(error: OSError) -> ItemError | None:
    """The item's fault, if it is one, rather than the disk's."""
    if isinstance(error, _OBSTACLES):
        return _conflict()
    if error.errno == errno.ENAMETOOLONG:
        return _too_long()
    return None
