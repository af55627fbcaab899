"""``status``: what the run in an output folder is doing, or how it ended."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from vllm_caption.commands.status.shards import EVERY_S, shards_are_newer, show_shards
from vllm_caption.commands.status.states import EXIT_CODES_IN_WORDS, exit_code
from vllm_caption.commands.status.text import as_json, describe
from vllm_caption.errors import EXIT_INTERRUPTED
from vllm_caption.flags import Parser, add_output_folder
from vllm_caption.monitoring.status import View, look


def run_status(arguments: Sequence[str], stream: TextIO | None = None) -> int:
    """The command; returns the exit code. Raises UsageError."""
    parser = Parser(
        prog="vllm-caption status",
        description="Show what the run in an output folder is doing, or how the last one ended.",
        epilog=EXIT_CODES_IN_WORDS,
    )
    add_output_folder(parser)
    parser.add_argument("--watch", action="store_true", help="repeat every 2 s until the run ends")
    parser.add_argument(
        "--json", action="store_true", help="as JSON; with --watch one line each time"
    )
    options = parser.parse_args(arguments)
    try:
        if shards_are_newer(options.output):
            return show_shards(options.output, watching=options.watch, as_json=options.json)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    screen = _Screen(stream or sys.stdout, as_json=options.json, watching=options.watch)
    try:
        view = watch(options.output, screen) if options.watch else look(options.output)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    screen.show_last(view)
    return exit_code([view.state])


def watch(root: Path, screen: _Screen) -> View:
    """Show the state every two seconds; returns the last one, once no run holds the folder."""
    while (view := look(root)).holder is not None:
        screen.show(view)
        time.sleep(EVERY_S)
    return view


class _Screen:
    """Where views are shown: one block that is redrawn on a terminal, lines elsewhere."""

    def __init__(self, stream: TextIO, *, as_json: bool, watching: bool) -> None:
        self._stream = stream
        self._as_json = as_json
        self._watching = watching
        self._redraws = watching and not as_json and stream.isatty()
        self._num_drawn = 0

    def show(self, view: View) -> None:
        """One view of several."""
        if self._redraws:
            self._draw(view)
        elif self._as_json:
            self._print(as_json(view, indent=False))
        else:
            self._print(view.one_line())

    def show_last(self, view: View) -> None:
        """The only view, or the last."""
        if self._redraws:
            self._draw(view)
        elif self._as_json:
            self._print(as_json(view, indent=not self._watching))
        else:
            self._print(describe(view))

    def _draw(self, view: View) -> None:
        width, height = shutil.get_terminal_size()
        lines = [line[: width - 1] for line in describe(view).splitlines()[: height - 1]]
        back = f"\x1b[{self._num_drawn}F\x1b[J" if self._num_drawn else ""
        self._num_drawn = len(lines)
        self._print(back + "\n".join(lines))

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
