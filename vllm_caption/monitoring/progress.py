"""What a run shows: a tqdm bar on a terminal, plain lines elsewhere (each 50 items or 10 s), or
only what matters; and all of it, with times, in a log file.

Invariant: a stream that can no longer be written (a closed terminal, a full disk behind `2>`, a
reader that left) costs the lines, never the run.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, Final, TextIO

import msgspec
from tqdm import tqdm

from vllm_caption.formatting import clock
from vllm_caption.monitoring.event_log import Event, EventLog, Level, as_line
from vllm_caption.monitoring.figures import (
    EngineFigures,
    describe_run,
    measured,
    num_up,
    progress_line,
    rounded,
)
from vllm_caption.monitoring.stats import RunStats

PLAIN_EVERY_ITEMS: Final = 50
PLAIN_EVERY_S: Final = 10.0
ENGINES_EVERY_S: Final = 60.0
_BAR: Final = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{desc}]"
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
        """``stream``: standard error unless another one is given."""
        self._log = log or EventLog(None)
        self._quiet = quiet
        self._stream = stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._shown_finished = 0
        self._shown_s = self._engines_shown_s = float("-inf")
        self._captioned_then: list[int] = []
        if not quiet and not self._log.as_json and stream.isatty():
            self._bar = tqdm(
                total=0, unit="image", file=stream, bar_format=_BAR, dynamic_ncols=True
            )

    def tell(self, line: str, event: str = "message", level: Level = "info") -> None:
        """Show and log one line of text without breaking the bar."""
        self._tell(Event(event, line, level))

    def warn(self, line: str) -> None:
        """The same for what may need attention."""
        self.tell(line, "warning", "warning")

    def record(self, event: str, text: str) -> None:
        """Log what is shown elsewhere."""
        self._log.write(Event(event, text))

    def update(self, stats: RunStats, now_s: float) -> None:
        """Show the present figures; cheap enough to call often."""
        run = stats.figures(now_s)
        if self._bar is not None:
            with contextlib.suppress(*_UNWRITABLE):
                self._bar.total, self._bar.n = run.total, run.finished
                elapsed = clock(self._bar.format_dict["elapsed"])
                self._bar.set_description_str(f"{elapsed}, {describe_run(run, stats.engines)}")
        due = (
            run.finished - self._shown_finished >= PLAIN_EVERY_ITEMS
            or now_s - self._shown_s >= PLAIN_EVERY_S
        )
        if due and run.total:
            self._shown_finished, self._shown_s = run.finished, now_s
            fields = {
                "finished": run.finished,
                **msgspec.structs.asdict(run),
                "engines_up": num_up(stats.engines),
            }
            line = progress_line(run, stats.engines)
            self._show_figures(Event("progress", line, fields=fields))
            self._update_engines(stats.engines, now_s)

    def _update_engines(self, engines: list[EngineFigures], now_s: float) -> None:
        """Once a minute: how the engines share the work, and what was measured of each."""
        if (seconds := now_s - self._engines_shown_s) < ENGINES_EVERY_S:
            return
        if self._captioned_then:
            rated = [
                (engine, (engine.captioned - then) / seconds)
                for engine, then in zip(engines, self._captioned_then, strict=True)
            ]
            shown = (f"{e.engine}: {describe_engine(e, rate)}" for e, rate in rated)
            fields = [
                {**msgspec.structs.asdict(rounded(engine)), "images_per_s": round(rate, 2)}
                for engine, rate in rated
            ]
            event = Event("engines", "Engines: " + "; ".join(shown), fields={"engines": fields})
            self._show_figures(event)
        self._engines_shown_s = now_s
        self._captioned_then = [engine.captioned for engine in engines]

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            with contextlib.suppress(*_UNWRITABLE):
                self._bar.close()

    def _show_figures(self, event: Event) -> None:
        """As a line of text, unless a bar shows them or nothing is to be shown."""
        if self._quiet or self._bar is not None:
            self._log.write(event)
        else:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        self._log.write(event)
        with contextlib.suppress(*_UNWRITABLE):
            if self._bar is not None:
                self._bar.write(event.text, file=self._stream)
            else:
                line = as_line(event, as_json=True) if self._log.as_json else event.text
                print(line, file=self._stream, flush=True)


def describe_engine(engine: EngineFigures, images_per_s: float) -> str:
    """One engine in a few words; what is not known is left out."""
    parts = [f"{engine.captioned:,} captioned", f"{images_per_s:.1f} images/s"]
    parts += [f"{engine.in_flight} in flight"]
    if engine.state != "up":
        parts.insert(0, engine.state)
    if engine.restarts:
        parts.append(f"{engine.restarts} restarts")
    return ", ".join([*parts, *measured(engine)])


class DocumentProgress:
    """Documents read so far: a bar on a terminal, a plain line every 10 s elsewhere, or nothing."""

    def __init__(self, total: int | None, *, quiet: bool, stream: TextIO | None = None) -> None:
        self._total = total
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._shown_s = time.monotonic()
        if not quiet and self._stream.isatty():
            self._bar = tqdm(total=total, unit="document", file=self._stream, dynamic_ncols=True)

    def show(self, documents: int) -> None:
        """Cheap enough to call for every item."""
        if self._bar is not None:
            self._bar.update(documents - self._bar.n)
        elif not self._quiet and time.monotonic() - self._shown_s >= PLAIN_EVERY_S:
            self._shown_s = time.monotonic()
            with contextlib.suppress(*_UNWRITABLE):
                of_all = "" if self._total is None else f"/{self._total}"
                print(f"{documents}{of_all} documents", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
