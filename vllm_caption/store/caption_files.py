"""One .txt per caption, visible only whole: temporary name, then rename.

Invariant: a name that was refused by `check_name` never reaches the disk, so nothing outside the
output folder is read or written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from functools import cached_property
from pathlib import Path
from typing import Final

from vllm_caption.errors import ItemError

SUFFIX = ".txt"
MAX_NAME_BYTES = 255
MAX_PATH_BYTES: Final = 4095
TEMPORARY: Final = re.compile(r"\.[0-9a-f]{20}\.tmp")
"""Name of a caption that is being written; left behind only by a death at that moment."""
_REPLACED: Final = r"(?:monitor\.parquet|documents\.parquet|recipes\.json|status\.json)"
TEMPORARY_OF_RUN: Final = re.compile(rf"\.{_REPLACED}\.tmp")
"""Name of what else is being written, and replaced as a whole."""
_RESERVED: Final = re.compile(
    rf"(?:manifest\.parquet|journal\.jsonl|report\.html|{_REPLACED}|{TEMPORARY_OF_RUN.pattern}"
    r"|recipes\.json\.damaged|\.run\.(?:lock|owner\.json)|logs/[^/]*\.log|shards/\d+-of-\d+)/"
)
"""What the job itself writes: folders of these names would be in its way."""
_OBSTACLES: Final = (NotADirectoryError, FileExistsError, IsADirectoryError)


class CaptionFiles:
    """The .txt files below one output folder. ``file`` is an item's name in the manifests."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._made: set[str] = set()

    def check_name(self, file: str) -> None:
        """Raise ItemError when no .txt can be named after ``file``."""
        if _RESERVED.match(file):
            reason = "its caption needs a folder where the job keeps something of its own"
            raise ItemError("output_conflict", reason)
        if len(os.fsencode(os.path.basename(file))) > MAX_NAME_BYTES - len(SUFFIX):
            raise ItemError(
                "bad_name", f"with {SUFFIX} the name is over {MAX_NAME_BYTES} bytes; shorten it"
            )

    def path(self, file: str) -> str:
        """Where the caption of ``file`` lies."""
        return f"{self._root}/{file}{SUFFIX}"

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
        path = file + SUFFIX
        if len(os.fsencode(self.path(file))) > MAX_PATH_BYTES:  # it could not be read by its path
            raise _too_long()
        folder, name = os.path.split(path)
        temporary = f".{hashlib.sha1(os.fsencode(name)).hexdigest()[:20]}.tmp"
        temporary = f"{folder}/{temporary}" if folder else temporary
        content = caption.encode("utf-8")
        try:
            try:
                self._place(folder, temporary, content)
            except FileNotFoundError:  # somebody removed a folder that we made
                self._made.clear()
                self._place(folder, temporary, content)
            os.replace(temporary, path, src_dir_fd=self._root_fd, dst_dir_fd=self._root_fd)
        except OSError as error:
            if refusal := _refusal(error):
                raise refusal from error
            raise

    @cached_property
    def _root_fd(self) -> int:
        """Everything is written below one opened folder: if another file system comes to lie over
        it, captions stay with their rows."""
        return os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)

    def _place(self, folder: str, temporary: str, content: bytes) -> None:
        self._make_folder(folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(temporary, flags, 0o666, dir_fd=self._root_fd)
        try:
            while content:
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)

    def _make_folder(self, folder: str) -> None:
        if not folder or folder in self._made:
            return
        self._make_folder(os.path.dirname(folder))
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, dir_fd=self._root_fd)
        self._made.add(folder)


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
