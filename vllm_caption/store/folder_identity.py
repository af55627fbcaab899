"""Whether a folder is still the one it was: mounts come and go under a run of days."""

from __future__ import annotations

import math
import time
from pathlib import Path

from vllm_caption.images.object_store import still_answers

BELIEVED_S = 5.0


class Place:
    """One folder, as it is now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identity = self._look()

    def still_there(self) -> bool:
        """False where the folder is gone, or something else lies in its place."""
        return self._identity is not None and self._look() == self._identity

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._folder.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


class RemotePlace:
    """A root that is a URI."""

    def __init__(self, images_root: str) -> None:
        self._images_root = images_root
        self._answered_s = -math.inf

    def still_there(self) -> bool:
        """False where the service, the bucket or the rights to it are gone.

        An answer stands for some seconds, so that a million absent objects are not a million
        requests.
        """
        if time.monotonic() - self._answered_s < BELIEVED_S:
            return True
        if not still_answers(self._images_root):
            return False
        self._answered_s = time.monotonic()
        return True
