"""The layout of what `plan`, `status` and `verify` print: a label, then its text."""

from __future__ import annotations

from typing import Final

_LABEL_WIDTH: Final = 11
INDENT: Final = " " * _LABEL_WIDTH
"""Of lines that belong to the section above them."""


def section(label: str, text: str) -> str:
    """The first line of a section."""
    return f"{label:{_LABEL_WIDTH}}{text}"
