"""What a run tells: a tqdm bar on a terminal, plain lines elsewhere (each 50 items or 10 s), or
only what matters; and all of it, with times, in a log file.

Invariant: a stream that can no longer be written (a closed terminal, a full disk behind `2>`, a
reader that left) costs the lines, never the run.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

from vllm_caption.monitoring.event_log import Event, EventLog, Level, as_line
from vllm_caption.monitoring.stats import EngineStats, RunStats

PLAIN_EVERY_ITEMS = 50
PLAIN_EVERY_S = 10.0
ENGINES_EVERY_S = 60.0
_UNWRITABLE = (OSError, ValueError)


class Progress:
    """Shows one run's numbers on one stream and in one log file."""

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
            shape = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._bar = tqdm(
                total=0, unit="image", file=stream, bar_format=shape, dynamic_ncols=True
            )

    def tell(self, line: str, event: str = "message", level: Level = "info") -> None:
        """Show and log one line of text without breaking the bar."""
        self._tell(Event(event, line, level))

    def warn(self, line: str) -> None:
        """The same for what may want a hand."""
        self.tell(line, "warning", "warning")

    def record(self, event: str, text: str) -> None:
        """Log what is shown elsewhere."""
        self._log.write(Event(event, text))

    def update(self, stats: RunStats, now_s: float) -> None:
        """Show the present numbers; cheap enough to call often."""
        if self._bar is not None:
            with contextlib.suppress(*_UNWRITABLE):
                self._bar.total = stats.total
                self._bar.n = stats.finished
                self._bar.set_postfix_str(describe(stats, now_s))
        due = (
            stats.finished - self._shown_finished >= PLAIN_EVERY_ITEMS
            or now_s - self._shown_s >= PLAIN_EVERY_S
        )
        if due and stats.total:
            self._shown_finished, self._shown_s = stats.finished, now_s
            plus = "+" if stats.scanning else ""
            line = f"{stats.finished}/{stats.total}{plus} {describe(stats, now_s)}"
            self._number(Event("progress", line, fields=_fields(stats, now_s)))
            self._update_engines(stats, now_s)

    def _update_engines(self, stats: RunStats, now_s: float) -> None:
        """Now and then, how the work is shared and what each GPU does."""
        if (seconds := now_s - self._engines_shown_s) < ENGINES_EVERY_S:
            return
        then = self._captioned_then or [0] * len(stats.engines)
        rates = [(e.captioned - c) / seconds for e, c in zip(stats.engines, then, strict=True)]
        if self._captioned_then:
            shown = (f"{i}: {describe_engine(e, rates[i])}" for i, e in enumerate(stats.engines))
            fields = {
                "engines": [_engine_fields(e, r) for e, r in zip(stats.engines, rates, strict=True)]
            }
            self._number(Event("engines", "Engines: " + "; ".join(shown), fields=fields))
        self._engines_shown_s = now_s
        self._captioned_then = [engine.captioned for engine in stats.engines]

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            with contextlib.suppress(*_UNWRITABLE):
                self._bar.close()

    def _number(self, event: Event) -> None:
        """What a bar shows anyway, and what quiet leaves out."""
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


class DocumentProgress:
    """Documents read so far: a bar on a terminal, a plain line every 10 s elsewhere, or nothing."""

    def __init__(self, total: int, *, quiet: bool, stream: TextIO | None = None) -> None:
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
                print(f"{documents}/{self._total} documents", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def describe(stats: RunStats, now_s: float) -> str:
    """Rates, time to go, failures and engines, in one short text."""
    images_per_s, tokens_per_s = stats.rates(now_s)
    eta_s = stats.eta_s(now_s)
    eta = "?" if eta_s is None else tqdm.format_interval(int(eta_s))
    parts = [
        f"{images_per_s:.1f} images/s",
        f"{tokens_per_s:.0f} tokens/s",
        f"ETA {eta}",
        f"failed {stats.failed}",
        f"engines {stats.num_up}/{len(stats.engines)}",
    ]
    if stats.limited_by is not None:
        parts.append(f"limited by {stats.limited_by}")
    return ", ".join(parts)


def describe_engine(engine: EngineStats, images_per_s: float) -> str:
    """One engine in a few words; what is not known is left out."""
    parts = [f"{engine.captioned:,} captioned", f"{images_per_s:.1f} images/s"]
    parts += [f"{engine.in_flight} in flight"]
    if engine.state != "up":
        parts.insert(0, engine.state)
    if engine.restarts:
        parts.append(f"{engine.restarts} restarts")
    if engine.gpu_percent is not None:
        parts.append(f"GPU {engine.gpu_percent:.0f} %")
    if engine.gpu_memory_percent is not None:
        parts.append(f"its memory {engine.gpu_memory_percent:.0f} %")
    if engine.gpu_temperature_c is not None:
        parts.append(f"{engine.gpu_temperature_c:.0f} °C")
    return ", ".join(parts)


def _fields(stats: RunStats, now_s: float) -> Mapping[str, object]:
    images_per_s, tokens_per_s = stats.rates(now_s)
    return {
        "finished": stats.finished,
        "total": stats.total,
        "scanning": stats.scanning,
        "captioned": stats.captioned,
        "failed": stats.failed,
        "images_per_s": round(images_per_s, 2),
        "tokens_per_s": round(tokens_per_s, 1),
        "eta_s": stats.eta_s(now_s),
        "engines_up": stats.num_up,
    }


def _engine_fields(engine: EngineStats, images_per_s: float) -> Mapping[str, object]:
    return {
        "state": engine.state,
        "captioned": engine.captioned,
        "images_per_s": round(images_per_s, 2),
        "in_flight": engine.in_flight,
        "restarts": engine.restarts,
        "gpu_percent": engine.gpu_percent,
        "gpu_memory_percent": engine.gpu_memory_percent,
        "gpu_temperature_c": engine.gpu_temperature_c,
    }
