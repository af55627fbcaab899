"""Which captions would share one .txt, and which item owns it.

Whether the file system folds case or composes accents is tested once, by creating a file and
looking it up under another spelling. If so, `Star.png` and `star.png` share a .txt; if captions are
named by stem, `star.png` and `star.jpg` do on every file system. The .txt belongs to the item whose
row holds a caption, or else to the one that comes first in the input.
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
    """What a file system treats as equal: upper and lower ``case``; a composed accented letter and
    the letter followed by its combining accent (``accents``)."""

    case: bool = False
    accents: bool = False

    def key(self, name: str) -> str:
        """The same for all spellings of one name. With case, more may be equal here than on disk
        (ß and ss): then an item is refused needlessly, but none is overwritten."""
        if self.accents:
            name = normalize("NFC", name)
        return name.casefold() if self.case else name


def probe_folding(folder: Path) -> Folding:
    """What the file system of a folder treats as equal. Writes and removes a probe file."""
    probe = folder / PROBE
    try:
        probe.touch()
        return Folding(
            case=_exists(folder / _other_case(PROBE)),
            accents=_exists(folder / normalize("NFD", PROBE)),
        )
    except OSError:  # the file system does not allow accents
        return infer_folding(folder)
    finally:
        for _ in range(2):  # try again if the disk fails for a moment
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


def infer_folding(folder: Path) -> Folding:
    """Like `probe_folding`, but only for case and without writing: looks for the lock file of an
    earlier run."""
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
    """Who owns each .txt, if several items can share one; otherwise remembers nothing."""

    def __init__(self, folding: Folding, naming: CaptionName = "file") -> None:
        self._folding = folding
        self._naming = naming
        self._can_meet = any(folding) or naming == "stem"
        self._owners: dict[str, str] = {}

    def fold(self, name: str) -> str:
        """The name of a .txt, in one spelling for all that are equal on this file system."""
        return self._folding.key(name)

    def key(self, file: str) -> str:
        """The name of an item's .txt, in that spelling."""
        return self._folding.key(caption_name(file, self._naming))

    def record(self, files: Iterable[str]) -> None:
        """Record that these items have captions; if several share a .txt, the last one owns it."""
        if self._can_meet:
            self._owners.update((self.key(file), file) for file in files)

    def claim(self, file: str) -> str | None:
        """Give ``file`` its .txt; if another item already owns that, return the other item."""
        if not self._can_meet:
            return None
        owner = self._owners.setdefault(self.key(file), file)
        return None if owner == file else owner
