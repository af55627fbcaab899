"""ICC profiles that lcms cannot create, written byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Sequence

Primaries = tuple[tuple[float, float, float], ...]

SRGB: Primaries = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
DISPLAY_P3: Primaries = (
    (0.5151, 0.2412, -0.0011),
    (0.2920, 0.6922, 0.0419),
    (0.1571, 0.0666, 0.7841),
)
PROPHOTO: Primaries = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))
"""Red, green and blue as XYZ on D50."""
_WHITE = (0.9642, 1.0, 0.8249)


def rgb_profile(primaries: Primaries, gamma: float) -> bytes:
    """A display with these primaries and one tone curve."""
    tags = {f"{name}XYZ": _xyz(p) for name, p in zip("rgb", primaries, strict=True)}
    curves = {f"{name}TRC": _curve(gamma) for name in "rgb"}
    return _profile(b"mntr", b"RGB ", b"XYZ ", {**tags, **curves})


def gray_profile(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {"kTRC": _curve(gamma)})


def cmyk_profile(corners: Sequence[tuple[float, float, float]]) -> bytes:
    """A press whose 16 mixtures of full inks have these colours, as Lab; black varies fastest."""
    identity = bytes(range(256))
    clut = bytes(
        value
        for lightness, a, b in corners
        for value in (round(lightness * 2.55), round(a + 128), round(b + 128))
    )
    matrix = struct.pack(">9i", *(0x10000 * (n % 4 == 0) for n in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + clut + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {"A2B0": lut})


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[str, bytes]) -> bytes:
    tags = {"wtpt": _xyz(_WHITE), "desc": _description(), "cprt": b"text\0\0\0\0none\0", **tags}
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name.encode(), start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s4sI4s4s8sI12s4s",
        *(start + len(body), b"", 0x02400000, kind, space, connection),
        *(struct.pack(">6H", 2020, 1, 1, 0, 0, 0), b"acsp", b"", 0, b"", b"", b"", 0),
        *(struct.pack(">3i", *(round(v * 65536) for v in _WHITE)), b""),
    )
    return header.ljust(128, b"\0") + table + body


def _xyz(value: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in value))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _description() -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
