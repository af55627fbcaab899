"""One .txt per caption, visible only whole: temporary name, then rename.

Invariant: a name that was refused by `check_name` never reaches the disk, so nothing outside the
output folder is read or written.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Final

from vllm_caption.errors import ItemError

SUFFIX = ".txt"
MAX_NAME_BYTES = 255
_RESERVED: Final = re.compile(
    r"(?:manifest\.parquet|documents\.parquet|recipes\.json|status\.json|journal\.jsonl"
    r"|\.(?:documents\.parquet|recipes\.json|status\.json)\.tmp|\.run\.(?:lock|owner\.json)"
    r"|logs/[^/]*\.log)/"
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
        path = self.path(file)
        folder, name = os.path.split(path)
        temporary = f"{folder}/.{hashlib.sha1(os.fsencode(name)).hexdigest()[:20]}.tmp"
        try:
            self._make_folder(folder)
            with open(temporary, "wb") as out:
                out.write(caption.encode("utf-8"))
            os.replace(temporary, path)
        except OSError as error:
            if refusal := _refusal(error):
                raise refusal from error
            raise

    def _make_folder(self, folder: str) -> None:
        if folder not in self._made:
            os.makedirs(folder, exist_ok=True)
            self._made.add(folder)


def _conflict() -> ItemError:
    reason = "another item's caption is a file where this one needs a folder, or the reverse"
    return ItemError("output_conflict", reason)


def _refusal(error: OSError) -> ItemError | None:
    """The item's fault, if it is one, rather than the disk's."""
    if isinstance(error, _OBSTACLES):
        return _conflict()
    if error.errno == errno.ENAMETOOLONG:
        return ItemError("bad_name", "below --output its path is too long; take a shorter --output")
    return None
