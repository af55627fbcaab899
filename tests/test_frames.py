"""Which frame of an animation, and which pixels of an icon, the model sees."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, features
from support.image_files import ellipse, encoded, icon, put

from vllm_caption.config import ImageConfig
from vllm_caption.errors import ItemError
from vllm_caption.images.decode import PreparedImage, prepare_image

RED, WHITE, BLACK = (220, 20, 20), (255, 255, 255), (0, 0, 0)
SIZE = (60, 40)
FORMATS = ["GIF", "PNG", "WEBP", "TIFF"]
if features.check("avif"):
    FORMATS.append("AVIF")
BLANKS = {
    "transparent": Image.new("RGBA", SIZE),
    "white": Image.new("RGBA", SIZE, (*WHITE, 255)),
    "black": Image.new("RGBA", SIZE, (*BLACK, 255)),
}
SHAPE = ellipse((*RED, 255), SIZE)


def prepare(root: Path, content: bytes, config: ImageConfig | None = None) -> PreparedImage:
    return prepare_image(str(root), put(root, "image", content), config or ImageConfig())


def animated(image_format: str, *frames: Image.Image) -> bytes:
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "AVIF": {"quality": 95}}.get(
        image_format, {}
    )
    if image_format == "GIF":
        options["disposal"] = 2
    first, *others = frames
    return encoded(first, image_format, save_all=True, append_images=others, **options)


def middle(prepared: PreparedImage) -> tuple[int, ...]:
    found = prepared.image.getpixel((prepared.image.width // 2, prepared.image.height // 2))
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("number", [1, 3])
def test_first_frame_that_shows_something_is_used(
    tmp_path: Path, image_format: str, blank: str, number: int
) -> None:
    # Equal frames would be merged.
    faint = [BLANKS[blank].copy() for _ in range(number)]
    later = ellipse((20, 20, 220, 255), SIZE)
    prepared = prepare(tmp_path, animated(image_format, *faint, SHAPE, later))
    assert middle(prepared) == pytest.approx(RED, abs=12)


@pytest.mark.parametrize("image_format", FORMATS)
def test_first_frame_is_kept_if_it_shows_something(tmp_path: Path, image_format: str) -> None:
    later = ellipse((20, 20, 220, 255), SIZE)
    prepared = prepare(tmp_path, animated(image_format, SHAPE, later))
    assert middle(prepared) == pytest.approx(RED, abs=12)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "TIFF"])
def test_image_with_only_blank_frames_stays_blank(tmp_path: Path, image_format: str) -> None:
    white = animated(image_format, BLANKS["white"], BLANKS["black"])
    assert middle(prepare(tmp_path, white)) == WHITE
    nothing = animated(image_format, BLANKS["transparent"], BLANKS["transparent"])
    with pytest.raises(ItemError, match="nothing to see"):
        prepare(tmp_path, nothing)


def test_pages_of_a_tiff_may_differ_in_size_and_each_is_limited(tmp_path: Path) -> None:
    page = ellipse((*RED, 255), (200, 100))
    content = animated("TIFF", BLANKS["white"], page)
    assert (prepare(tmp_path, content).width, prepare(tmp_path, content).height) == (200, 100)
    config = ImageConfig(max_image_pixels=SIZE[0] * SIZE[1])
    assert middle(prepare(tmp_path, content, config)) == WHITE


def test_search_for_a_frame_decodes_a_bounded_number_of_pixels(tmp_path: Path) -> None:
    blank = [BLANKS["white"].copy() for _ in range(6)]
    content = animated("TIFF", *blank, SHAPE)
    config = ImageConfig(max_image_pixels=SIZE[0] * SIZE[1])
    assert middle(prepare(tmp_path, content, config)) == WHITE
    assert middle(prepare(tmp_path, content)) == pytest.approx(RED, abs=12)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "TIFF"])
def test_damage_after_a_blank_first_frame_leaves_that_frame(
    tmp_path: Path, image_format: str
) -> None:
    content = animated(image_format, BLANKS["white"], SHAPE)
    for cut in range(len(content) - 60, len(content), 7):
        try:
            prepare(tmp_path, content[:cut])
        except ItemError as error:
            assert error.kind == "decode_error"


# ------------------------------------------------------------------ icons


def bitmap(size: tuple[int, int], alpha: int, mask: bytes = b"", bits: int = 32) -> bytes:
    """A red bitmap as in an icon."""
    header = struct.pack("<IiiHHIIiiII", 40, size[0], size[1] * 2, 1, bits, 0, 0, 0, 0, 0, 0)
    return header + bytes((*reversed(RED), alpha)) * (size[0] * size[1]) + mask


def cursor(content: bytes) -> bytes:
    """A cursor, whose hot spot is where an icon has its depth."""
    entry = struct.pack("<4B2H2I", 16, 16, 0, 0, 5, 7, len(content), 22)
    return struct.pack("<3H", 0, 2, 1) + entry + content


ROW = 4
HALF_MASK = bytes([0b11111111, 0, 0, 0]) * 16
"""The left half is transparent."""


@pytest.mark.parametrize("make", [lambda c: icon((16, 16, 32, c)), cursor], ids=["ICO", "CUR"])
@pytest.mark.parametrize("mask", [bytes(ROW * 16), b"\xff" * ROW * 16, b""])
def test_icon_whose_alpha_is_zero_everywhere_is_opaque(
    tmp_path: Path, make: Any, mask: bytes
) -> None:
    prepared = prepare(tmp_path, make(bitmap((16, 16), 0, mask)))
    assert (middle(prepared), prepared.backdrop, prepared.width) == (RED, "none", 16)


@pytest.mark.parametrize("make", [lambda c: icon((16, 16, 32, c)), cursor], ids=["ICO", "CUR"])
def test_icon_without_alpha_has_the_transparency_of_its_mask(tmp_path: Path, make: Any) -> None:
    prepared = prepare(tmp_path, make(bitmap((16, 16), 0, HALF_MASK)))
    assert (prepared.image.getpixel((2, 8)), prepared.image.getpixel((12, 8))) == (WHITE, RED)


def test_icon_with_alpha_keeps_it_whatever_its_mask(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, icon((16, 16, 32, bitmap((16, 16), 255, HALF_MASK))))
    assert prepared.image.getpixel((2, 8)) == RED


def test_cursor_is_read_and_its_hot_spot_is_not_its_depth(tmp_path: Path) -> None:
    png = encoded(Image.new("RGB", (16, 16), RED), "PNG")
    assert middle(prepare(tmp_path, cursor(png))) == RED


def test_icon_of_a_fully_transparent_png_still_shows_nothing(tmp_path: Path) -> None:
    png = encoded(Image.new("RGBA", (16, 16)), "PNG")
    with pytest.raises(ItemError, match="nothing to see"):
        prepare(tmp_path, icon((16, 16, 32, png)))


@pytest.mark.parametrize(("alpha", "backdrop"), [(0, "none"), (255, "none"), (128, "white")])
def test_bitmap_of_32_bits_whose_alpha_is_zero_everywhere_is_opaque(
    tmp_path: Path, alpha: int, backdrop: str
) -> None:
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 16, 16, 1, 32, 3, 1024, 0, 0, 0, 0) + masks
    header = header.ljust(108, b"\0")
    pixels = bytes((*reversed(RED), alpha)) * 256
    start = 14 + len(header)
    file = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + header + pixels
    prepared = prepare(tmp_path, file)
    assert prepared.backdrop == backdrop
    assert middle(prepared) == (RED if alpha != 128 else pytest.approx((237, 137, 137), abs=2))


def test_targa_image_is_not_mistaken_for_a_cursor(tmp_path: Path) -> None:
    targa = struct.pack("<3BHHB4H2B", 0, 0, 2, 0, 0, 0, 0, 0, 4, 4, 24, 0) + bytes(48)
    with pytest.raises(ItemError) as caught:
        prepare(tmp_path, targa)
    assert caught.value.kind == "not_an_image"
