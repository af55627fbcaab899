"""The source for a folder of images: every image file below it is an item.

Files are recognised by their suffix and not opened; those with another are counted, except for
sidecars. Hidden files and folders are skipped, and so is an output folder inside. A link to a
folder is not followed, but reported.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vllm_caption.config import InputConfig, check_folder, is_archive, is_table
from vllm_caption.errors import UsageError
from vllm_caption.formatting import encodable_name, printable
from vllm_caption.inputs.source import (
    IMAGE_SUFFIXES,
    SIDECAR_SUFFIXES,
    Element,
    Group,
    Nouns,
    is_image_name,
    refuse_columns,
    refuse_prompt_columns,
    suffix_of,
)
from vllm_caption.items import Document, SkippedDocument

_INSTEAD: Final = {
    ".gz": "or unpack it first",
    ".tgz": "or unpack it first",
    ".zip": "or unpack it first",
    ".json": "or write one object on each line, as .jsonl",
    ".xlsx": "or save it as .csv",
}
"""What to do with files that cannot be an input."""


_LINK: Final = "//"


@dataclass(slots=True)
class _Folder:
    """A folder that is being read. ``left``: its entries still to come, in reverse order."""

    below: str
    document: Document
    left: list[str]
    num_images: int = 0


class ImageFolder:
    """The images below one folder, sorted by path."""

    def __init__(self, config: InputConfig, folder: Path) -> None:
        self._config = config
        self.nouns = Nouns("folder", "image")
        self.left_out: Counter[str] = Counter()
        self._folder = os.fspath(folder)
        self._name = encodable_name(os.path.basename(os.path.abspath(folder)))  # noqa: PTH100, PTH119
        self._without: frozenset[tuple[int, int]] = frozenset()

    def check(self) -> None:
        """Check that it is a folder."""
        refuse_columns(self._config, "--image-column", "--id-column", "--type-column")
        path = Path(self._folder)
        if os.path.isfile(path):  # noqa: PTH113 (never raises)
            instead = _INSTEAD.get(path.suffix.lower(), "or a folder of images")
            if is_image_name(path.name):
                instead = f"or the folder that it is in: {path.parent}"
            remedy = "is neither a folder nor a .jsonl, .csv, .tsv, .parquet or .tar; name one"
            raise UsageError("--input", path, f"{remedy}, {instead}")
        check_folder("--input", path, "a folder of images, a table of them or a tar")
        refuse_prompt_columns(self._config, f"{path} is a folder of images, which has")

    def num_documents(self) -> int | None:
        """None: only a walk can tell."""
        return None

    def documents(self) -> Iterator[Group | SkippedDocument]:
        """Each folder with images is a document. Files and folders are sorted together by full
        path, so the images of a folder may come in several groups, with subfolders in between."""
        self._without = frozenset(_identities(self._config.without))
        self.left_out.clear()
        opened: list[_Folder] = []  # no recursion: folders may be nested a thousand deep
        yield from self._open("", opened)
        while opened:
            folder, files = opened[-1], []
            while folder.left and not folder.left[-1].endswith("/"):
                files.append(Element({"file": folder.below + folder.left.pop()}, ""))
            if files:
                yield Group(folder.document, files, folder.num_images)
                folder.num_images += len(files)
            if folder.left:
                yield from self._open(folder.below + folder.left.pop(), opened)
            else:
                opened.pop()

    def _open(self, below: str, opened: list[_Folder]) -> Iterator[SkippedDocument]:
        """Add a folder to the open ones; yields what is skipped in it."""
        path = os.path.join(self._folder, below)  # noqa: PTH118 (for every folder)
        name = encodable_name(below.rstrip("/")) or self._name
        try:
            with os.scandir(path) as entries:
                found = sorted(filter(None, map(self._named, entries)), reverse=True)
        except OSError as error:
            reason = f"the folder cannot be read: {error.strerror}"
            yield SkippedDocument(name, "unreadable", reason)
            return
        for link in filter(lambda name: name.endswith(_LINK), found):
            what = encodable_name(below + link.removesuffix(_LINK))
            reason = "it is a link to a folder, which is not followed; name that folder itself"
            yield SkippedDocument(what, "not_a_file", reason)
        left = [entry for entry in found if not entry.endswith(_LINK)]
        opened.append(_Folder(below, Document(name), left))

    def _named(self, entry: os.DirEntry[str]) -> str | None:
        """The name of an entry that is not skipped, followed by a slash for a folder, or by two for
        a link to one."""
        if entry.name.startswith("."):
            return None
        try:
            if entry.is_dir():
                found = entry.stat()  # not its real path, which takes a stat of each parent folder
                if (found.st_dev, found.st_ino) in self._without:
                    return None
                return f"{entry.name}{_LINK if entry.is_symlink() else '/'}"
        except OSError:  # a circular link; if named like an image, it becomes a failed item
            pass
        if is_image_name(entry.name):
            return entry.name
        if (suffix := suffix_of(entry.name)) not in SIDECAR_SUFFIXES:
            self.left_out[suffix] += 1
        return None

    def empty_error(self) -> UsageError:
        """The error if no file is an image by name."""
        for name in sorted(os.listdir(self._folder)):  # noqa: PTH208
            path = Path(self._folder, name)
            is_file = os.path.isfile(path)  # noqa: PTH113 (never raises)
            if is_archive(path) or (is_file and is_table(path)):
                remedy = f"holds no images, but {printable(encodable_name(name))}; name that"
                return UsageError("--input", self._folder, remedy)
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        return UsageError("--input", self._folder, f"no file below it ends in one of {known}")


def _identities(folders: Iterable[Path]) -> Iterator[tuple[int, int]]:
    """Device and inode of the folders that exist: the same under any path."""
    for folder in folders:
        with suppress(OSError):
            found = folder.stat()
            yield found.st_dev, found.st_ino
