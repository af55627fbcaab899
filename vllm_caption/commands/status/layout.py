"""The state of a folder as lines of text: the screen of `status --watch`, and what `status` prints.
Pure: from an overview, the time and the size.

Invariants: on a screen, there are at most as many lines as the terminal has, and none is wider;
80 × 24 holds eight engines; where there is no room for all, those that need attention are shown.
What is not known is left out, or said in words.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final

from rich.text import Text

from vllm_caption.commands.status.overview import Overview
from vllm_caption.formatting import (
    INDENT,
    duration,
    per_second,
    percent_done,
    recorded_moment,
    section,
    tally,
)
from vllm_caption.monitoring.bottleneck import AS_IT_SHOULD_BE, REMEDIES
from vllm_caption.monitoring.figures import EngineFigures, measured, num_up, time_to_go
from vllm_caption.monitoring.live.line import BLOCKS, MIN_BAR, bar, live_line
from vllm_caption.monitoring.status import State

COLOURS: Final[dict[State, str]] = {
    "running": "bold green",
    "finished": "bold green",
    "interrupted": "bold yellow",
    "stopped": "bold red",
    "died": "bold red",
}
MAX_BAR: Final = 60
MAX_SHARD_WIDTH: Final = 120
NUM_USUAL_COLUMNS: Final = 7
USUAL_ENGINES: Final = 8
"""This many engines get a line each before the last items get any."""
SILENT_S: Final = 15.0
"""Of a run that writes its figures every two seconds."""


def draw(
    seen: Overview,
    title: str,
    now: datetime,
    width: int,
    height: int | None,
    blocks: str = BLOCKS,
) -> list[Text]:
    """All lines. ``title``: which folder it is of; ``height``: of the screen, or None if there is
    room for everything; ``blocks``: to draw bars with."""
    top = [*_state(seen, width), _output(title, width), *_progress(seen, now, width, blocks)]
    failures, captions = list(_failures(seen, now, width)), list(_captions(seen))
    shards = list(_shards(seen, now, width, blocks))
    num_engines = len(seen.engines)
    if height is None:
        room = num_engines
        below = [*failures, *captions]
    else:
        spare = height - len(top) - 1 - min(num_engines, USUAL_ENGINES) - len(failures)
        shards = shards if len(shards) <= spare else []
        under_top = height - len(top) - len(shards) - 1
        num_below = under_top - min(num_engines, USUAL_ENGINES)
        if num_below < len(failures):  # there is no room for all engines anyway
            num_below = max(min(len(failures) + 1, under_top - min(num_engines, 2)), 0)
        below = [*failures, *captions][:num_below]
        room = max(under_top - len(below), 0)
    lines = [*top, *shards, *_engines(seen.engines, room, width), *below][:height]
    if height is not None:
        for line in lines:
            line.truncate(width, overflow="ellipsis")
    return lines


def _wrapped(label: str, text: str, width: int, style: str = "") -> Iterator[Text]:
    """A section on as many lines as it needs."""
    lines = textwrap.wrap(text, max(width - len(INDENT), 20), break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        yield Text(section("" if number else label, "")).append(line, style)


def _state(seen: Overview, width: int) -> Iterator[Text]:
    lines = list(_wrapped("State", seen.state_in_words, width, COLOURS[seen.state]))
    if seen.is_running and seen.age_s > SILENT_S:
        lines[-1].append(f" (silent for {duration(round(seen.age_s))})", "bold yellow")
    yield from lines


def _output(title: str, width: int) -> Text:
    """The folder; if its path is too long, the end of it."""
    room = max(width - len(INDENT), 20)
    return Text(section("Output", title if len(title) <= room else f"…{title[1 - room :]}"))


def _progress(seen: Overview, now: datetime, width: int, blocks: str) -> Iterator[Text]:
    if seen.total and seen.scanning:
        yield Text(section("Done", f"{seen.finished:,} of {seen.total:,} items found so far"))
    elif seen.total:
        counts = f" {seen.finished:,} of {seen.total:,}"
        done = f"{percent_done(seen.finished, seen.total, 1):>6} "
        cells = min(width - len(INDENT) - len(done) - len(counts), MAX_BAR)
        share = seen.finished / seen.total
        line = Text(section("Done", done))
        yield line.append(bar(share, max(cells, MIN_BAR), blocks), "green").append(counts)
    if seen.total:
        yield Text(section("Items", ", ".join(_items(seen))))
    if seen.is_running:
        yield from _now(seen, now, width)
    else:
        yield from _wrapped("Time", _time(seen, now), width)
        if seen.before is not None:
            made = f"{seen.before.captions:,} captioned"
            made += f" at {per_second(seen.before.images_per_s)} images/s"
            made += f", ended {recorded_moment(seen.before.at, now)}"
            yield from _wrapped("Before", made, width)
    if seen.costs:
        yield from _wrapped("Cost", str(seen.costs), width)
    for warning in seen.warnings[-1:]:
        yield from _wrapped("Warning", warning, width, "yellow")


def _items(seen: Overview) -> Iterator[str]:
    yield f"{seen.captioned:,} captioned"
    if seen.done_before:
        yield f"{seen.done_before:,} before"
    yield f"{seen.failed:,} failed"
    if not seen.scanning:
        yield f"{max(seen.total - seen.finished, 0):,} left"


def _now(seen: Overview, now: datetime, width: int) -> Iterator[Text]:
    if seen.phases:
        yield from _wrapped("Phase", seen.phases, width)
    if seen.images_per_s is not None or not seen.phases:
        yield from _wrapped("Speed", _speed(seen), width)
    started = f"started {recorded_moment(seen.started_at, now)}" if seen.started_at else ""
    yield from _wrapped("End", "; ".join(filter(None, (_end(seen, now), started))), width)
    if seen.limited_by:
        remedy = {str(name): text for name, text in REMEDIES.items()}.get(seen.limited_by)
        text = seen.limited_by + (f": {remedy}" if remedy else "")
        text += f" ({AS_IT_SHOULD_BE})" if text == "engine" else ""
        yield from _wrapped("Limited by", text, width)
    if seen.host:
        yield from _wrapped("Host", ", ".join(measured(seen.host)), width)


def _speed(seen: Overview) -> str:
    if seen.images_per_s is None:
        return "still being measured"
    parts = [f"{per_second(seen.images_per_s)} images/s now"]
    if seen.images_per_s_5_min is not None:
        parts.append(f"{per_second(seen.images_per_s_5_min)} over 5 min")
    if seen.images_per_s_of_run is not None:
        parts.append(f"{per_second(seen.images_per_s_of_run)} overall")
    tokens = "" if seen.tokens_per_s is None else f"; {seen.tokens_per_s:,.0f} tokens/s"
    return ", ".join(parts) + tokens


def _end(seen: Overview, now: datetime) -> str:
    if seen.scanning:
        return "not known until the input has been read"
    return "not known yet" if seen.eta_s is None else time_to_go(seen.eta_s, now)


def _time(seen: Overview, now: datetime) -> str:
    """When a run that has ended was running."""
    ended = recorded_moment(seen.updated_at, now)
    last = f"last seen {ended}" if seen.state == "died" else f"ended {ended}"
    last += f" ({duration(round(seen.age_s))} ago)"
    if not seen.started_at:
        return last
    try:
        began, end = map(datetime.fromisoformat, (seen.started_at, seen.updated_at))
        seconds = max((end - began).total_seconds(), 0.0)
    except (ValueError, TypeError):  # a file that was edited
        return last
    return f"started {recorded_moment(seen.started_at, now)}, {last}; it took {duration(seconds)}"


def _shards(seen: Overview, now: datetime, width: int, blocks: str) -> Iterator[Text]:
    """A line for each shard, and those that are not here."""
    for shard, view in sorted(seen.shards, key=lambda entry: entry[0]):
        name = section(f"Shard {shard}", f" {view.state:{_STATE}} ")
        room = min(width, MAX_SHARD_WIDTH) - len(name)
        status = view.status
        if view.state == "running":
            shown = live_line(status, status.engines, None, now, room, blocks)
        else:
            done = f"{status.finished:,}/{status.total:,}"
            shown = f"{percent_done(status.finished, status.total):>4} {done}"
            shown += f", {status.failed:,} failed" if status.failed else ""
        yield Text(name).append(shown)
    yield from map(Text, seen.absent)


# --- engines ---------------------------------------------------------------------------------

_Cell = Callable[[EngineFigures], str]
_UNKNOWN: Final = "–"


def _known(value: float | None, unit: str = "") -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}{unit}"


_COLUMNS: Final[Sequence[tuple[str, int, _Cell]]] = (
    (
        "images/s",
        8,
        lambda e: _UNKNOWN if e.images_per_s is None else per_second(e.images_per_s),
    ),
    ("in flight", 9, lambda e: f"{e.in_flight}"),
    ("GPU", 5, lambda e: _known(e.gpu_percent, "%")),
    ("GPU mem", 7, lambda e: _known(e.gpu_memory_percent, "%")),
    ("temp", 6, lambda e: _known(e.gpu_temperature_c, " °C")),
    ("restarts", 8, lambda e: f"{e.restarts}"),
    ("RAM MiB", 7, lambda e: _known(e.rss_mib)),
    ("captioned", 10, lambda e: f"{e.captioned:,}"),
    ("process", 8, lambda e: _UNKNOWN if e.pid is None else f"{e.pid}"),
)
"""The most important first: the last are left out if the screen is too narrow."""
_NAME, _STATE = 10, 11


def _engines(engines: Sequence[tuple[str, EngineFigures]], room: int, width: int) -> Iterator[Text]:
    """The heads of the columns in which anything is known, and at most ``room`` lines."""
    columns: list[tuple[str, int, _Cell]] = []
    left = width - _NAME - 1 - _STATE
    for column in _COLUMNS:
        _, cell_width, cell = column
        if any(cell(engine) != _UNKNOWN for _, engine in engines):
            left -= 1 + cell_width
            columns += [column] if left >= 0 or len(columns) < NUM_USUAL_COLUMNS else []
    heads = (f"{title:>{cell_width}}" for title, cell_width, _ in columns)
    yield Text(" ".join((f"{'Engine':{_NAME}}", f"{'state':{_STATE}}", *heads)), "bold")
    shown = list(engines) if len(engines) <= room else _first_to_look_at(engines, room - 1)
    for name, engine in shown:
        cells = (f"{cell(engine):>{cell_width}}" for _, cell_width, cell in columns)
        text = " ".join((f"{name:{_NAME}}", f"{engine.state_in_words:{_STATE}}", *cells))
        yield Text(text.rstrip(), "" if engine.state == "up" else "yellow")
    named = {name for name, _ in shown}
    if room and (others := [engine for name, engine in engines if name not in named]):
        text = f"{INDENT[:_NAME]} and {len(others)} more, {num_up(others)} of them up"
        if rates := [e.images_per_s for e in others if e.images_per_s is not None]:
            text += f", {per_second(min(rates))} to {per_second(max(rates))} images/s each"
        yield Text(text)


def _first_to_look_at(
    engines: Sequence[tuple[str, EngineFigures]], number: int
) -> list[tuple[str, EngineFigures]]:
    """Those that are not up, were restarted most, or are slowest; in their usual order."""

    def calm(place: int) -> tuple[bool, int, float]:
        engine = engines[place][1]
        return engine.state == "up", -engine.restarts, engine.images_per_s or 0.0

    places = sorted(range(len(engines)), key=calm)[: max(number, 0)]
    return [engines[place] for place in sorted(places)]


# --- the last items --------------------------------------------------------------------------


def _failures(seen: Overview, now: datetime, width: int) -> Iterator[Text]:
    yield from _wrapped("Failures", tally(seen.failures) or "none", width)
    for item in seen.last_failures:
        yield Text(f"{INDENT}{recorded_moment(item.at, now)} {item.kind} {item.text}", "yellow")


def _captions(seen: Overview) -> Iterator[Text]:
    for number, item in enumerate(seen.last_captions):
        yield Text(section("" if number else "Captions", item.text))
