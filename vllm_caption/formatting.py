"""How values appear in messages: names, durations, errors, and the sections that commands print."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
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


# --- counts ----------------------------------------------------------------------------------


def counted(number: int, noun: str) -> str:
    """As 1 caption or 2,000 captions."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def tally(counts: Mapping[str, int]) -> str:
    """Every name with its count, in the order given: decode_error 2, poison 1."""
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())


def with_example(kind: str, number: int, example: str) -> str:
    """One kind of problem: missing_file 5, e.g. a.png: there is no such file."""
    return f"{kind} {number:,}, e.g. {example}"


def byte_size(number: float) -> str:
    """As 170.7 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def join_lines(lines: Iterable[str], max_chars: int) -> str:
    """The lines as one text; a line longer than ``max_chars`` ends in an ellipsis."""
    return "\n".join(
        line if len(line) <= max_chars else f"{line[: max_chars - 1]}…" for line in lines
    )
