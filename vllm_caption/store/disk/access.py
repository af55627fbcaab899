"""What in an output folder this user has no rights to use, such as files of another user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vllm_caption.store.layout import JOURNAL, LOCK, LOGS, MANIFEST, NAMING, RECIPES, parts

_READ: Final = os.R_OK
_CHANGE: Final = os.R_OK | os.W_OK
_USE: Final = os.R_OK | os.W_OK | os.X_OK
"""Of a folder: list it, and create files in it."""


def first_denied(folder: Path) -> Path | None:
    """The first file or folder that a run must read or change, but may not; None if there is none.
    ``folder``: an output folder or that of a shard. Captions are not looked at."""
    for path, rights in _needed(folder):
        if os.path.lexists(path) and not os.access(path, rights, effective_ids=True):
            return path
    return None


def _needed(folder: Path) -> Iterator[tuple[Path, int]]:
    """In this order, so that a folder is listed only if that is allowed."""
    yield folder, _USE
    for name in (MANIFEST, LOGS):
        yield folder / name, _USE
    for name in (LOCK, JOURNAL):
        yield folder / name, _CHANGE
    for name in (NAMING, RECIPES):
        yield folder / name, _READ
    for path in parts(folder / MANIFEST):
        yield path, _READ
