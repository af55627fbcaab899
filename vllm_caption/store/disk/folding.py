"""Which captions would have one name, and which item has that name.

A disk that folds case, or composes accents, is asked once, by a file that is then looked for under
another spelling. There, `Star.png` and `star.png` have one .txt; where captions are named by their
stems, so have `star.png` and `star.jpg` everywhere. Whose it is decides this: the item whose row
holds a caption, else the one that comes first in the input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from vllm_caption.config import CaptionName
from vllm_caption.store.layout import LOCK, PROBE, caption_name


class Folding(NamedTuple):
    """What a disk does not tell apart: upper and lower ``case``; an accented letter and the letter
    with its accent behind it (``accents``)."""

    case: bool = False
    accents: bool = False

    def key(self, name: str) -> str:
        """The same for all spellings of one name. Where case is folded, more may be the same here
        than on the disk (ß and ss): one item too many is refused, none is overwritten."""
        if self.accents:
            name = normalize("NFC", name)
        return name.casefold() if self.case else name


def ask_disk(folder: Path) -> Folding:
    """What the disk of a folder does not tell apart. Writes a probe file, and removes it."""
    probe = folder / PROBE
    try:
        probe.touch()
        return Folding(
            case=_exists(folder / _other_case(PROBE)),
            accents=_exists(folder / normalize("NFD", PROBE)),
        )
    except OSError:  # a disk that takes no accents
        return look_at_disk(folder)
    finally:
        for _ in range(2):  # a disk that fails for a moment is asked again
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


def look_at_disk(folder: Path) -> Folding:
    """The same without writing: of a folder that had a run, whether its disk folds case."""
    return Folding(case=_exists(folder / LOCK) and _exists(folder / _other_case(LOCK)))


def _other_case(name: str) -> str:
    return "".join(letter.upper() if letter.isascii() else letter for letter in name)


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


class Claims:
    """Whose each .txt is, where those of several items can meet. Remembers nothing elsewhere."""

    def __init__(self, folding: Folding, naming: CaptionName = "file") -> None:
        self._folding = folding
        self._naming = naming
        self._can_meet = any(folding) or naming == "stem"
        self._owners: dict[str, str] = {}

    def fold(self, name: str) -> str:
        """The name of a .txt, in the one spelling that counts on this disk."""
        return self._folding.key(name)

    def key(self, file: str) -> str:
        """The .txt of an item, in that spelling."""
        return self._folding.key(caption_name(file, self._naming))

    def record(self, files: Iterable[str]) -> None:
        """These have captions; of several with one name the last one, which wrote last."""
        if self._can_meet:
            self._owners.update((self.key(file), file) for file in files)

    def claim(self, file: str) -> str | None:
        """Give ``file`` its name, unless another item has it: that one is returned."""
        if not self._can_meet:
            return None
        owner = self._owners.setdefault(self.key(file), file)
        return None if owner == file else owner
