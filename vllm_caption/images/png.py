"""A PNG whose pixel data need not be inflated any more, because that is where Pillow is slow.

Pillow inflates row by row, even with zlib-ng; libdeflate inflates all of it in one go. Only the
packing changes: Pillow still decodes and judges the rest. Preparing a large PNG takes a sixth to a
third less time than by Pillow alone. OpenCV and torchvision, which vLLM installs anyway, decode a
PNG no faster than Pillow, or hardly (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import deflate

MAX_STORED_BYTES: Final = 32 * 2**20
"""Of pixel data that is stored: for a moment there are two copies of it."""
_MAX_BLOCK: Final = 65535
_NO_CHECK: Final = bytes(4)
"""Instead of the check of pixel data, which Pillow does not read."""
_HEADER: Final = struct.Struct(">IIBBBBB")
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the colour type of the header (PNG specification, 11.2.2)."""


def store_pixels(data: bytes) -> bytes:
    """The same PNG with its pixel data stored, not deflated.

    ``data`` itself if it is large, interlaced, animated or damaged in any way.
    """
    try:
        num_bytes = _num_bytes(data)
        if not 0 < num_bytes <= MAX_STORED_BYTES:
            return data
        start, end, packed = _pixel_data(data)
        pixels = deflate.zlib_decompress(packed, num_bytes)
    except (struct.error, LookupError, ValueError, deflate.DeflateError):
        return data
    if len(pixels) != num_bytes:
        return data
    stored = list(_stored(pixels))
    length, view = sum(map(len, stored)).to_bytes(4, "big"), memoryview(data)
    return b"".join((view[:start], length, b"IDAT", *stored, _NO_CHECK, view[end:]))


def _num_bytes(data: bytes) -> int:
    """Of the rows, each with the byte that names its filter; 0 where they are interlaced."""
    width: int
    width, height, depth, colour, _, _, interlaced = _HEADER.unpack_from(data, 16)
    row = 1 + (width * depth * _CHANNELS[colour] + 7) // 8
    return 0 if interlaced else int(height) * row


def _pixel_data(data: bytes) -> tuple[int, int, bytes]:
    """Where the IDAT chunks start and end, and what they hold together. Raises ValueError."""
    position, start, pieces = 8, 0, []
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            start = start or position
            pieces.append(data[position + 8 : position + 8 + length])
        elif start:
            return start, position, pieces[0] if len(pieces) == 1 else b"".join(pieces)
        elif kind == b"acTL":
            raise ValueError("its frames may differ from its pixel data")
        position += 12 + length


def _stored(pixels: bytearray) -> Iterator[bytes | memoryview]:
    """As a zlib stream of stored blocks (RFC 1950, RFC 1951 3.2.4).

    None is marked as the last, so that no checksum need follow: libdeflate has checked the pixels,
    and Pillow stops behind the last row. Views: the copy that `deflate.zlib_compress(pixels, 0)`
    makes takes a quarter of all the time.
    """
    view, size = memoryview(pixels), len(pixels)
    yield b"\x78\x01"
    for first in range(0, size, _MAX_BLOCK):
        length = min(_MAX_BLOCK, size - first)
        yield struct.pack("<BHH", 0, length, length ^ 0xFFFF)
        yield view[first : first + length]
