"""``status``: what the run in an output folder is doing, or how it ended."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import msgspec

from vllm_caption.commands.status_shards import EVERY_S, EXIT_DIED, shards_are_newer, show_shards
from vllm_caption.errors import EXIT_INTERRUPTED, EXIT_OK
from vllm_caption.flags import Parser, add_output_folder
from vllm_caption.formatting import clock, section, tally
from vllm_caption.monitoring.figures import EngineFigures, measured
from vllm_caption.monitoring.status import RunStatus, View, look


def run_status(arguments: Sequence[str], stream: TextIO | None = None) -> int:
    """The command; returns the exit code. Raises UsageError."""
    parser = Parser(
        prog="vllm-caption status",
        description="Show what the run in an output folder is doing, or how the last one ended.",
        epilog="exit codes: 0 the run is running or has ended; 1 it died; 2 there is no run;"
        " 130 interrupted.",
    )
    add_output_folder(parser)
    parser.add_argument("--watch", action="store_true", help="repeat every 2 s until the run ends")
    parser.add_argument(
        "--json", action="store_true", help="as JSON; with --watch one line each time"
    )
    options = parser.parse_args(arguments)
    try:
        if shards_are_newer(options.output):
            watching, as_json = options.watch, options.json
            return show_shards(options.output, watching=watching, as_json=as_json)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    screen = _Screen(stream or sys.stdout, as_json=options.json, watching=options.watch)
    try:
        view = watch(options.output, screen) if options.watch else look(options.output)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    screen.show_last(view)
    return EXIT_DIED if view.state == "died" else EXIT_OK


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
            self._print(_json(view, indent=False))
        else:
            self._print(view.one_line())

    def show_last(self, view: View) -> None:
        """The only view, or the last."""
        if self._redraws:
            self._draw(view)
        elif self._as_json:
            self._print(_json(view, indent=not self._watching))
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


def describe(view: View) -> str:
    """The state on a few lines, one for each engine."""
    return "\n".join(_lines(view))


def _lines(view: View) -> Iterator[str]:
    status = view.status
    yield section("State", _state(view))
    started = f"started {status.started_at}" if status.started_at else "start unknown"
    yield section("Run", f"{status.run_id}, {started}")
    yield section("Updated", f"{status.updated_at}, {clock(view.age_s)} ago")
    yield section("Items", _items(status))
    if view.state == "running":
        speed = f"{status.images_per_s:g} images/s, {status.tokens_per_s:g} tokens/s"
        yield section("Speed", f"{speed}, ETA {clock(status.eta_s)}")
    if status.failures:
        yield section("Failures", tally(status.failures))
    if status.host and view.state == "running":
        yield section("Host", ", ".join(measured(status.host)))
    for engine in status.engines:
        yield section(f"Engine {engine.engine}", _engine(engine, view))
    if view.state == "running":
        yield from (section("Warning", warning) for warning in status.warnings)


def _state(view: View) -> str:
    if view.state == "died":
        return "died: the file says running, but no process holds the folder; run again to resume"
    if view.state == "running":
        return f"running, {view.holder}"
    return "ended" if view.holder is None else f"ended; the folder is held by {view.holder}"


def _items(status: RunStatus) -> str:
    left = max(status.total - status.finished, 0)
    share = f" ({status.finished / status.total:.1%})" if status.total else ""
    return (
        f"{status.total:,}{' or more' if status.scanning else ''}{share}:"
        f" {status.captioned:,} captioned + {status.done_before:,} before"
        f" + {status.failed:,} failed + {left:,} left"
    )


def _engine(engine: EngineFigures, view: View) -> str:
    captioned = sum(other.captioned for other in view.status.engines)
    share = engine.captioned / captioned if captioned else 0.0
    parts = [f"{engine.captioned:,} captioned ({share:.0%})", f"{engine.restarts} restarts"]
    if view.state == "running":
        process = "" if engine.pid is None else f", process {engine.pid}"
        parts = [f"{engine.state}{process}", *parts, f"{engine.in_flight} in flight"]
        parts += measured(engine)
    return ", ".join(parts)


def _json(view: View, *, indent: bool) -> str:
    encoded = msgspec.json.encode(view.as_dict())
    return (msgspec.json.format(encoded, indent=2) if indent else encoded).decode()
