"""``status``: look once, or again and again until no process holds the folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Final, TextIO

from vllm_caption.commands.run_line import check_is_folder, parse_line
from vllm_caption.commands.status.overview import Views
from vllm_caption.commands.status.shards import look_at
from vllm_caption.commands.status.states import EXIT_CODES_IN_WORDS, exit_code
from vllm_caption.commands.status.text import as_json, describe, one_line
from vllm_caption.errors import EXIT_INTERRUPTED
from vllm_caption.flags import Parser, above_zero, add_output_folder
from vllm_caption.process import show as print_result
from vllm_caption.process import terminal_width

EVERY_S: Final = 2.0


def run_status(arguments: Sequence[str], stream: TextIO | None = None) -> int:
    """The command; returns the exit code. Raises UsageError."""
    parser = Parser(
        prog="vllm-caption status",
        usage="%(prog)s [OUTPUT] [FLAG ...]",
        description="Show what the run in an output folder is doing, or how the last one ended.",
        epilog=EXIT_CODES_IN_WORDS,
    )
    add_output_folder(parser, place="first")
    parser.add_argument("--watch", action="store_true", help="repeat every 2 s until the run ends")
    parser.add_argument(
        "--json", action="store_true", help="print JSON; with --watch, one line each time"
    )
    parser.add_argument(
        "--gpu-hour-price",
        type=above_zero,
        metavar="PRICE",
        help="price of one GPU for one hour (default: that of the run)",
    )
    options, _ = parse_line(parser, arguments)
    price: float | None = options.gpu_hour_price
    stream = stream or sys.stdout
    try:
        check_is_folder(options.output)
        views = look_at(options.output)
        if options.watch:
            views = _watch(options.output, views, stream, in_json=options.json, price=price)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if options.json:
        text = as_json(views, indent=not options.watch)
    else:
        width = terminal_width(stream) if stream.isatty() else None
        now = datetime.now().astimezone()
        text = describe(views, options.output, now, gpu_hour_price=price, width=width)
    print_result(text, stream)
    return exit_code(view.state for view in views.values())


def _watch(
    root: Path, views: Views, stream: TextIO, *, in_json: bool, price: float | None
) -> Views:
    """Show the state every two seconds; returns the last one, once no run holds the folder."""
    with ExitStack() as shown:
        if not in_json and stream.isatty() and os.environ.get("TERM") != "dumb":
            from vllm_caption.commands.status.screen import Screen  # rich takes a moment

            show = shown.enter_context(Screen(root, stream, price)).show
        else:

            def show(views: Views) -> None:
                line = as_json(views, indent=False) if in_json else one_line(views)
                print_result(line, stream)

        while any(view.holder is not None for view in views.values()):
            show(views)
            time.sleep(EVERY_S)
            views = look_at(root)
    return views
