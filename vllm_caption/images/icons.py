"""Icons and cursors (ICO, CUR): the one image of several that a viewer shows.

Pillow decodes an ICO while opening it, and picks the shallowest of the largest images; so it gets a
file with one image. Invariant: alpha that is zero everywhere counts as absent, as in every viewer;
then the mask after the colours says what is transparent, or nothing is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import numpy as np

_PNG: Final = b"\x89PNG"
_ENTRY: Final = struct.Struct("<4B2H2I")
"""Width, height, number of colours, 0, planes, bits (in a cursor: hot spot), length, offset."""


def largest_icon(data: bytes, check_size: Callable[[tuple[int, int]], None]) -> bytes:
    """An ICO with only the largest, deepest image of an ICO or CUR.

    ``check_size`` may refuse its size by raising.
    """
    kind, count = struct.unpack_from("<2H", data, 2)
    entries = list(_ENTRY.iter_unpack(data[6 : 6 + _ENTRY.size * count]))

    def depth(entry: tuple[int, ...]) -> int:
        if data[entry[7] :].startswith(_PNG) or len(data) < entry[7] + 16:
            return (entry[5] if kind == 1 else 0) or 256
        return int(struct.unpack_from("<H", data, entry[7] + 14)[0])

    best = max(entries, key=lambda e: ((e[0] or 256) * (e[1] or 256), depth(e)))
    frame = data[best[7] :]
    if frame.startswith(_PNG):
        check_size(struct.unpack_from(">II", frame, 16))
    else:
        width, twice_height = struct.unpack_from("<ii", frame, 4)
        size = abs(width), abs(twice_height) // 2
        check_size(size)
        if depth(best) == 32:
            frame = _with_alpha(frame, size)
    entry = (*best[:4], 1, min(depth(best), 32), best[6], 6 + _ENTRY.size)
    return struct.pack("<3H", 0, 1, 1) + _ENTRY.pack(*entry) + frame


def _with_alpha(frame: bytes, size: tuple[int, int]) -> bytes:
    """A 32-bit bitmap; if its alpha is zero everywhere, with alpha from its mask."""
    width, height = size
    start = struct.unpack_from("<I", frame)[0]
    pixels = frame[start : start + 4 * width * height]
    alpha = np.frombuffer(pixels, np.uint8)[3::4]
    if len(alpha) != width * height or alpha.any():
        return frame
    shown = np.full((height, width), 255, np.uint8)
    row = (width + 31) // 32 * 4
    behind = frame[start + len(pixels) :][: row * height]
    if len(behind) == row * height:
        bits = np.unpackbits(np.frombuffer(behind, np.uint8).reshape(height, row), axis=1)
        by_mask = (1 - bits[:, :width]) * np.uint8(255)
        shown = by_mask if by_mask.any() else shown
    coloured = np.frombuffer(pixels, np.uint8).copy()
    coloured[3::4] = shown.ravel()
    return frame[:start] + coloured.tobytes() + frame[start + len(pixels) :]
