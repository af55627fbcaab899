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
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, NamedTuple

from vllm_caption.config import CaptionName
from vllm_caption.errors import ItemError
from vllm_caption.formatting import printable
from vllm_caption.store.atomic import write_file
from vllm_caption.store.disk.attempts import Disk
from vllm_caption.store.disk.folding import Claims, Folding
from vllm_caption.store.disk.verdicts import CONFLICTS, DENIALS, FULL, OUTAGES, judge
from vllm_caption.store.layout import (
    CAPTION_SUFFIX,
    MANIFEST,
    caption_name,
    is_reserved,
    is_temporary,
    temporary_caption_name,
    temporary_parts,
)
from vllm_caption.store.rows import CaptionTrace, hash_of

MAX_NAME_BYTES: Final = 255
MAX_CHAR_BYTES: Final = 4
"""The most bytes that one character takes in a file name."""
MAX_PATH_BYTES: Final = 4095
MAX_CAPTION_BYTES: Final = 64 * 2**20
"""A larger file cannot be a caption."""

SAME_MOMENT_S: Final = 0.2
"""The .txt is written right after its row is made: their times differ by at most this."""

State = Literal["there", "empty", "gone", "unreadable"]
Comparison = Literal["same", "edited", "gone", "unreadable"]


class Inspected(NamedTuple):
    """What is at the path of a caption: its ``text``, or the ``reason`` why it is gone or
    unreadable."""

    state: State
    text: str = ""
    reason: str = ""
    written_s: float = 0.0


class CaptionFiles:
    """The .txt files below one output folder. ``file`` is the name of an item in the input."""

    def __init__(
        self,
        root: Path,
        disk: Disk | None = None,
        folding: Folding | None = None,
        naming: CaptionName = "file",
    ) -> None:
        """``folding``: differences between names that the disk ignores; none by default."""
        self._root = os.fspath(root)
        self.naming: CaptionName = naming
        self.claims = Claims(folding or Folding(), naming)
        self._disk = disk or Disk()
        self._made: set[str] = set()

    def check_name(self, file: str) -> None:
        """Raise ItemError if no .txt can be named after ``file``, or if another item already has
        that name on this disk."""
        name = self.name(file)
        if is_reserved(self.claims.fold(name)):
            reason = (
                "its caption needs a folder with the name of a file that the job itself writes;"
            )
            reason += " rename the folder of the image"
            raise ItemError("output_conflict", reason)
        may_be_too_long = len(name) > MAX_NAME_BYTES // MAX_CHAR_BYTES
        if may_be_too_long and len(os.fsencode(os.path.basename(name))) > MAX_NAME_BYTES:
            reason = f"with {CAPTION_SUFFIX} the name is over {MAX_NAME_BYTES} bytes; shorten it"
            raise ItemError("bad_name", reason)
        if (other := self.claims.claim(file)) is not None:
            raise _collision(other, same_name=name == self.name(other))

    def name(self, file: str) -> str:
        """The path of the caption of ``file``, relative to the output folder."""
        return caption_name(file, self.naming)

    def path(self, file: str) -> str:
        """The full path of the caption of ``file``."""
        return f"{self._root}/{self.name(file)}"

    def read(self, file: str) -> str | None:
        """The caption on disk; None if there is none, or only an empty file.

        Raises ItemError if this one file cannot be read, OSError if the disk is at fault.
        """
        path = self.path(file)
        try:
            text = self._disk.attempt("caption", lambda: _read_text(path))
        except OSError as error:
            if judge(error.errno, "caption") == "item":  # no caption can be at such a path
                return None
            if error.errno not in OUTAGES:
                raise _denied("its .txt cannot be read", error) from error
            raise
        return None if text is None or is_blank(text) else text

    def compare(self, file: str, trace: CaptionTrace, *, surely: bool) -> Comparison:
        """Compare a .txt with the row that it was written from: still the "same" text, "edited" by
        somebody, "gone" (or blank), or "unreadable".

        A file with the size and the time of its row counts as the same: a stat of each of a million
        files takes seconds; reading them would take twice as long, or minutes over a network. Any
        other file is read and its text compared by hash. With ``surely`` every file is read: ask
        for that before replacing the text, since an edit can keep the size, and a copy the time.
        Raises OSError if the disk is at fault.
        """
        try:
            facts = os.stat(self.path(file))
        except (FileNotFoundError, NotADirectoryError):
            return "gone"
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return "gone"
            if error.errno not in OUTAGES:
                return "unreadable"
        else:
            if stat.S_ISDIR(facts.st_mode):
                return "gone"
            apart_s = abs(facts.st_mtime - trace.made_us / 1e6)
            if facts.st_size == trace.num_bytes and apart_s <= SAME_MOMENT_S and not surely:
                return "same"
        try:
            text = self.read(file)
        except ItemError:
            return "unreadable"
        if text is None:
            return "gone"
        return "same" if hash_of(text) == trace.text_hash else "edited"

    def inspect(self, file: str) -> Inspected:
        """Like `read`, but describes whatever is there; never blocks, for example on a FIFO."""
        try:
            descriptor = os.open(self.path(file), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError:
            return Inspected("gone")
        except OSError as error:
            nowhere = isinstance(error, NotADirectoryError) or error.errno == errno.ENAMETOOLONG
            state: State = "gone" if nowhere else "unreadable"
            return Inspected(state, reason=error.strerror or str(error))
        try:
            facts = os.fstat(descriptor)
            if stat.S_ISDIR(facts.st_mode):
                return Inspected("gone", reason="a folder is in its place")
            if not stat.S_ISREG(facts.st_mode):
                return Inspected("unreadable", reason="it is not a regular file")
            if facts.st_size > MAX_CAPTION_BYTES:
                reason = f"it has {facts.st_size:,} bytes, too many for a caption"
                return Inspected("unreadable", reason=reason)
            text = _text(descriptor, facts.st_size)
        except OSError as error:
            return Inspected("unreadable", reason=error.strerror or str(error))
        finally:
            os.close(descriptor)
        return Inspected("empty" if is_blank(text) else "there", text, written_s=facts.st_mtime)

    def check_place(self, file: str) -> None:
        """Raise ItemError if something on disk is in the way of this caption."""
        try:
            mode = self._disk.attempt("caption", lambda: os.stat(self.path(file)).st_mode)
        except FileNotFoundError:
            return
        except OSError as error:
            if refusal := _refusal(error):
                raise refusal from error
            if error.errno not in OUTAGES:
                raise _denied("its .txt cannot be looked at", error) from error
            raise
        if stat.S_ISDIR(mode):
            raise _conflict()

    def write(self, file: str, caption: str) -> None:
        """Write a caption, completely or not at all.

        Raises ItemError if this path cannot be written, OSError if the disk is at fault.
        """
        path = self.name(file)
        if len(os.fsencode(f"{self._root}/{path}")) > MAX_PATH_BYTES:  # no path could open it
            raise _too_long()
        folder, _, name = path.rpartition("/")
        temporary = temporary_caption_name(hashlib.sha1(os.fsencode(name)).hexdigest())
        temporary = f"{folder}/{temporary}" if folder else temporary
        content = caption.encode("utf-8")

        def write() -> None:
            self._make_folder(folder)
            write_file(path, content, dir_fd=self._root_fd, temporary=temporary)

        def write_or_make_folders_again() -> None:
            try:
                write()
            except FileNotFoundError:  # somebody removed a folder that we created
                self._made.clear()
                write()

        try:
            self._disk.attempt("caption", write_or_make_folders_again)
        except OSError as error:
            if refusal := _refusal(error):
                raise refusal from error
            if error.errno not in FULL | OUTAGES and self._root_takes_files():
                raise _denied("its .txt cannot be written", error) from error
            raise

    def _root_takes_files(self) -> bool:
        """Whether the output folder can be written, so that an error is about one path only."""
        name = temporary_caption_name(f"{threading.get_ident():020x}")
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o666, dir_fd=self._root_fd))
            os.unlink(name, dir_fd=self._root_fd)
        except OSError:
            return False
        return True

    @cached_property
    def _root_fd(self) -> int:
        """Everything is written below one opened folder: if another file system is mounted over it,
        captions stay with their rows."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        return self._disk.attempt("start", lambda: os.open(self._root, flags))

    def _make_folder(self, folder: str) -> None:
        missing: list[str] = []
        while folder and folder not in self._made:  # no recursion: folders may be a thousand deep
            missing.append(folder)
            folder = os.path.dirname(folder)
        for name in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=self._root_fd)
            self._made.add(name)

    def walk(self) -> Iterator[tuple[str, bool]]:
        """Yield (path relative to the output folder, whether it is temporary) of every .txt, and of
        every file that is being written or whose writer died. Links to folders are not followed."""
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                entries = os.scandir(f"{self._root}/{folder}")
            except OSError:
                continue  # gone, or unreadable: its .txt files show as unreadable, too
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


class NoCaptionFiles(CaptionFiles):
    """Replaces `CaptionFiles` with --no-txt: no name is too long or taken, no caption is edited,
    and no .txt is read, written or missed; an item is done when its row holds a caption."""

    def check_name(self, file: str) -> None:
        """Accept every name."""

    def read(self, file: str) -> str | None:
        """Always None: there is no .txt."""
        return None

    def compare(self, file: str, trace: CaptionTrace, *, surely: bool) -> Comparison:
        """Always the same: there is only the row."""
        return "same"

    def inspect(self, file: str) -> Inspected:
        """Always gone: there is no .txt."""
        return Inspected("gone")

    def check_place(self, file: str) -> None:
        """Do nothing: no path is needed."""

    def write(self, file: str, caption: str) -> None:
        """Do nothing: the row holds the caption."""

    def walk(self) -> Iterator[tuple[str, bool]]:
        """Yield only files that are being written or whose writer died."""
        return (found for found in super().walk() if found[1])


def open_captions(
    root: Path, naming: CaptionName, disk: Disk | None = None, folding: Folding | None = None
) -> CaptionFiles:
    """The .txt files of a folder with this naming."""
    kind = NoCaptionFiles if naming == "none" else CaptionFiles
    return kind(root, disk, folding, naming)


def _read_text(path: str) -> str | None:
    """The content of a regular file, None if there is no file; any other kind might block its
    reader forever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:  # as for nearly all captions
        return None
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(facts.st_mode):
            raise ItemError("output_conflict", "its .txt is not a regular file")
        if facts.st_size > MAX_CAPTION_BYTES:
            reason = f"its .txt has {facts.st_size:,} bytes, too many for a caption"
            raise ItemError("output_conflict", reason)
        return _text(descriptor, facts.st_size)
    finally:
        os.close(descriptor)


def _text(descriptor: int, num_bytes: int) -> str:
    """The text of an open file, as text mode would return it, but several times faster."""
    chunks = []
    while chunk := os.read(descriptor, num_bytes + 1):
        chunks.append(chunk)
    text = b"".join(chunks).decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def is_blank(text: str) -> bool:
    """Whether a .txt holds no caption, only white space, an editor's byte order mark, or the zeros
    that a power loss leaves on some file systems."""
    return not text.strip("\0\ufeff \t\r\n").strip()


def _conflict() -> ItemError:
    reason = "another item's caption is a file where this one needs a folder, or the reverse"
    return ItemError("output_conflict", reason)


def _collision(other: str, *, same_name: bool) -> ItemError:
    """``other`` already has this .txt."""
    shown = printable(other)
    if same_name:
        reason = f"its .txt is that of {shown}, whose name differs only in its ending"
        remedy = "rename one of them, or use --caption-name file with another --output"
    else:
        reason = f"on this disk its .txt is that of {shown}, whose name differs only in case or"
        reason, remedy = f"{reason} accents", "rename one of them, or choose another --output"
    return ItemError("output_conflict", f"{reason}; {remedy}")


def _too_long() -> ItemError:
    return ItemError("bad_name", "its path below --output is too long; choose a shorter --output")


def _refusal(error: OSError) -> ItemError | None:
    """The error as a failure of the item; None if the disk is to blame."""
    if error.errno in CONFLICTS:
        return _conflict()
    if error.errno == errno.ENAMETOOLONG:
        return _too_long()
    if judge(error.errno, "caption") == "item":
        reason = f"the file system of --output does not allow such a name ({error.strerror})"
        return ItemError("bad_name", f"{reason}; rename it, or choose another --output")
    return None


def _denied(what: str, error: OSError) -> ItemError:
    """A lasting denial, or an unexpected error, about one file or folder."""
    remedy = "give this user the rights to its folder"
    if error.errno not in DENIALS:
        remedy = "check its folder, or choose another --output"
    return ItemError("output_conflict", f"{what} ({error.strerror}); {remedy}")
