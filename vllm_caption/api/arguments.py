"""Python values → the command line of a run.

Invariant: a value becomes one word, or several words that cannot be taken for flags. Only the
parser of the command line decides whether the value is right.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Final

from vllm_caption.errors import UsageError
from vllm_caption.flags import parse_path, run_parser
from vllm_caption.formatting import flag_of

Value = (
    str
    | float
    | os.PathLike[str]
    | Sequence[str | float | os.PathLike[str]]
    | Mapping[str, object]
    | None
)
"""The types of a flag's value."""
_FLAG: Final = re.compile(r"(did you mean )?(--[a-z][\w-]*)")
"""In a sentence."""
_PRINTS_AND_EXITS: Final = ("help", "version")


def as_arguments(values: Mapping[str, Value]) -> list[str]:
    """The words for flags by their names, with `_` for `-`. Raises UsageError.

    None leaves the flag out. Unknown flags are vLLM's: a list becomes several words, a mapping
    JSON, and False `--no-NAME`.
    """
    known = run_parser().flags
    words: list[str] = []
    for name, value in values.items():
        if value is not None:
            words += _words(name, value, known)
    return words


def as_path(name: str, value: object) -> Path:
    """A file or folder, read as on the command line. Raises UsageError."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(name, _shown(value), "cannot be given; give the path of a file or folder")
    try:
        return parse_path(_word(name, value))
    except argparse.ArgumentTypeError as error:
        raise UsageError(name, None, str(error)) from None


def in_python(error: UsageError) -> UsageError:
    """The error of a command line as the caller of a function understands it: flags are named as
    arguments, but not in command lines, which stand in backticks."""
    known = run_parser().flags.keys() - {f"--{name}" for name in _PRINTS_AND_EXITS}

    def renamed(found: re.Match[str]) -> str:
        hint, flag = found.groups("")
        return f"{hint}{_argument_of(flag) if hint or flag in known else flag}"

    remedy = error.remedy.replace("unknown flag", "unknown argument")
    remedy = remedy.replace("see --help", "see `python -m vllm_caption --help`")
    parts = remedy.split("`")
    parts[::2] = (_FLAG.sub(renamed, part) for part in parts[::2])
    return UsageError(_argument_of(error.field), error.value, "`".join(parts))


def _argument_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else flag


def _words(name: str, value: object, known: Mapping[str, argparse.Action]) -> Iterator[str]:
    flag, opposite = flag_of(name), flag_of(f"no_{name}")
    action = known.get(flag)
    if name in _PRINTS_AND_EXITS:
        raise UsageError(name, None, "prints and exits; use it on the command line")
    if isinstance(value, bool):
        if action is not None and action.nargs != 0:
            raise UsageError(name, value, "takes a value; it is not a switch")
        if value and opposite not in known:
            yield flag
        elif not value and action is None:
            yield opposite
    elif action is not None and action.nargs == 0:
        shown = value if isinstance(value, str) else _shown(value)
        raise UsageError(name, shown, "is a switch; give True or False")
    elif action is not None and action.type is parse_path:
        as_path(name, value)
        yield f"{flag}={_word(name, value)}"
    elif isinstance(value, Mapping):
        yield f"{flag}={_as_json(name, value)}"
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if action is not None and action.nargs is None and not isinstance(action.default, tuple):
            raise UsageError(name, _shown(value), "takes one value, not a list")
        yield from _list(name, [_word(name, each) for each in value], action)
    else:
        yield f"{flag}={_word(name, value)}"


def _list(name: str, words: list[str], action: argparse.Action | None) -> Iterator[str]:
    flag = flag_of(name)
    if action is None:
        yield from (flag, *words)
    elif action.nargs is None:  # one word with commas
        if with_comma := next((word for word in words if "," in word), None):
            raise UsageError(
                name,
                with_comma,
                "has a comma, which separates the entries of a list; give each entry by itself",
            )
        yield f"{flag}={','.join(words)}"
    else:
        yield from (f"{flag}={word}" for word in words)


def _word(name: str, value: object) -> str:
    if isinstance(value, str | os.PathLike):
        word = os.fspath(value)
        if isinstance(word, str) and "\0" not in word and _can_be_passed(word):
            return word
    elif not isinstance(value, bool) and isinstance(value, Real):
        return str(value)
    kinds = "a string, a number, a path, or a list of these"
    raise UsageError(name, _shown(value), f"cannot be given; give {kinds}")


def _can_be_passed(word: str) -> bool:
    """Whether the system takes it as an argument of a process."""
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """A value as Python code, on one line."""
    return " ".join(repr(value).split())[:200]


def _as_json(name: str, value: Mapping[str, object]) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise UsageError(name, None, f"cannot be written as JSON ({error})") from None
