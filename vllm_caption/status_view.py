"""``status``: what a run in an output folder does, or did, for people and for scripts.

Read-only: the state comes from status.json, and whether its run lives from the folder's lock.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import msgspec
from tqdm import tqdm

from vllm_caption.errors import UsageError
from vllm_caption.flags import Parser, add_output_folder
from vllm_caption.lock import find_holder
from vllm_caption.stats import HostStats
from vllm_caption.status import EngineStatus, RunStatus, read_status

EXIT_OK, EXIT_DIED, EXIT_INTERRUPTED = 0, 1, 130
EVERY_S: Final = 2.0
LABEL_WIDTH: Final = 11

State = Literal["running", "ended", "died"]


class View(msgspec.Struct, frozen=True):
    """One look. ``age_s``: of status.json, in seconds; ``holder``: of the folder, in words."""

    state: State
    holder: str | None
    age_s: float
    status: RunStatus


def run_status(arguments: Sequence[str], stream: TextIO | None = None) -> int:
    """The command; returns the exit code. Raises UsageError."""
    parser = Parser(
        prog="vllm-caption status",
        description="Say what the run in an output folder does, or how the last one ended.",
        epilog="exit codes: 0 it runs or has ended; 1 it died; 2 no run is known there;"
        " 130 interrupted.",
    )
    add_output_folder(parser)
    parser.add_argument("--watch", action="store_true", help="again every 2 s until the run ends")
    parser.add_argument("--json", action="store_true", help="as JSON; with --watch a line each")
    options = parser.parse_args(arguments)
    from vllm_caption.status_shards import shards_are_newer, show_shards

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


def look(root: Path) -> View:
    """The present state. Raises UsageError where there is none."""
    view = _look(root)
    # Between the two readings a run may have ended or begun: only what is seen twice is a death.
    return view if view.state != "died" else _look(root)


def watch(root: Path, screen: _Screen) -> View:
    """Show the state every two seconds; returns the last one, when nobody holds the folder."""
    while (view := look(root)).holder is not None:
        screen.show(view)
        time.sleep(EVERY_S)
    return view


def _look(root: Path) -> View:
    status, holder = read_status(root), find_holder(root)
    if status is None:
        remedy = "holds no status.json; name the folder of a run"
        if holder is not None:
            remedy = f"is held by {holder}, which has no status.json yet; ask again in a moment"
        raise UsageError("--output", root, remedy)
    state: State = "running" if status.state == "running" else "ended"
    if state == "running" and holder is None:
        state = "died"
    return View(state, holder, _seconds_since(status.updated_at) or 0.0, status)


class _Screen:
    """Where looks go: a block that is drawn over itself on a terminal, lines elsewhere."""

    def __init__(self, stream: TextIO, *, as_json: bool, watching: bool) -> None:
        self._stream = stream
        self._as_json = as_json
        self._watching = watching
        self._redraws = watching and not as_json and stream.isatty()
        self._num_drawn = 0

    def show(self, view: View) -> None:
        """One look of several."""
        if self._redraws:
            self._draw(view)
        elif self._as_json:
            self._print(_json(view, indent=False))
        else:
            self._print(one_line(view))

    def show_last(self, view: View) -> None:
        """The only look, or the last."""
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


def one_line(view: View) -> str:
    """The state on one line, for a log."""
    status = view.status
    up = sum(engine.state == "up" for engine in status.engines)
    return (
        f"{status.updated_at} {view.state} {_finished(status)}/{status.total}"
        f"{'+' if status.scanning else ''} {status.images_per_s:g} images/s,"
        f" ETA {_interval(status.eta_s)}, failed {status.failed},"
        f" engines {up}/{len(status.engines)}"
    )


def _lines(view: View) -> Iterator[str]:
    status = view.status
    yield _section("State", _state(view))
    started = f"started {status.started_at}" if status.started_at else "start unknown"
    yield _section("Run", f"{status.run_id}, {started}")
    yield _section("Updated", f"{status.updated_at}, {_interval(view.age_s)} ago")
    yield _section("Items", _items(status))
    if view.state == "running":
        speed = f"{status.images_per_s:g} images/s, {status.tokens_per_s:g} tokens/s"
        yield _section("Speed", f"{speed}, ETA {_interval(status.eta_s)}")
    if status.failures:
        kinds = sorted(status.failures.items(), key=lambda failure: -failure[1])
        yield _section("Failures", ", ".join(f"{kind} {number:,}" for kind, number in kinds))
    if status.host and view.state == "running":
        yield _section("Host", _host(status.host))
    for engine in status.engines:
        yield _section(f"Engine {engine.engine}", _engine(engine, view))
    if view.state == "running":
        yield from (_section("Warning", warning) for warning in status.warnings)


def _section(label: str, text: str) -> str:
    return f"{label:{LABEL_WIDTH}}{text}"


def _state(view: View) -> str:
    if view.state == "died":
        return "died: the file says running, but nobody holds the folder; run again to go on"
    if view.state == "running":
        return f"running, {view.holder}"
    return "ended" if view.holder is None else f"ended; the folder is held by {view.holder}"


def _items(status: RunStatus) -> str:
    left = max(status.total - _finished(status), 0)
    share = f" ({_finished(status) / status.total:.1%})" if status.total else ""
    return (
        f"{status.total:,}{' or more' if status.scanning else ''}{share}:"
        f" {status.captioned:,} captioned + {status.done_before:,} before"
        f" + {status.failed:,} failed + {left:,} left"
    )


def _finished(status: RunStatus) -> int:
    return status.done_before + status.captioned + status.failed


def _engine(engine: EngineStatus, view: View) -> str:
    captioned = sum(other.captioned for other in view.status.engines)
    share = engine.captioned / captioned if captioned else 0.0
    parts = [f"{engine.captioned:,} captioned ({share:.0%})", f"{engine.restarts} restarts"]
    if view.state == "running":
        process = "" if engine.pid is None else f", process {engine.pid}"
        parts = [f"{engine.state}{process}", *parts, f"{engine.in_flight} in flight"]
        parts += _gpu(engine)
    return ", ".join(parts)


def _gpu(engine: EngineStatus) -> Iterator[str]:
    for label, value, unit in (
        ("memory", engine.rss_mib, "MiB"),
        ("GPU", engine.gpu_percent, "%"),
        ("GPU memory", engine.gpu_memory_percent, "%"),
        ("GPU at", engine.gpu_temperature_c, "°C"),
    ):
        if value is not None:
            yield f"{label} {value:.0f} {unit}"


def _host(host: HostStats) -> str:
    disk = "" if host.disk_free_gib is None else f", {host.disk_free_gib:,.1f} GiB of disk free"
    return f"CPU {host.cpu_percent:.0f} %, RAM {host.ram_percent:.0f} %{disk}"


def _interval(seconds: float | None) -> str:
    return "?" if seconds is None else str(tqdm.format_interval(int(seconds)))


def _seconds_since(moment: str) -> float | None:
    try:
        return max((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def as_dict(view: View) -> dict[str, Any]:
    """For JSON: what status.json holds, and what was seen around it."""
    found: dict[str, Any] = msgspec.to_builtins(view.status)
    return found | {"state": view.state, "holder": view.holder, "age_s": round(view.age_s, 1)}


def _json(view: View, *, indent: bool) -> str:
    encoded = msgspec.json.encode(as_dict(view))
    return (msgspec.json.format(encoded, indent=2) if indent else encoded).decode()
