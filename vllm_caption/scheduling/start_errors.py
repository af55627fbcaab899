"""Is it hopeless to start engines? Decided from the errors of those that did not start.

A machine on which no engine can start gives each of them the same error; told once, at once, it
helps more than the same error from every engine and every further try.
"""

from __future__ import annotations

import re
from typing import Final

ENGINES_TO_CONCLUDE: Final = 2
"""One engine alone may have a GPU that is broken."""
_VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?")
"""Process ids, devices, addresses and sizes: two errors that differ in these are the same."""


class StartErrors:
    """The engines of one run that did not start."""

    def __init__(self, num_engines: int) -> None:
        self._to_conclude = min(ENGINES_TO_CONCLUDE, num_engines)
        self._engines: dict[str, set[int]] = {}
        self.none_was_up = True

    def came_up(self) -> None:
        """An engine started, so the others can too."""
        self.none_was_up = False
        self._engines.clear()

    def add(self, engine: int, error: str) -> bool:
        """An engine ended its own start with this error. True: no engine will start."""
        if not self.none_was_up:
            return False
        engines = self._engines.setdefault(_VARYING.sub("#", error), set())
        engines.add(engine)
        return len(engines) >= self._to_conclude
