"""How values appear in messages: durations, errors, names, and the sections that commands print.

Functions from a value to text, pure but for `recorded_moment`, which reads the clock. Invariant:
whatever a file name, a document or a library puts into a value, the text that `printable`,
`encodable`, `encodable_name` and `first_line` return can be encoded as UTF-8; that of `printable`
and `first_line` has no control characters.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

Name = TypeVar("Name", bound=str)
_LABEL_WIDTH: Final = 11
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_UNITS: Final = (
    (_DAY, _HOUR, "d", "h"),
    (_HOUR, _MINUTE, "h", "min"),
    (_MINUTE, 1, "min", "s"),
)
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


# --- durations and times ---------------------------------------------------------------------


def duration(seconds: float) -> str:
    """A duration in at most two units: 250 ms, 2.4 s, 45 s, 7 min 30 s, 3 h 12 min or 5 d 19 h."""
    if 0 < seconds < 0.9995:
        return f"{1000 * seconds:.{0 if seconds >= 0.00995 else 1}f} ms"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    for size, part, name, part_name in _UNITS:
        if (parts := round(seconds / part)) * part >= size:
            number, rest = divmod(parts, size // part)
            return f"{number:,} {name}" + (f" {rest} {part_name}" if rest else "")
    return f"{seconds:.0f} s"


def moment(then: datetime, now: datetime) -> str:
    """A time of day, with the day if it is not today: 14:05, Tue 14:05 or 11 Dec 14:05."""
    days = (then.date() - now.date()).days
    day = "" if not days else "%a " if 0 < days < 7 else "%-d %b "
    return then.strftime(f"{day}%H:%M" if then.year == now.year or -180 < days < 7 else "%-d %b %Y")


def recorded_moment(at: str, now: datetime | None = None) -> str:
    """A time that a file holds, as `moment` shows it; as it is if somebody edited the file."""
    now = now or datetime.now().astimezone()
    try:
        return moment(datetime.fromisoformat(at).astimezone(now.tzinfo), now)
    except (ValueError, OverflowError):
        return printable(at)


def date_and_time(at: str) -> str:
    """A recorded time for a text that is read anywhere and later: 30 Nov 2026, 10:53 UTC."""
    try:
        return datetime.fromisoformat(at).astimezone(UTC).strftime("%-d %b %Y, %H:%M UTC")
    except (ValueError, OverflowError):
        return printable(at)


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
    """Suggest the name that was meant by ``word``; "" if there is none."""
    meant = closest(word, known)
    return f"did you mean {meant}?" if meant is not None else ""


def closest(word: str, known: Collection[str]) -> str | None:
    """The name that ``word`` is closest to, or that starts with it."""
    longer = [name for name in known if len(word) > 4 and name.startswith(word)]
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, 1, 0.7)
    return min(longer, key=len) if longer else by_lower[near[0]] if near else None


# --- counts and shares -----------------------------------------------------------------------


def percent(part: float, whole: float, decimals: int = 0) -> str:
    """Such as 12%. Neither 0% nor 100% unless it is exact: 1 of 1,000 failures is "under 1%", and
    the rest is "over 99%"."""
    if not whole:
        return "0%"
    step = 10.0**-decimals
    least, most = f"{step:.{decimals}f}", f"{100 - step:.{decimals}f}"
    value = f"{100 * part / whole:.{decimals}f}"
    if part > 0 and float(value) == 0:
        return f"under {least}%"
    return f"over {most}%" if part < whole and float(value) == 100 else f"{value}%"


def percent_done(part: int, whole: int, decimals: int = 0) -> str:
    """Rounded down, so that 100% is the end: 99.9% of 99,990 in 100,000."""
    tenths = 10**decimals
    value = 100 * tenths * part // whole / tenths if whole else 0.0
    return f"{value:.{decimals}f}%"


def percentages(parts: Sequence[float]) -> list[str]:
    """The parts of one whole, such as 33%, 33% and 34%: they add up to 100, by largest remainder
    (whatever is left after rounding down goes to those that lost most)."""
    whole = sum(parts)
    if not whole:
        return ["0%"] * len(parts)
    exact = [100 * part / whole for part in parts]
    shown = [int(value) for value in exact]
    by_loss = sorted(range(len(parts)), key=lambda n: shown[n] - exact[n])
    for number in by_loss[: 100 - sum(shown)]:
        shown[number] += 1
    return [f"{value}%" for value in shown]


def per_second(rate: float) -> str:
    """The number of a rate: 1,412.0, 5.9 or 0.042."""
    return f"{rate:,.1f}" if rate >= 0.995 or not rate else f"{rate:.2g}"


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
