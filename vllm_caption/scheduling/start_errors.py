"""Decides from the errors of engines that did not start whether any engine can.

If no engine can start on a machine, all fail with the same error. Reporting that once, at once,
helps more than repeating it for every engine and every restart.
"""

from __future__ import annotations

import re
from typing import Final

ENGINES_TO_CONCLUDE: Final = 2
"""A single engine may just have a broken GPU."""
_VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?")
"""Process ids, devices, addresses and sizes: errors that differ only in these are the same."""


class StartErrors:
    """The engines of one run that did not start."""

    def __init__(self, num_engines: int) -> None:
        self._to_conclude = min(ENGINES_TO_CONCLUDE, num_engines)
        self._engines: dict[str, set[int]] = {}
        self.none_was_up = True

    def came_up(self) -> None:
        """An engine started, so the others can, too."""
        self.none_was_up = False
        self._engines.clear()

    def add(self, engine: int, error: str) -> bool:
        """An engine failed to start with this error; returns whether none will ever start."""
        if not self.none_was_up:
            return False
        engines = self._engines.setdefault(_VARYING.sub("#", error), set())
        engines.add(engine)
        return len(engines) >= self._to_conclude
