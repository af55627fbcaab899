"""PNGs without the three things at which Pillow is slow: inflating pixel data, undoing the filters
of its rows, and reading chunks.

Pillow inflates row by row, even with zlib-ng, and undoes the filters byte by byte; libdeflate
inflates everything in one call, and libspng undoes the filters with SIMD. Pillow's reader of chunks
takes a sixth of the time of a small PNG, and most PNGs have no chunk that matters. OpenCV and
torchvision, which vLLM installs anyway, decode a PNG no faster than Pillow, or hardly
(benchmarks/RESULTS.md).

libspng holds the interpreter's lock, and Pillow releases it. So libspng is used by a process with
one thread, as a run's decoders are; one that decodes in several threads uses Pillow's filters.

Invariant: the pixels are those that Pillow alone would give. Of a file, libspng sees nothing but
the header, and pixel data that libdeflate has checked. A PNG that is damaged in any way is left to
Pillow.
"""

from __future__ import annotations

import re
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Final

import deflate
import pyspng
from PIL import Image

MAX_STORED_BYTES: Final = 32 * 2**20
"""Of pixel data that is stored: for a moment there are two copies of it."""
_MAX_BLOCK: Final = 65535
_NO_CHECK: Final = bytes(4)
"""Instead of the check of pixel data, which neither Pillow nor libspng reads."""
_HEADER: Final = struct.Struct(">IIBBBBB")
_END: Final = b"\0\0\0\0IEND"
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the colour type of the header (PNG specification, 11.2.2)."""
_PLAIN_MODES: Final = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}
"""By the colour type, of 8 bits a sample."""
_HEAD_BYTES: Final = 33
"""The signature and the header."""
_PLAIN_HEAD: Final = re.compile(rb"IHDR.{8}\x08[\0\2\4\6]\0{3}", re.DOTALL)
_SAYS_NOTHING: Final = re.compile(
    rb"pHYs.{9}|sRGB.|(?:bKGD|sBIT|tIME).*|tEXtSoftware\0.{0,99}", re.DOTALL
)
"""A chunk in front of pixel data that changes nothing about them."""

_Stored = tuple[int, int, list[bytes | memoryview]]


def plain_image(data: bytes, max_pixels: int) -> Image.Image | None:
    """The pixels of a PNG of 8-bit gray or colour in which no other chunk affects them.

    None if one does, and for one that is large, interlaced, animated or damaged in any way.
    """
    if not _is_plain(data):
        return None
    width, height, _, colour, *_ = _HEADER.unpack_from(data, 16)
    if not 0 < width * height <= max_pixels or (found := _stored_pixels(data)) is None:
        return None
    _, end, stored = found
    if not data.startswith(_END, end):
        return None
    mode, alone = _PLAIN_MODES[colour], threading.active_count() == 1
    try:
        if mode == "LA" or not alone:  # libspng makes no LA
            stream = b"".join(stored)
            del found, stored
            return Image.frombytes(mode, (width, height), stream, "zip", mode, 0)
        png = b"".join((data[:_HEAD_BYTES], *_chunk(stored)))
        del found, stored
        return Image.frombuffer(mode, (width, height), pyspng.load(png, mode), "raw", mode, 0, 1)
    except (ValueError, RuntimeError):  # a filter that does not exist
        return None


def _is_plain(data: bytes) -> bool:
    """Whether it has 8 bits a sample, and no chunk before its pixel data that matters."""
    position, expected = 8, _PLAIN_HEAD
    while not data.startswith(b"IDAT", position + 4):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        content, check = data[position + 4 : end], data[end : end + 4]
        if not expected.fullmatch(content) or zlib.crc32(content) != int.from_bytes(check, "big"):
            return False
        position, expected = end + 4, _SAYS_NOTHING
    return expected is _SAYS_NOTHING


def store_pixels(data: bytes) -> bytes:
    """The same PNG with its pixel data stored, not deflated.

    ``data`` itself if it is large, interlaced, animated or damaged in any way.
    """
    if (found := _stored_pixels(data)) is None:
        return data
    start, end, stored = found
    view = memoryview(data)
    return b"".join((view[:start], *_chunk(stored), view[end:]))


def _stored_pixels(data: bytes) -> _Stored | None:
    """Where the IDAT chunks start and end, and what they hold together, but not deflated."""
    try:
        num_bytes = _num_bytes(data)
        if not 0 < num_bytes <= MAX_STORED_BYTES:
            return None
        start, end, packed = _pixel_data(data)
        pixels = deflate.zlib_decompress(packed, num_bytes)
    except (struct.error, LookupError, ValueError, deflate.DeflateError):
        return None
    return (start, end, list(_stored(pixels))) if len(pixels) == num_bytes else None


def _chunk(stored: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """As one IDAT chunk."""
    return [sum(map(len, stored)).to_bytes(4, "big"), b"IDAT", *stored, _NO_CHECK]


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
    and decoders stop behind the last row. Views: the copy that `deflate.zlib_compress(pixels, 0)`
    makes takes a quarter of all the time.
    """
    view, size = memoryview(pixels), len(pixels)
    yield b"\x78\x01"
    for first in range(0, size, _MAX_BLOCK):
        length = min(_MAX_BLOCK, size - first)
        yield struct.pack("<BHH", 0, length, length ^ 0xFFFF)
        yield view[first : first + length]
