"""How values appear in messages: names, durations, errors, and the sections that commands print."""

from __future__ import annotations

import json
import os
import re
from typing import Final

_LABEL_WIDTH: Final = 11
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
INDENT: Final = " " * _LABEL_WIDTH
"""Of lines that belong to the section above them."""
MAX_SHOWN_CHARS: Final = 200
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
JSON_TYPES: Final[dict[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


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


def encodable_name(name: str) -> str:
    """A file system name as text for records: bytes that are not UTF-8 are shown as ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(value: object) -> str:
    """Any JSON value as text of bounded length: a string as it is, the rest as JSON,
    and what no terminal or column should hold as an escape."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except RecursionError:
            value = JSON_TYPES[type(value)]
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", value[:MAX_SHOWN_CHARS])


def first_line(error: BaseException, skip: tuple[str, ...] = ()) -> str:
    """The first line of an error that says something: its type if there is none. Lines that start
    with one of ``skip`` count only if there is no other."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(skip)]
    return (telling or lines or [type(error).__name__])[0]
