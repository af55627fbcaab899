"""The command line of a run, as accepted by the commands that read its output: the user changes
only the first word.

Invariants: every flag of `run` and of vLLM's engine is accepted, and one that means nothing to the
command is left out; a misspelt one is refused, as by the run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, Literal

from vllm_caption.config import InputConfig, RunConfig, is_folder
from vllm_caption.driver.run_input import NAME_AN_INPUT, as_in_last_run
from vllm_caption.engine_flags import check_names, is_value
from vllm_caption.errors import UsageError
from vllm_caption.flags import FLAGS_OF_COMMANDS, Parser, dashed, make_input_config, run_parser
from vllm_caption.formatting import did_you_mean
from vllm_caption.process import say
from vllm_caption.store.layout import JOURNAL, MANIFEST, SHARDS, STATUS, parts, state_folders

First = Literal["input", "folders", "file"]
"""What the words without a flag name: the run's input, as after `run`, output folders, or a file to
write."""
_ALL_FLAGS: Final = "all other flags of the run are accepted, and ignored."
_END: Final = "--"
"""What follows is no flag."""


def parse_line(
    parser: Parser, arguments: Sequence[str], first: First = "input"
) -> tuple[argparse.Namespace, set[str]]:
    """The values of the command's flags, and the settings that the line names, by the names of the
    config's fields. Raises UsageError; ``--help`` exits."""
    run = run_parser()
    parser.epilog = f"{_ALL_FLAGS}\n\n{parser.epilog}"
    words, engine_args = _without_vllm(arguments, {*parser.flags, *run.flags})
    check_names(engine_args, run.flags, near=parser.flags, elsewhere=FLAGS_OF_COMMANDS)
    starts_with_path = bool(words) and is_value(words[0]) and os.path.exists(words[0])  # noqa: PTH110
    if first == "input" and words and words[0] and is_value(words[0]) and not starts_with_path:
        _refuse_absent(words[0], _named(run, words))
    if starts_with_path and (flag := _flag_of_first(words[0], first, _named(run, words))):
        words.insert(0, flag)
    elif first == "file" and len(words) > 1 and is_value(words[0]) and is_value(words[1]):
        _name_second(words, _named(run, words))
    others = Parser(prog=parser.prog, add_help=False)
    for action in dict.fromkeys(run.flags.values()):
        if parser.flags.keys().isdisjoint(action.option_strings):
            others._add_action(action)
    _, rest = others.parse_known_args(words)
    options = parser.parse_args(rest)
    named = _named(parser, words)
    if first == "input" and starts_with_path and "output" not in named:
        _check_default(options.output, words[1])
    if first == "folders" and starts_with_path and _is_input(options, named):
        word = options.folders.pop(0)
        if not holds_output(word):
            text = f"{word} holds no output of a run, so it is taken for the run's input."
            say(text, sys.stderr)
    return options, named


def _name_second(words: list[str], named: Collection[str]) -> None:
    """Put the flag before a folder that stands after the file to write. Raises UsageError where
    there is none."""
    if "output" not in named and not os.path.exists(words[1]):  # noqa: PTH110
        check_is_folder(Path(words[1]))
    if flag := _flag_of_first(words[1], "file", named):
        words.insert(1, flag)


def _refuse_absent(word: str, named: Collection[str]) -> None:
    """Raise UsageError for a first word that is neither an input nor an output."""
    if "output" not in named:
        check_is_folder(Path(word))
    raise UsageError("--input", word, "does not exist; name the input of the run")


def _check_default(output: Path, word: str) -> None:
    """Raise UsageError if neither the first word nor the default is the output of a run."""
    if not is_folder(output):
        problem = f"holds no output of a run, and the default {output} does not exist"
        raise UsageError("--output", word, f"{problem}; name the output of the run with --output")


def check_is_folder(output: Path) -> None:
    """Raise UsageError where no run can have written: the same for every command."""
    try:
        is_dir = stat.S_ISDIR(output.stat().st_mode)
        problem = "is not a folder"
    except (FileNotFoundError, NotADirectoryError):
        is_dir, problem = False, "does not exist"
    except OSError as error:
        raise UsageError("--output", output, f"cannot be read ({error.strerror})") from None
    if not is_dir:
        remedy = "name the folder that a run wrote"
        beside = _outputs_beside(output)
        if meant := did_you_mean(output.name, beside):
            remedy += f" ({meant})"
        elif beside:
            remedy += f", such as {output.with_name(beside[0])}"
        raise UsageError("--output", output, f"{problem}; {remedy}")
    if not os.access(output, os.R_OK | os.X_OK):
        raise UsageError("--output", output, "cannot be read; fix its permissions")


def _outputs_beside(output: Path) -> list[str]:
    """The folders there in which a run has recorded something, newest first."""
    try:
        above = sorted(output.absolute().parent.iterdir())
        found = [folder for folder in above if holds_output(folder) and _holds_rows(folder)]
        found.sort(key=lambda folder: -folder.stat().st_mtime)
    except OSError:
        return []
    return [folder.name for folder in found]


def _holds_rows(folder: Path) -> bool:
    """False for what a run leaves whose input turned out to be empty."""
    with contextlib.suppress(OSError):
        for state in state_folders(folder):
            journal = state / JOURNAL
            if parts(state / MANIFEST) or (journal.is_file() and journal.stat().st_size):
                return True
    return False


def input_of_line(
    options: argparse.Namespace, named: Collection[str], *, quiet: bool = False
) -> InputConfig:
    """The input that the line names, else that of the folder's last run, which is reported unless
    ``quiet``. Raises UsageError."""
    check_is_folder(options.output)
    values, note = as_in_last_run(vars(options), named, options.output)
    if note and not quiet:
        say(note, sys.stderr)
    config = make_input_config(values)
    is_guess = not note and config.input is None and set(named).isdisjoint(NAME_AN_INPUT)
    if is_guess and not os.path.exists(config.jsons):  # noqa: PTH110 (never raises)
        check_holds_output("--output", options.output)
        problem = "does not record what its input was; name it, as for a run"
        raise UsageError("--output", options.output, problem)
    if is_guess and not quiet:
        taken = f"--jsons={config.jsons} --json-detail={config.json_detail}"
        say(f"{options.output} does not record its input; using {taken}", sys.stderr)
    return config


def _without_vllm(
    arguments: Sequence[str], ours: Collection[str]
) -> tuple[list[str], tuple[str, ...]]:
    """The line without vLLM's flags and their values, and these."""
    kept: list[str] = []
    theirs: list[str] = []
    taking = kept
    for number, word in enumerate(arguments):
        if word == _END:
            return [*kept, *arguments[number:]], tuple(theirs)
        if not is_value(word):
            taking = kept if dashed(word.partition("=")[0]) in ours else theirs
        taking.append(word)
    return kept, tuple(theirs)


def _named(parser: Parser, words: Sequence[str]) -> set[str]:
    flags = (dashed(word.partition("=")[0]) for word in words)
    return {parser.flags[flag].dest for flag in flags if flag in parser.flags}


def _flag_of_first(word: str, first: First, named: Collection[str]) -> str | None:
    """The flag that is missing before this word; None if the word is of the command's own kind."""
    if first == "input" or (first == "file" and Path(word).is_dir()):  # a table could be the file
        return "--output" if "output" not in named and holds_output(word) else "--input"
    return None


def _is_input(options: argparse.Namespace, named: Collection[str]) -> bool:
    """Whether the first of several output folders is the input of the run instead."""
    if not options.folders:  # the word was the value of a flag
        return False
    word, output = options.folders[0], options.output or RunConfig().output
    if holds_output(word):  # captions may lie beside their images
        return "output" in named and word.absolute() == output.absolute()
    return "output" in named or holds_output(output)


def check_holds_output(flag: str, folder: Path) -> None:
    """Raise UsageError for a folder in which no run has written."""
    if not holds_output(folder):
        raise UsageError(flag, folder, "holds no output of a run; name the folder that a run wrote")


def holds_output(folder: str | Path) -> bool:
    """Whether a run has written there."""
    return any(os.path.exists(f"{folder}/{name}") for name in (STATUS, f"{MANIFEST}/", SHARDS))  # noqa: PTH110
