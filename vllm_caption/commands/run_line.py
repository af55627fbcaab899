"""The line of a run, as the commands that read its output take it: a user changes the first word.

Invariants: every flag of `run` and of vLLM's engine is accepted, and one that means nothing to the
command is left out; a misspelt one is refused, as by the run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, Literal

from vllm_caption.config import RunConfig
from vllm_caption.engine_flags import check_names, is_value
from vllm_caption.errors import UsageError
from vllm_caption.flags import Parser, dashed, run_parser
from vllm_caption.process import say
from vllm_caption.store.layout import MANIFEST, SHARDS, STATUS

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
    check_names(engine_args, run.flags, near=parser.flags)
    starts_with_path = bool(words) and is_value(words[0]) and os.path.exists(words[0])  # noqa: PTH110
    if starts_with_path and (flag := _flag_of_first(words[0], first, _named(run, words))):
        words.insert(0, flag)
    others = Parser(prog=parser.prog, add_help=False)
    for action in dict.fromkeys(run.flags.values()):
        if parser.flags.keys().isdisjoint(action.option_strings):
            others._add_action(action)
    _, rest = others.parse_known_args(words)
    options = parser.parse_args(rest)
    named = _named(parser, words)
    if first == "folders" and starts_with_path and _is_input(options, named):
        word = options.folders.pop(0)
        if not _holds_output(word):
            text = f"{word} holds no output of a run, so it is taken for the run's input."
            say(text, sys.stderr)
    return options, named


def check_is_folder(output: Path) -> None:
    """Raise UsageError where no run can have written: the same for every command."""
    if not output.is_dir():
        problem = "is not a folder" if output.exists() else "does not exist"
        raise UsageError("--output", output, f"{problem}; name the folder that a run wrote")


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
    """The flag that the first word of a line stands there without, if it is not the command's own
    kind of word."""
    if first == "input":
        return "--output" if "output" not in named and _holds_output(word) else "--input"
    if first == "file" and Path(word).is_dir():  # a table could be the file to write
        return "--input"
    return None


def _is_input(options: argparse.Namespace, named: Collection[str]) -> bool:
    """Whether the first of several output folders is the input of the run instead."""
    if not options.folders:  # the word was the value of a flag
        return False
    word, output = options.folders[0], options.output or RunConfig().output
    if _holds_output(word):  # captions may lie beside their images
        return "output" in named and word.absolute() == output.absolute()
    return "output" in named or _holds_output(output)


def _holds_output(folder: str | Path) -> bool:
    """Whether a run has written there."""
    return any(os.path.exists(f"{folder}/{name}") for name in (STATUS, f"{MANIFEST}/", SHARDS))  # noqa: PTH110
