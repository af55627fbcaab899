"""The source that is a folder of images: every image file below it is an item.

Files are told by their endings and not opened. Hidden files and folders are passed over, and so is
the output folder where it lies inside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vllm_caption.config import InputConfig, check_folder
from vllm_caption.errors import UsageError
from vllm_caption.formatting import encodable_name
from vllm_caption.inputs.source import Element, Group
from vllm_caption.items import Document, SkippedDocument

SUFFIXES: Final = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".gif", ".bmp", ".webp"),
        *(".tif", ".tiff", ".ico", ".cur", ".avif"),
    )
)


def is_image_name(name: str) -> bool:
    """Whether a file name has the ending of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (for every file)


class ImageFolder:
    """The images below one folder, in the order of their paths."""

    def __init__(self, config: InputConfig, folder: Path) -> None:
        self._folder = os.fspath(folder)
        self._without = frozenset(os.path.realpath(path) for path in config.without)

    def check(self) -> None:
        """It is a folder."""
        check_folder("--input", Path(self._folder), "a folder of images, or a table of them")

    def num_documents(self) -> int | None:
        """Only a walk tells."""
        return None

    def documents(self) -> Iterator[Group | SkippedDocument]:
        """Each folder that has images is one."""
        yield from self._walk("")

    def _walk(self, below: str) -> Iterator[Group | SkippedDocument]:
        """Files and folders in one order, that of their whole paths: a folder's images may thus
        come in several groups, with its folders between them."""
        path = os.path.join(self._folder, below)  # noqa: PTH118 (for every folder)
        document = Document(encodable_name(below.rstrip("/") or Path(self._folder).name))
        try:
            with os.scandir(path) as entries:
                found = sorted(filter(None, map(self._named, entries)))
        except OSError as error:
            reason = f"the folder cannot be read: {error.strerror}"
            yield SkippedDocument(document.name, "unreadable", reason)
            return
        files: list[Element] = []
        index = 0
        for name in found:
            if not name.endswith("/"):
                files.append(Element({"file": below + name}, ""))
                continue
            if files:
                yield Group(document, files, index)
                index, files = index + len(files), []
            yield from self._walk(below + name)
        if files:
            yield Group(document, files, index)

    def _named(self, entry: os.DirEntry[str]) -> str | None:
        """The name of an entry that counts, with a slash after that of a folder."""
        if entry.name.startswith("."):
            return None
        try:
            if entry.is_dir(follow_symlinks=False):
                return None if os.path.realpath(entry.path) in self._without else f"{entry.name}/"
        except OSError:
            return None
        return entry.name if is_image_name(entry.name) else None

    def nothing(self) -> UsageError:
        """No file is an image by its name."""
        known = ", ".join(sorted(SUFFIXES))
        return UsageError("--input", self._folder, f"no file below it ends in one of {known}")
