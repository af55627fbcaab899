"""The view for days as lines of a terminal. Pure: from an overview, the time and the size.

Invariants: there are at most as many lines as the terminal has, and none is wider; 80 × 24 holds
eight engines; where there is no room for all, those that need attention are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final

from rich.text import Text

from vllm_caption.commands.status.overview import Overview
from vllm_caption.formatting import INDENT, duration, percent_done, recorded_moment, section, tally
from vllm_caption.monitoring.bottleneck import REMEDIES
from vllm_caption.monitoring.figures import EngineFigures, measured, num_up, time_to_go
from vllm_caption.monitoring.live.line import BLOCKS, MIN_BAR, bar
from vllm_caption.monitoring.status import State

COLOURS: Final[dict[State, str]] = {
    "running": "bold green",
    "finished": "bold green",
    "interrupted": "bold yellow",
    "stopped": "bold red",
    "died": "bold red",
}
MAX_BAR: Final = 60
USUAL_ENGINES: Final = 8
"""So many have a line each before anything about the last items has."""
SILENT_S: Final = 15.0
"""Of a run that writes its figures every two seconds."""


def draw(
    seen: Overview, title: str, now: datetime, width: int, height: int, blocks: str = BLOCKS
) -> list[Text]:
    """The whole screen. ``title``: which folder it is of; ``blocks``: to draw the bar with."""
    top = [_state(seen), Text(section("Output", title)), *_progress(seen, now, width, blocks)]
    failures, captions = list(_failures(seen, now)), list(_captions(seen))
    under_top, num_engines = height - len(top) - 1, len(seen.engines)
    num_below = max(under_top - min(num_engines, USUAL_ENGINES), len(failures) + 1)
    num_below = max(min(num_below, under_top - min(num_engines, 2)), 0)
    below = [*failures, *captions][:num_below]
    room = max(height - len(top) - len(below) - 1, 0)
    lines = [*top, *_engines(seen.engines, room), *below][:height]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _state(seen: Overview) -> Text:
    line = Text(section("State", "")).append(seen.state_in_words, COLOURS[seen.state])
    if seen.age_s > SILENT_S:
        line.append(f" (silent for {duration(round(seen.age_s))})", "bold yellow")
    return line


def _progress(seen: Overview, now: datetime, width: int, blocks: str) -> Iterator[Text]:
    share = seen.finished / seen.total if seen.total else 0.0
    more = " or more" if seen.is_scanning else ""
    counts = f" {seen.finished:,} of {seen.total:,}{more}"
    done = f"{percent_done(seen.finished, seen.total, 1):>6} "
    cells = min(width - len(INDENT) - len(done) - len(counts), MAX_BAR)
    line = Text(section("Done", done))
    yield line.append(bar(share, max(cells, MIN_BAR), blocks), "green").append(counts)
    left = max(seen.total - seen.finished, 0)
    yield Text(
        section(
            "Items",
            f"{seen.captioned:,} captioned, {seen.done_before:,} before,"
            f" {seen.failed:,} failed, {left:,} left",
        )
    )
    if seen.is_running:
        yield from _speed(seen, now)
    if seen.costs:
        yield Text(section("Cost", str(seen.costs)))


def _speed(seen: Overview, now: datetime) -> Iterator[Text]:
    if seen.phases:
        yield Text(section("Phase", seen.phases))
    if seen.images_per_s or not seen.phases:
        yield Text(
            section(
                "Images/s",
                f"{seen.images_per_s:.1f} now, {seen.images_per_s_5_min:.1f} over 5 minutes,"
                f" {seen.images_per_s_of_run:.1f} since the start;"
                f" {seen.tokens_per_s:,.0f} tokens/s",
            )
        )
    since = f"; started {recorded_moment(seen.started_at, now)}" if seen.started_at else ""
    yield Text(section("End", f"{time_to_go(seen.eta_s, now)}{since}"))
    if seen.limited_by:
        remedy = {str(name): text for name, text in REMEDIES.items()}.get(seen.limited_by)
        yield Text(section("Limited by", seen.limited_by + (f": {remedy}" if remedy else "")))
    if seen.host:
        yield Text(section("Host", ", ".join(measured(seen.host))))
    if seen.warnings:
        yield Text(section("Warning", seen.warnings[-1]), "yellow")


# --- engines ---------------------------------------------------------------------------------

_Cell = Callable[[EngineFigures], str]


def _known(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:,.0f}{unit}"


_COLUMNS: Final[Sequence[tuple[str, int, _Cell]]] = (
    ("images/s", 8, lambda engine: f"{engine.images_per_s:.1f}"),
    ("in flight", 9, lambda engine: f"{engine.in_flight}"),
    ("GPU", 5, lambda engine: _known(engine.gpu_percent, "%")),
    ("GPU mem", 7, lambda engine: _known(engine.gpu_memory_percent, "%")),
    ("temp", 6, lambda engine: _known(engine.gpu_temperature_c, " °C")),
    ("restarts", 8, lambda engine: f"{engine.restarts}"),
    ("RAM MiB", 7, lambda engine: _known(engine.rss_mib)),
)
_NAME, _STATE = 10, 11


def _engines(engines: Sequence[tuple[str, EngineFigures]], room: int) -> Iterator[Text]:
    """The heads of the columns, and at most ``room`` lines."""
    heads = (f"{title:>{width}}" for title, width, _ in _COLUMNS)
    yield Text(" ".join((f"{'Engine':{_NAME}}", f"{'state':{_STATE}}", *heads)), "bold")
    shown = list(engines) if len(engines) <= room else _first_to_look_at(engines, room - 1)
    for name, engine in shown:
        cells = (f"{cell(engine):>{width}}" for _, width, cell in _COLUMNS)
        text = " ".join((f"{name:{_NAME}}", f"{engine.state_in_words:{_STATE}}", *cells))
        yield Text(text, "" if engine.state == "up" else "yellow")
    named = {name for name, _ in shown}
    if room and (others := [engine for name, engine in engines if name not in named]):
        rates = [engine.images_per_s for engine in others]
        yield Text(
            f"{INDENT[:_NAME]} and {len(others)} more, {num_up(others)} of them up,"
            f" {min(rates):.1f} to {max(rates):.1f} images/s each"
        )


def _first_to_look_at(
    engines: Sequence[tuple[str, EngineFigures]], number: int
) -> list[tuple[str, EngineFigures]]:
    """Those that are not up, were restarted most, or are slowest; in their usual order."""

    def calm(place: int) -> tuple[bool, int, float]:
        engine = engines[place][1]
        return engine.state == "up", -engine.restarts, engine.images_per_s

    places = sorted(range(len(engines)), key=calm)[: max(number, 0)]
    return [engines[place] for place in sorted(places)]


# --- the last items --------------------------------------------------------------------------


def _failures(seen: Overview, now: datetime) -> Iterator[Text]:
    yield Text(section("Failures", tally(seen.failures) or "none"))
    for item in seen.last_failures:
        yield Text(f"{INDENT}{recorded_moment(item.at, now)} {item.kind} {item.text}", "yellow")


def _captions(seen: Overview) -> Iterator[Text]:
    for number, item in enumerate(seen.last_captions):
        yield Text(section("" if number else "Captions", item.text))
