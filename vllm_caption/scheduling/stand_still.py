"""How long this process stood still, judged by ticks that should be even. Pure.

While the machine is suspended, the job is stopped (SIGSTOP, a debugger) or the loop waits for a
slow disk, no message is received, so no worker can be called silent.
"""

from __future__ import annotations

from typing import Final

MIN_PAUSE_S: Final = 2.0
"""A shorter pause is just a busy machine."""


class StandStill:
    """Compares the clock at each tick with the tick before."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._last_s: float | None = None

    def since_last_tick_s(self, now_s: float) -> float:
        """Seconds by which the tick is late; 0 if it is roughly on time."""
        last_s, self._last_s = self._last_s, now_s
        if last_s is None:
            return 0.0
        pause_s = now_s - last_s - self._tick_s
        return pause_s if pause_s >= MIN_PAUSE_S else 0.0
