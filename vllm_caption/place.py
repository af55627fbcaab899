"""Whether a folder is still the one it was: mounts come and go under a run of days."""

from __future__ import annotations

from pathlib import Path


class Place:
    """One existing folder, as it is now. Raises OSError where there is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identity = self._look()

    def still_there(self) -> bool:
        """False where the folder is gone, or something else lies in its place."""
        try:
            return self._look() == self._identity
        except OSError:
            return False

    def _look(self) -> tuple[int, int]:
        found = self._folder.stat()
        return found.st_dev, found.st_ino
