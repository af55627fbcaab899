"""What a run shows: a live line on a terminal, a line a minute elsewhere, or with --quiet only
messages; and all of it, with times, in a log file. `DocumentProgress` shows how far `plan` and
`verify` have read.

Invariant: a stream that cannot be written (a closed terminal, a full disk behind `2>`, a closed
pipe) loses lines, but never stops the run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from datetime import datetime
from typing import Any, Final, TextIO

import msgspec
from tqdm import tqdm

from vllm_caption.formatting import counted, per_second
from vllm_caption.monitoring.event_log import Event, EventLog, Level, as_line
from vllm_caption.monitoring.figures import (
    NOT_STARTED,
    EngineFigures,
    RunFigures,
    measured,
    num_up,
)
from vllm_caption.monitoring.live.line import ASCII_BLOCKS, BLOCKS, live_line, text_line
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.process import terminal_width

FIGURES_EVERY_S: Final = 60.0
PLAIN_EVERY_S: Final = 10.0
ROOM_FOR_KEYS: Final = 3
"""Columns right of the live line for the ^C that the terminal shows, so that it does not wrap."""
_UNWRITABLE: Final = (OSError, ValueError)


class Progress:
    """Shows one run's figures on one stream and in one log file."""

    def __init__(
        self,
        *,
        quiet: bool,
        stream: TextIO | None = None,
        log: EventLog | None = None,
    ) -> None:
        """``stream``: standard error by default."""
        self._log = log or EventLog(None)
        self._quiet = quiet
        self._stream = stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._shown_s: float | None = None
        self._began_s: float | None = None
        if not quiet and not self._log.as_json and stream.isatty():
            self._bar = tqdm(file=stream, bar_format="{desc}", leave=False)

    def tell(self, line: str, event: str = "message", level: Level = "info") -> None:
        """Show and log a line of text without breaking the live line."""
        self._tell(Event(event, line, level))

    def warn(self, line: str) -> None:
        """The same for a warning."""
        self.tell(line, "warning", "warning")

    def record(self, event: str, text: str) -> None:
        """Only log: the text is shown elsewhere."""
        self._log.write(Event(event, text))

    def draw(self, stats: RunStats, now_s: float) -> None:
        """Draw the live line, if there is one."""
        self._draw(stats, stats.figures(now_s), now_s, datetime.now().astimezone())

    def _draw(self, stats: RunStats, run: RunFigures, now_s: float, now: datetime) -> None:
        if self._began_s is None:
            self._began_s = now_s if stats.step_since_s is None else stats.step_since_s
        if self._bar is not None:
            with contextlib.suppress(*_UNWRITABLE):
                elapsed_s = now_s - self._began_s
                width = terminal_width(self._stream) - ROOM_FOR_KEYS
                blocks = _blocks(self._stream)
                line = live_line(run, stats.engines, elapsed_s, now, width, blocks)
                self._bar.set_description_str(line)

    def update(self, stats: RunStats, now_s: float) -> None:
        """Show the current figures; cheap enough to call often."""
        run, now = stats.figures(now_s), datetime.now().astimezone()
        self._draw(stats, run, now_s, now)
        is_first = self._shown_s is None
        since_s = self._began_s if self._shown_s is None else self._shown_s
        assert since_s is not None
        if now_s - since_s >= FIGURES_EVERY_S or (is_first and run.total):
            self._shown_s = now_s
            fields = {
                "finished": run.finished,
                **msgspec.structs.asdict(run),
                "engines_up": num_up(stats.engines),
            }
            line = text_line(run, stats.engines, now)
            self._show_figures(Event("progress", line, fields=fields))
            if not is_first:
                self._show_engines(stats.engine_figures(now_s))

    def _show_engines(self, engines: list[EngineFigures]) -> None:
        """Show the figures of each engine, once one was started."""
        if all(engine.state_in_words == NOT_STARTED for engine in engines):
            return
        shown = "; ".join(f"{engine.engine}: {describe_engine(engine)}" for engine in engines)
        fields = [msgspec.structs.asdict(engine) for engine in engines]
        self._show_figures(Event("engines", f"Engines: {shown}", fields={"engines": fields}))

    def close(self) -> None:
        """Erase the live line: the summary has its counts."""
        if self._bar is not None:
            with contextlib.suppress(*_UNWRITABLE):
                self._erase()
                self._bar.close()

    def _erase(self) -> None:
        """Erase the live line, with what was typed after it."""
        if os.environ.get("TERM") != "dumb":
            self._stream.write("\r\x1b[K")

    def _show_figures(self, event: Event) -> None:
        """Show figures as a line of text, unless the live line shows them or the run is quiet."""
        if self._quiet or self._bar is not None:
            self._log.write(event)
        else:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        self._log.write(event)
        with contextlib.suppress(*_UNWRITABLE):
            if self._bar is not None:
                self._erase()
                self._bar.write(event.text, file=self._stream)
            else:
                line = as_line(event, as_json=True) if self._log.as_json else event.text
                print(line, file=self._stream, flush=True)


def _blocks(stream: TextIO) -> str:
    """The characters with which a stream can show a bar."""
    try:
        BLOCKS.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return ASCII_BLOCKS
    return BLOCKS


def describe_engine(engine: EngineFigures) -> str:
    """The figures of one engine in a few words, except unknown ones, and those that mean nothing
    while it is not up."""
    captioned, in_flight = f"{engine.captioned:,} captioned", f"{engine.in_flight} in flight"
    if engine.state == "up":
        parts = [captioned, in_flight]
        if engine.images_per_s is not None:
            parts.insert(1, f"{per_second(engine.images_per_s)} images/s")
    else:
        parts = [engine.state_in_words]
        parts += [captioned] if engine.captioned else []
        parts += [in_flight] if engine.in_flight else []
    if engine.restarts:
        parts.append(counted(engine.restarts, "restart"))
    return ", ".join([*parts, *measured(engine)])


class DocumentProgress:
    """Documents read so far: a bar on a terminal, a plain line every 10 s elsewhere, or nothing."""

    def __init__(
        self,
        total: int | None,
        noun: str = "document",
        *,
        quiet: bool,
        stream: TextIO | None = None,
    ) -> None:
        """``noun``: what one of them is called."""
        self._total = total
        self._noun = noun
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._shown_s = time.monotonic()
        if not quiet and self._stream.isatty():
            self._bar = tqdm(total=total, unit=noun, file=self._stream, dynamic_ncols=True)

    def show(self, documents: int) -> None:
        """Show the count; cheap enough to call for every item."""
        if self._bar is not None:
            self._bar.update(documents - self._bar.n)
        elif not self._quiet and time.monotonic() - self._shown_s >= PLAIN_EVERY_S:
            self._shown_s = time.monotonic()
            with contextlib.suppress(*_UNWRITABLE):
                of_all = "" if self._total is None else f"/{self._total:,}"
                print(f"{documents:,}{of_all} {self._noun}s", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
