"""How values appear in messages: durations, errors, names, and the sections that commands print.

Pure functions from a value to text. Invariant: whatever a file name, a document or a library puts
into a value, the text that `printable`, `encodable`, `encodable_name` and `first_line` return can
be encoded as UTF-8; that of `printable` and `first_line` has no control characters.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Final, TypeVar

Name = TypeVar("Name", bound=str)
_LABEL_WIDTH: Final = 11
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
INDENT: Final = " " * _LABEL_WIDTH
"""What the second and later lines of a section start with."""
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
    """The first line of a section: the label in a column, then the text."""
    return f"{label:{_LABEL_WIDTH}}{text}"


# --- durations -------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """A duration in words: 250 ms, 2.4 s, 45 s, 7.5 minutes, 3.2 hours or 5.8 days."""
    if seconds >= 2 * _DAY:
        return f"{seconds / _DAY:.1f} days"
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} hours"
    if seconds >= _MINUTE:
        return f"{seconds / _MINUTE:.1f} minutes"
    value, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


def clock(seconds: float | None) -> str:
    """A duration that changes every second: 01:23, 2:01:23 or 5 d 02:01; ? if unknown."""
    if seconds is None:
        return "?"
    minutes, second = divmod(int(seconds), _MINUTE)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute:02}:{second:02}"


def moment(then: datetime, now: datetime) -> str:
    """A time of day, with the day if it is not today: 14:05, Tue 14:05 or 11 Dec 14:05."""
    days = (then.date() - now.date()).days
    day = "" if not days else "%a " if 0 < days < 7 else "%-d %b "
    return then.strftime(f"{day}%H:%M" if then.year == now.year or days < 7 else "%-d %b %Y")


# --- values from outside ---------------------------------------------------------------------


def first_line(error: BaseException, max_chars: int = 500, *, skip: tuple[str, ...] = ()) -> str:
    """The first line of an error's text that is not blank, else the name of its type.

    ``skip``: lines that start with one of these are skipped, unless there is no other line."""
    lines = [_on_one_line(line) for line in str(error).splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    return next((line for line in lines if not line.startswith(skip)), lines[0])[:max_chars]


def _on_one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def encodable(text: str) -> str:
    """The text with each lone surrogate (half a character) replaced by \ufffd."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encodable_name(name: str) -> str:
    """A file system name as text that can be stored: bytes that are not UTF-8 become ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(value: object) -> str:
    """Any JSON value as text of bounded length: strings as they are, anything else as JSON, with
    control characters and surrogates escaped."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except RecursionError:
            value = JSON_TYPES[type(value)]
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", value[:MAX_SHOWN_CHARS])


def flag_of(name: str) -> str:
    """The flag of a setting: `--max-num-seqs` for `max_num_seqs`."""
    return f"--{name.replace('_', '-')}"


def command_line(arguments: Iterable[str]) -> str:
    """The line for a shell that starts this program with these arguments."""
    return shlex.join(["python", "-m", "vllm_caption", *arguments])


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Suggest the name that ``word`` is closest to, or that starts with it; "" if there is none."""
    longer = [name for name in known if len(word) > 4 and name.startswith(word)]
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, 1, 0.7)
    meant = min(longer, key=len) if longer else by_lower[near[0]] if near else None
    return f"did you mean {meant}?" if meant is not None else ""


# --- counts ----------------------------------------------------------------------------------


def counted(number: int, noun: str) -> str:
    """Such as 1 caption, or 2,000 captions."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def tally(counts: Mapping[Name, int]) -> str:
    """The names with their counts, most frequent first: decode_error 2, poison 1."""
    by_count = sorted(counts.items(), key=lambda count: -count[1])
    return ", ".join(f"{name} {number:,}" for name, number in by_count)


def with_example(kind: str, number: int, example: str) -> str:
    """One kind of problem: missing_file 5, e.g. a.png: there is no such file."""
    return f"{kind} {number:,}, e.g. {example}"


def byte_size(number: float) -> str:
    """Such as 170.7 KiB."""
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
