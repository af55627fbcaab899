"""One .txt per caption, visible only whole: temporary name, then rename.

Invariant: a name that was refused by `check_name` never reaches the disk, so nothing outside the
output folder is read or written.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vllm_caption.errors import ItemError

SUFFIX = ".txt"
MAX_NAME_BYTES = 255
RESERVED_FOLDERS = frozenset({"manifest.parquet"})
"""Folders of the output that are read as one dataset, where a .txt would be in the way."""


class CaptionFiles:
    """The .txt files below one output folder. ``file`` is an item's name in the manifests."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)
        self._made: set[str] = set()

    def check_name(self, file: str) -> None:
        """Raise ItemError when no .txt can be named after ``file``."""
        if file.split("/", 1)[0] in RESERVED_FOLDERS:
            raise ItemError("output_conflict", "its caption would lie inside manifest.parquet/")
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
            if error.errno == 36:  # ENAMETOOLONG: such a path cannot hold a caption
                return None
            raise
        return text if text.strip() else None

    def write(self, file: str, caption: str) -> None:
        """Put a caption on disk, whole or not at all.

        Raises ItemError where another item's output stands in the way, OSError for the disk.
        """
        path = self.path(file)
        folder, name = os.path.split(path)
        temporary = f"{folder}/.{hashlib.sha1(os.fsencode(name)).hexdigest()[:20]}.tmp"
        try:
            self._make_folder(folder)
            with open(temporary, "wb") as out:
                out.write(caption.encode("utf-8"))
            os.replace(temporary, path)
        except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
            raise ItemError(
                "output_conflict",
                "another item's caption is a file where this one needs a folder, or the reverse",
            ) from error

    def _make_folder(self, folder: str) -> None:
        if folder not in self._made:
            os.makedirs(folder, exist_ok=True)
            self._made.add(folder)
