"""How long this process stood still, seen from a clock that should tick evenly. Pure.

A machine that is suspended, a job that is stopped (SIGSTOP, a debugger), or a loop that waited for
a slow disk: nothing could be heard meanwhile, so nobody was silent.
"""

from __future__ import annotations

from typing import Final

MIN_PAUSE_S: Final = 2.0
"""Less is a busy machine."""


class StandStill:
    """Looks at the clock with each tick."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._last_s: float | None = None

    def since_last_tick_s(self, now_s: float) -> float:
        """Seconds by which the tick came too late; 0 for a tick that came about in time."""
        last_s, self._last_s = self._last_s, now_s
        if last_s is None:
            return 0.0
        pause_s = now_s - last_s - self._tick_s
        return pause_s if pause_s >= MIN_PAUSE_S else 0.0
