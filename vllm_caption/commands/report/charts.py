"""Charts as inline SVG, without a library: lines over time, histograms, bars.

Invariants: every chart has a title, named axes with units and a description in words; nothing but
numbers and escaped text enters the markup; colours come from the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import Markup, escape

from vllm_caption.formatting import counted, percentages

WIDTH: Final = 440
HEIGHT: Final = 220
LEFT: Final = 46
RIGHT: Final = 18
TOP: Final = 12
BOTTOM: Final = 36
PLOT_WIDTH: Final = WIDTH - LEFT - RIGHT
PLOT_HEIGHT: Final = HEIGHT - TOP - BOTTOM
NUM_BINS: Final = 40
_STEPS: Final = (1.0, 2.0, 5.0, 10.0)
_TIMES: Final = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True, slots=True)
class Strand:
    """One line: values over seconds; NaN is a gap. ``low`` and ``high``: a band around it."""

    name: str
    at_s: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @property
    def most(self) -> float:
        """The highest point; 0 if there is none."""
        top = self.values if self.high is None else self.high
        known = top[np.isfinite(top)]
        return float(known.max()) if len(known) else 0.0


def line_chart(
    title: str, unit: str, strands: Sequence[Strand], borders: Sequence[float] = ()
) -> Markup:
    """Lines over running time; ``borders``: when one run ended and the next began."""
    end_s = max((float(s.at_s[-1]) for s in strands if len(s.at_s)), default=1.0) or 1.0
    most = max(strand.most for strand in strands)
    y_ticks = ticks(max(most, 100.0) if unit == "%" else most)
    unit_s, unit_name = time_unit(end_s)
    x_ticks = [t for t in ticks(end_s / unit_s) if t * unit_s <= end_s * 1.001]
    marks = [(LEFT + PLOT_WIDTH * t * unit_s / end_s, short(t)) for t in x_ticks]
    body = [_axes(marks, y_ticks, f"running time ({unit_name})", unit)]
    for border in borders:
        x = LEFT + PLOT_WIDTH * border / end_s
        body.append(_line(x, TOP, x, TOP + PLOT_HEIGHT, "border"))
    for number, strand in enumerate(strands):
        body.append(_strand(strand, end_s, y_ticks[-1], number))
    text = "; ".join(_in_words(s, unit, named=len(strands) > 1) for s in strands)
    return _figure(title, unit, text, body, [s.name for s in strands] if len(strands) > 1 else [])


def histogram(title: str, unit: str, values: np.ndarray, *, log: bool = False) -> Markup:
    """How many items have which value; ``values`` are finite, and not empty. ``log``: each bin is
    wider than the one before by a constant factor."""
    edges = _edges(values, log=log)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    y_ticks = ticks(float(counts.max()))
    step = PLOT_WIDTH / len(counts)
    marks = _log_marks(edges) if log else _bin_marks(edges)
    body = [_axes(marks, y_ticks, unit, "items")]
    for i, number in enumerate(counts.tolist()):
        height = PLOT_HEIGHT * number / y_ticks[-1]
        span = f"{short(float(edges[i]))} to {short(float(edges[i + 1]))} {unit}"
        body.append(
            _bar(
                LEFT + step * i,
                TOP + PLOT_HEIGHT - height,
                max(step - 1, 0.5),
                height,
                f"{span}: {counted(number, 'item')}",
            )
        )
    middle, nearly_all, most = np.quantile(values, (0.5, 0.99, 1), method="inverted_cdf")
    text = (
        f"{counted(len(values), 'item')}; half are at or below {short(middle)}, 99% at or below"
        f" {short(nearly_all)}, the maximum is {short(most)} {_one(unit) if most == 1 else unit}"
    )
    return _figure(title, unit, text, body, [])


def bar_chart(
    title: str, unit: str, bars: Sequence[tuple[str, float]], *, shares: bool = True
) -> Markup:
    """One horizontal bar for each name, with its share of the sum."""
    most = max((v for _, v in bars), default=1.0) or 1.0
    pitch, name_width = 22, 120
    body = []
    of_all = percentages([value for _, value in bars])
    for row, (name, value) in enumerate(bars):
        y, width = TOP + row * pitch, (WIDTH - name_width - 100) * value / most
        label = f"{short(value)} ({of_all[row]})" if shares else short(value)
        body.append(_text(name_width - 6, y + 11, name[:18], "end"))
        exact = counted(int(value), _one(unit)) if shares else f"{short(value)} {unit}"
        body.append(_bar(name_width, y, max(width, 1), pitch - 6, f"{name}: {exact}"))
        body.append(_text(name_width + width + 6, y + 11, label, "start"))
    text = "; ".join(f"{name}: {short(value)}" for name, value in bars)
    return _figure(title, unit, text, body, [], height=TOP + len(bars) * pitch + 4)


def _one(unit: str) -> str:
    """Its singular; "s" is a second."""
    return unit.removesuffix("s") or unit


def _edges(values: np.ndarray, *, log: bool) -> np.ndarray:
    if log:
        least = max(float(np.quantile(values, 0.001)), 1e-4)
        most = max(float(values.max()), least * 2)
        return np.geomspace(least, most, NUM_BINS + 1)
    least, most = float(min(values.min(), 0)), float(values.max())
    if np.equal(np.mod(values, 1), 0).all():  # whole numbers: bins of whole numbers
        size = max(1, int(np.ceil((most + 1 - least) / NUM_BINS)))
        num_bins = max(1, int(np.ceil((most + 1 - least) / size)))
        return least + size * np.arange(num_bins + 1, dtype=float)
    return np.linspace(least, most or 1.0, NUM_BINS + 1)


def _bin_marks(edges: np.ndarray) -> list[tuple[float, str]]:
    """Positions and labels of some bin edges."""
    step, size = PLOT_WIDTH / (len(edges) - 1), max(1, -(-len(edges) // 8))
    return [(LEFT + step * i, short(float(edges[i]))) for i in range(0, len(edges), size)]


def _log_marks(edges: np.ndarray) -> list[tuple[float, str]]:
    """Positions and labels of round numbers on a logarithmic axis."""
    low, high = np.log10(edges[0]), np.log10(edges[-1])
    round_numbers = (1,) if high - low > 2 else (1, 2, 5)
    powers = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    values = [digit * 10.0**power for power in powers for digit in round_numbers]
    places = [
        (LEFT + PLOT_WIDTH * float(np.log10(v) - low) / (high - low), short(v)) for v in values
    ]
    marks = [(x, label) for x, label in places if LEFT <= x <= LEFT + PLOT_WIDTH]
    ends = [
        (float(LEFT), short(float(edges[0]))),
        (float(LEFT + PLOT_WIDTH), short(float(edges[-1]))),
    ]
    return marks if len(marks) > 1 else ends


def _strand(strand: Strand, end_s: float, most: float, number: int) -> Markup:
    def points(values: np.ndarray) -> list[str]:
        xs = LEFT + PLOT_WIDTH * strand.at_s / end_s
        ys = TOP + PLOT_HEIGHT * (1 - values / most)
        return [f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True)]

    known = np.isfinite(strand.values)
    parts = []
    for run in np.split(np.arange(len(known)), np.flatnonzero(np.diff(known.astype(int))) + 1):
        if not len(run) or not known[run[0]]:
            continue
        if strand.low is not None and strand.high is not None:
            up = [points(strand.high)[i] for i in run]
            down = [points(strand.low)[i] for i in run[::-1]]
            parts.append(f'<path class="band c{number}" d="M{"L".join([*up, *down])}Z"/>')
        line = "L".join(points(strand.values)[i] for i in run)
        parts.append(f'<path class="line c{number}" d="M{line}{"h2" if len(run) == 1 else ""}"/>')
    return Markup("".join(parts))


def _axes(
    x_marks: Iterable[tuple[float, str]], y_ticks: list[float], x_label: str, y_label: str
) -> Markup:
    bottom = TOP + PLOT_HEIGHT
    parts = []
    for tick in y_ticks:
        y = bottom - PLOT_HEIGHT * tick / y_ticks[-1]
        parts += [_line(LEFT, y, LEFT + PLOT_WIDTH, y, "grid")]
        parts += [_text(LEFT - 5, y + 4, short(tick), "end")]
    for x, label in x_marks:
        anchor = "end" if x > WIDTH - RIGHT - 5 and len(label) > 4 else "middle"  # else cut off
        parts += [_line(x, bottom, x, bottom + 4, "tick"), _text(x, bottom + 15, label, anchor)]
    parts.append(_text(LEFT + PLOT_WIDTH / 2, HEIGHT - 5, x_label, "middle", "axis"))
    turned = f"rotate(-90 10 {TOP + PLOT_HEIGHT / 2:.1f})"
    parts.append(_text(10, TOP + PLOT_HEIGHT / 2, y_label, "middle", "axis", turned))
    return Markup("").join(parts)


def _figure(
    title: str, unit: str, text: str, body: list[Markup], legend: list[str], height: int = HEIGHT
) -> Markup:
    keys = Markup("").join(
        Markup('<span class="key c{}">{}</span>').format(i, name) for i, name in enumerate(legend)
    )
    return Markup(
        '<figure class="chart"><figcaption>{} <span class="unit">({})</span>{}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}. {}">{}</svg>'
        '<p class="said">{}</p></figure>'
    ).format(title, unit, keys, WIDTH, height, title, text, Markup("").join(body), text)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')


def _bar(x: float, y: float, width: float, height: float, tooltip: str) -> Markup:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return Markup(f'<rect class="bar" {box}><title>{escape(tooltip)}</title></rect>')


def _text(
    x: float, y: float, text: str, anchor: str, kind: str = "mark", turned: str = ""
) -> Markup:
    turn = f' transform="{turned}"' if turned else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}'
    return Markup(f'<text class="{kind}" {place}>{escape(text)}</text>')


def _in_words(strand: Strand, unit: str, *, named: bool) -> str:
    known = strand.values[np.isfinite(strand.values)]
    name = f"{strand.name}: " if named or strand.low is not None else ""
    return (
        f"{name}on average {short(float(known.mean()))} {unit},"
        f" from {short(float(known.min()))} to {short(strand.most)}"
    )


def ticks(most: float, count: int = 4) -> list[float]:
    """Round numbers from 0 to about ``most`` or above, in about ``count`` steps."""
    if not most > 0 or not math.isfinite(most):
        return [0.0, 1.0]
    rough = most / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * s for s in _STEPS if power * s >= rough * 0.999)
    return [step * i for i in range(math.ceil(most / step * 0.999) + 1)]


def short(value: float) -> str:
    """A few digits: 0.25, 12, 1.5k, 2M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def time_unit(most_s: float) -> tuple[float, str]:
    """The unit (its seconds and its name) for an axis that reaches ``most_s``."""
    return next(((size, name) for size, name in _TIMES if most_s >= 2 * size), _TIMES[-1])
