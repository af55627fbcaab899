"""Whether a path still leads to the same folder: mounts come and go during a run of days."""

from __future__ import annotations

from pathlib import Path


class FolderIdentity:
    """The folder that a path led to at the start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identity = self._look()

    def still_there(self) -> bool:
        """Whether the path still leads to that folder."""
        return self._identity is not None and self._look() == self._identity

    def is_another(self) -> bool:
        """Whether the folder is certainly gone, or the path certainly leads to another one. False
        while the disk fails and nobody knows."""
        try:
            found = self._folder.stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return self._identity not in (None, (found.st_dev, found.st_ino))

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._folder.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino
