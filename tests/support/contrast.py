"""The contrast of two colours, as WCAG 2 defines it."""

from __future__ import annotations

Colour = tuple[int, int, int]


def contrast(one: Colour, other: Colour) -> float:
    """The contrast, from 1 to 21. AA requires 4.5 for text, and 3 for lines that matter."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Colour) -> float:
    parts = [part / 255 for part in colour]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
