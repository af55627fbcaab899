"""Numbers on axes: round ticks, and short words for them. Pure functions."""

from __future__ import annotations

import math
from typing import Final

_STEPS: Final = (1.0, 2.0, 5.0, 10.0)
_TIMES: Final = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


def ticks(most: float, count: int = 4) -> list[float]:
    """Round numbers from 0 to at least ``most``, about ``count`` steps apart."""
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


def brief(value: int) -> str:
    """All digits below a million."""
    return f"{value:,}" if value < 1_000_000 else short(value)


def seconds(value: float) -> str:
    """A duration in the unit that suits it: 0.25 s, 90 s, 5 min, 3.5 h."""
    if value < 1:
        return f"{value * 1000:.3g} ms"
    unit_s, unit = time_unit(value)
    return f"{value / unit_s:.3g} {unit}"


def time_unit(most_s: float) -> tuple[float, str]:
    """The unit (its seconds and its name) for an axis that reaches ``most_s``."""
    return next(((size, name) for size, name in _TIMES if most_s >= 2 * size), _TIMES[-1])
