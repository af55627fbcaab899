"""A run on one line: the live line of a terminal, and the same words without a bar for logs.
Pure: functions of the run's figures, the time and the width.

Invariants: the live line is never wider than the terminal; its bar depends only on what is done and
on the width, so that it never seems to go backwards, and has at least ten cells if ten cells fit;
the least important fields are shortened or dropped first; what is unknown is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from typing import Final

from vllm_caption.formatting import duration, per_second, percent_done
from vllm_caption.monitoring.figures import EngineFigures, RunFigures, num_up, time_to_go

MIN_BAR: Final = 10
MAX_BAR: Final = 20
BLOCKS: Final = "█░"
ASCII_BLOCKS: Final = "#-"
_SHORTENED: Final = (
    *("elapsed", "tokens", "all engines", "rate", "limit", "eta", "count", "some engines"),
    *("limit", "rate", "failed", "phase", "phase", "count", "eta", "phase"),
)
"""Which field loses its longest form next; fields with several forms are listed once per form."""


def live_line(
    run: RunFigures,
    engines: Sequence[EngineFigures],
    elapsed_s: float | None,
    now: datetime,
    width: int,
    blocks: str = BLOCKS,
) -> str:
    """The whole line. ``elapsed_s``: None to leave it out; ``blocks``: the characters of the bar,
    for done and left."""
    fields = _fields(run, engines, now)
    steps = iter(_SHORTENED)
    if elapsed_s is not None:
        elapsed = duration(round(elapsed_s))
        if run.phase is None:
            fields["elapsed"] = (f"{elapsed} elapsed",)
        elif not run.phase.endswith(f", {elapsed}"):
            fields["phase"] = (f"{run.phase} ({elapsed} in all)", *fields["phase"])
            steps = chain(["phase"], _SHORTENED)
    # As long as the input is being read, nobody knows of how much this is a share.
    share = 0.0 if run.scanning or not run.total else run.finished / run.total
    done = "" if run.scanning else percent_done(run.finished, run.total)
    cells = min(max(width // 8, MIN_BAR), MAX_BAR)
    room = width - len("100% ") - cells - 1
    while len(text := _joined(fields)) > room and (name := next(steps, None)):
        fields[name] = fields.get(name, ())[1:]
    return f"{done:>4} {bar(share, cells, blocks)} {text}"[:width].rstrip()


def text_line(
    run: RunFigures, engines: Sequence[EngineFigures], now: datetime | None = None
) -> str:
    """The same without the bar and in full, for a log. ``now``: to show when the run will end."""
    return _joined(_fields(run, engines, now))


def bar(share: float, cells: int, blocks: str = BLOCKS) -> str:
    """A bar with this many cells; the last one is filled only when everything is done."""
    num_done = min(int(share * cells), cells)
    return blocks[0] * num_done + blocks[1] * (cells - num_done)


def _joined(fields: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(forms[0] for forms in fields.values() if forms)


def _fields(
    run: RunFigures, engines: Sequence[EngineFigures], now: datetime | None
) -> dict[str, tuple[str, ...]]:
    """The fields in the order in which they are shown, each with its forms, longest first."""
    fields: dict[str, tuple[str, ...]] = {}
    more = "+" if run.scanning else ""
    if run.total or not run.scanning:
        fields["count"] = (f"{run.finished:,}/{run.total:,}{more}", f"of {run.total:,}{more}")
    if run.phase is not None:
        what = run.phase.partition(", ")[0]  # without the seconds
        fields["phase"] = (run.phase, what, what.partition(" for ")[0].partition(" (")[0])
    elif run.images_per_s is not None:
        rate = per_second(run.images_per_s)
        fields["rate"] = (f"{rate} images/s", f"{rate}/s")
        if run.eta_s is not None:
            fields["eta"] = (time_to_go(run.eta_s, now), time_to_go(run.eta_s))
    else:
        fields["rate"] = ("measuring the speed", "measuring")
    if run.failed:
        fields["failed"] = (f"{run.failed:,} failed",)
    if run.phase is None:
        up, number = num_up(engines), len(engines)
        fields["all engines" if up == number else "some engines"] = (f"{up}/{number} engines",)
        if run.limited_by is not None:
            fields["limit"] = (f"limited by {run.limited_by}", f"limit: {run.limited_by}")
        if run.tokens_per_s is not None:
            fields["tokens"] = (f"{run.tokens_per_s:,.0f} tokens/s",)
    return fields
