"""A contestant's record of itself: captions written to disk one by one, each with its time."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.throughput.outcome import Outcome


class Record:
    """Writes .txt files as the simplest script would, and keeps the times."""

    def __init__(self, output: str) -> None:
        self._root = Path(output)
        self.ready_at: list[float] = []
        self._finished_at: dict[str, float] = {}
        self._captions: dict[str, str] = {}

    def ready(self) -> None:
        """Record that an engine can take its first request."""
        self.ready_at.append(time.time())

    def write(self, file: str, caption: str) -> None:
        """Write one caption to its .txt."""
        path = self._root / f"{file}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(caption, "utf-8")
        self._captions[file] = caption
        self._finished_at[file] = time.time()

    def outcome(self, started_at: float) -> Outcome:
        """The whole run."""
        return Outcome(started_at, self.ready_at, self._finished_at, self._captions)
