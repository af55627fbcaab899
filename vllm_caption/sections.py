"""The layout of what `plan`, `status` and `verify` print: a label, then its text; durations."""

from __future__ import annotations

from typing import Final

_LABEL_WIDTH: Final = 11
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
INDENT: Final = " " * _LABEL_WIDTH
"""Of lines that belong to the section above them."""


def section(label: str, text: str) -> str:
    """The first line of a section."""
    return f"{label:{_LABEL_WIDTH}}{text}"


def duration(seconds: float) -> str:
    """As 45 s, 7.5 minutes, 3.2 hours or 5.8 days; 1 s at least."""
    if seconds >= 2 * _DAY:
        return f"{seconds / _DAY:.1f} days"
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} hours"
    return f"{seconds / _MINUTE:.1f} minutes" if seconds >= _MINUTE else f"{max(seconds, 1):.0f} s"
