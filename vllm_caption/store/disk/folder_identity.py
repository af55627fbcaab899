"""Whether a folder is still the one it was: mounts come and go during a run of days."""

from __future__ import annotations

from pathlib import Path


class FolderIdentity:
    """Which folder a path led to at first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identity = self._look()

    def still_there(self) -> bool:
        """False where the folder is gone, or the path leads to another one."""
        return self._identity is not None and self._look() == self._identity

    def is_another(self) -> bool:
        """True where it is known that the folder is gone, or that the path leads to another one: a
        disk that fails for a moment does not say so."""
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
