"""What `tune` prints: a line for each setting as it is measured, then the line to run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vllm_caption.commands.tune.ladder import fastest, gain_of, is_too_short
from vllm_caption.commands.tune.record import INTERRUPTED, TUNING, Figures, Setting, Tuning
from vllm_caption.commands.tune.settings import word
from vllm_caption.cost import Billing
from vllm_caption.formatting import counted, duration
from vllm_caption.monitoring.bottleneck import REMEDIES

MIN_WIDTH: Final = 8
MAX_PROBLEM_CHARS: Final = 160
COLUMNS: Final = (
    *("images/s", "tokens/s", "s/image p50", "p95", "limited by", "GPU", "GPU memory", "start"),
)
"""After the one of the value."""


def announcement(name: str, number: int, seconds: float | None, *, again: bool) -> str:
    """Before a setting is measured."""
    what = f"Too short to be reliable; measuring {name} again" if again else f"Measuring {name}"
    time = "" if seconds is None else f", about {duration(seconds)}"
    return f"{what} on {counted(number, 'item')}{time}."


def width_of(flag: str, values: tuple[str, ...]) -> int:
    """Of the first column."""
    return max(MIN_WIDTH, len(flag), *map(len, values)) if values else max(MIN_WIDTH, len(flag))


def header(flag: str, width: int) -> str:
    """The names of the columns."""
    return "  ".join([f"{flag:>{width}}", *COLUMNS])


def table_row(setting: Setting, width: int) -> str:
    """Its figures, or why there are none."""
    if setting.figures is None:
        problem = setting.problem or ""
        if len(problem) > MAX_PROBLEM_CHARS:
            problem = f"{problem[: MAX_PROBLEM_CHARS - 1]}…"
        return f"{setting.value:>{width}}  {problem}"
    values = zip(COLUMNS, _values(setting.figures), strict=True)
    return "  ".join([f"{setting.value:>{width}}", *(f"{v:>{len(name)}}" for name, v in values)])


def _values(figures: Figures) -> Iterator[str]:
    yield f"{figures.images_per_s:.2f}"
    yield f"{figures.tokens_per_s:.0f}"
    yield f"{figures.engine_s_p50:.2f}"
    yield f"{figures.engine_s_p95:.2f}"
    yield figures.limited_by or "–"
    yield _percent(figures.gpu_percent)
    yield _percent(figures.gpu_memory_percent)
    yield f"{figures.start_s:.0f} s"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}%"


def conclusion(tuning: Tuning, folder: Path, gpu_hour_price: float | None = None) -> Iterator[str]:
    """Why it ended, and what to do with the result."""
    if tuning.ended != INTERRUPTED:
        yield f"Done: {tuning.ended}."
    elif tuning.settings:
        yield "Interrupted: run the same command line again to measure the rest."
    else:
        yield "Interrupted before a setting was measured: run the same command line again."
        return
    best = fastest(tuning.flag, tuning.settings)
    if best is None:
        reasons = {setting.problem for setting in tuning.settings}
        yield "No setting could be measured" + (f": {reasons.pop()}" if len(reasons) == 1 else ".")
    elif best.figures is not None:
        if is_too_short(best.figures):
            yield _unreliable(tuning, best.value, best.figures.steady_s)
        yield f"Fastest: {word(tuning.flag, best.value)}{gain_of(best, tuning.settings)}."
        yield from _remarks(best.figures, gpu_hour_price)
        yield f"Run: {tuning.command}"
    yield f"Captions: {Path(tuning.settings[0].output).parent}/*/"
    yield f"Figures: {folder / TUNING}"


def _remarks(best: Figures, gpu_hour_price: float | None) -> Iterator[str]:
    if gpu_hour_price is not None:
        billing = Billing(gpu_hour_price, best.gpus_per_engine)
        yield f"  Cost: {billing.costs(images_per_s=best.images_per_s)}."
    if best.limited_by is not None and (remedy := REMEDIES.get(best.limited_by)):
        yield f"  The bottleneck is {best.limited_by}, not the engine. Faster with: {remedy}."


def _unreliable(tuning: Tuning, value: str, seconds: float) -> str:
    measured = f"{word(tuning.flag, value)} was measured for only {duration(seconds)}"
    sample = f"{counted(tuning.num_sampled, 'item')} now"
    return f"Not reliable: {measured}; raise --sample ({sample}), or give a larger input."
