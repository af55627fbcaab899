"""The shapes as point lists: pure geometry, no pixels.

Invariants: a path lies around the origin, y grows downwards, and `placed` scales it so that the
longer side of its bounding box is 1; closed shapes list each corner once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

STROKES = frozenset({"line", "wave"})
"""Open paths: always drawn as one thick stroke."""
ALWAYS_SOLID = STROKES | {"ring"}
QUARTER_TURNS: dict[str, tuple[int, ...]] = {
    "arrow": (0, 90, 180, 270),
    "crescent": (0, 180),
    "line": (0, 45, 90, 135),
    "rectangle": (0, 90),
    "oval": (0, 90),
    "diamond": (0, 90),
}
"""The directions in which a shape may point, in degrees; the others stand upright."""


@dataclass(frozen=True)
class Turn:
    """How a unit shape is turned and squeezed."""

    angle_deg: float
    aspect: float
    """Shorter through longer side, for the shapes that have a free one."""


def _arc(start_deg: float, end_deg: float, count: int = 72) -> Points:
    angles = np.radians(np.linspace(start_deg, end_deg, count, endpoint=True))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(corners: int, first_deg: float = -90.0) -> Points:
    return _arc(first_deg, first_deg + 360.0, corners + 1)[:-1]


def _box(width: float, height: float) -> Points:
    x, y = width / 2, height / 2
    return np.array([[-x, -y], [x, -y], [x, y], [-x, y]])


def _star() -> Points:
    spikes = _regular(10)
    spikes[1::2] *= 0.42
    return spikes


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1)


def _arrow() -> Points:
    half = np.array([[-1.0, 0.24], [0.1, 0.24], [0.1, 0.66], [1.0, 0.0]])
    return np.concatenate([half, half[2::-1] * [1, -1]])


def _cross(arm: float = 0.34) -> Points:
    quarter = np.array([[-arm, -1.0], [arm, -1.0], [arm, -arm]])
    turns = [np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), k) for k in range(4)]
    return np.concatenate([quarter @ turn for turn in turns])


def _crescent() -> Points:
    outer = _arc(48, 312)
    horn_x, horn_y = outer[0]
    centre_x = 0.62
    radius = float(np.hypot(horn_x - centre_x, horn_y))
    horn_deg = float(np.degrees(np.arctan2(horn_y, horn_x - centre_x)))
    inner = _arc(360 - horn_deg, horn_deg) * radius + [centre_x, 0]
    return np.concatenate([outer, inner[1:-1]])


def _wave() -> Points:
    x = np.linspace(-1, 1, 96)
    return np.stack([x, 0.26 * np.sin(x * 2 * np.pi)], axis=1)


_PATHS: dict[str, Callable[[float], Points]] = {
    "circle": lambda _: _regular(96),
    "oval": lambda aspect: _regular(96) * [1, aspect],
    "square": lambda _: _box(1, 1),
    "rectangle": lambda aspect: _box(1, aspect),
    "triangle": lambda _: _regular(3),
    "star": lambda _: _star(),
    "heart": lambda _: _heart(),
    "arrow": lambda _: _arrow(),
    "ring": lambda _: _regular(96),
    "cross": lambda _: _cross(),
    "diamond": lambda aspect: _regular(4) * [1, aspect],
    "hexagon": lambda _: _regular(6, 0.0),
    "crescent": lambda _: _crescent(),
    "wave": lambda _: _wave(),
    "line": lambda _: np.array([[-1.0, 0.0], [1.0, 0.0]]),
}


def placed(shape: str, turn: Turn) -> Points:
    """The shape's path, turned, centred on its bounding box, whose longer side is 1."""
    angle = np.radians(turn.angle_deg)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = _PATHS[shape](turn.aspect) @ rotation
    low, high = points.min(axis=0), points.max(axis=0)
    centred: Points = (points - (low + high) / 2) / (high - low).max()
    return centred
