"""Builders of image files for tests, down to the bytes that Pillow itself would not write."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageDraw

CLEAR = (0, 0, 0, 0)


def ellipse(
    fill: tuple[int, ...], size: tuple[int, int] = (120, 80), outside: tuple[int, ...] = CLEAR
) -> Image.Image:
    """An RGBA ellipse that leaves the corners to ``outside``."""
    image = Image.new("RGBA", size, outside)
    inset = size[0] // 10, size[1] // 10
    ImageDraw.Draw(image).ellipse((*inset, size[0] - inset[0] - 1, size[1] - inset[1] - 1), fill)
    return image


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def put(root: Path, name: str, content: Image.Image | bytes, **options: object) -> str:
    """Write ``content`` as ``root/name`` (a PNG unless ``format`` says otherwise)."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        image_format = str(options.pop("format", "PNG"))
        path.write_bytes(encoded(content, image_format, **options))
    return name


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(
    size: tuple[int, int], bits: int, colour_type: int, row: bytes, extra: bytes = b""
) -> bytes:
    """A PNG of equal rows, at any bit depth, with ``extra`` chunks before the pixels."""
    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0)
    pixels = zlib.compress((b"\0" + row) * size[1], 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", pixels)
        + png_chunk(b"IEND", b"")
    )


def icon(*frames: tuple[int, int, int, bytes]) -> bytes:
    """An ICO of (declared width, declared height, bits, content) frames."""
    offset = 6 + 16 * len(frames)
    directory, body = struct.pack("<3H", 0, 1, len(frames)), b""
    for width, height, bits, content in frames:
        entry = width % 256, height % 256, 0, 0, 1, bits, len(content), offset + len(body)
        directory += struct.pack("<4B2H2I", *entry)
        body += content
    return directory + body
