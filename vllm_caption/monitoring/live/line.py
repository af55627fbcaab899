"""The live line of a run on a terminal. Pure: a function of the run's figures, the time and the
width.

Invariants: the line is never wider than the terminal; the bar has at least ten cells if ten cells
fit; the least important fields are shortened or dropped first.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from vllm_caption.formatting import duration, percent_done
from vllm_caption.monitoring.figures import EngineFigures, RunFigures, num_up, time_to_go

MIN_BAR: Final = 10
MAX_BAR: Final = 40
BLOCKS: Final = "█░"
ASCII_BLOCKS: Final = "#-"
_SHORTENED: Final = (
    *("elapsed", "tokens", "limit", "all engines", "rate", "count", "some engines", "eta"),
    *("rate", "failed", "phase", "phase", "count", "eta", "phase"),
)
"""Which field loses its longest form next; fields with several forms are listed once per form."""


def live_line(
    run: RunFigures,
    engines: Sequence[EngineFigures],
    elapsed_s: float,
    now: datetime,
    width: int,
    blocks: str = BLOCKS,
) -> str:
    """The whole line. ``blocks``: the characters of the bar, for done and left."""
    fields = _fields(run, engines, elapsed_s, now)
    share = run.finished / run.total if run.total else 0.0
    before = f"{percent_done(run.finished, run.total):>4} "
    room = width - len(before) - MIN_BAR - 1
    steps = iter(_SHORTENED)
    while len(text := _joined(fields)) > room and (name := next(steps, None)):
        fields[name] = fields.get(name, ())[1:]
    cells = MIN_BAR + min(max(room - len(text), 0), MAX_BAR - MIN_BAR)
    return f"{before}{bar(share, cells, blocks)} {text}"[:width].rstrip()


def bar(share: float, cells: int, blocks: str = BLOCKS) -> str:
    """A bar with this many cells; the last one is filled only when everything is done."""
    num_done = min(int(share * cells), cells)
    return blocks[0] * num_done + blocks[1] * (cells - num_done)


def _joined(fields: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(forms[0] for forms in fields.values() if forms)


def _fields(
    run: RunFigures, engines: Sequence[EngineFigures], elapsed_s: float, now: datetime
) -> dict[str, tuple[str, ...]]:
    """The fields in the order in which they are shown, each with its forms, longest first."""
    more = "+" if run.scanning else ""
    fields: dict[str, tuple[str, ...]] = {
        "count": (f"{run.finished:,}/{run.total:,}{more}", f"of {run.total:,}{more}")
    }
    if run.phase is not None:
        what = run.phase.partition(", ")[0]  # without the seconds
        fields["phase"] = (run.phase, what, what.partition(" for ")[0].partition(" (")[0])
    else:
        fields["rate"] = (f"{run.images_per_s:.1f} images/s", f"{run.images_per_s:.1f}/s")
        fields["eta"] = (time_to_go(run.eta_s, now), time_to_go(run.eta_s))
    if run.failed:
        fields["failed"] = (f"{run.failed:,} failed",)
    if run.phase is None:
        up, number = num_up(engines), len(engines)
        fields["all engines" if up == number else "some engines"] = (f"{up}/{number} engines",)
        if run.limited_by is not None:
            fields["limit"] = (f"limited by {run.limited_by}",)
        fields["tokens"] = (f"{run.tokens_per_s:,.0f} tokens/s",)
    fields["elapsed"] = (f"{duration(round(elapsed_s))} elapsed",)
    return fields
