"""From files to pixels: what the model sees, and what is refused with which message."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, features
from support.image_files import ellipse, encoded, icon, png_chunk, put, raw_png

from vllm_caption.config import ImageConfig
from vllm_caption.errors import ItemError
from vllm_caption.images.composite import MAX_SIDE_RATIO
from vllm_caption.images.decode import PreparedImage, prepare_image
from vllm_caption.images.files import resolve_image

CONFIG = ImageConfig()
NEEDS_AVIF = pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
AVIF = pytest.param("AVIF", marks=NEEDS_AVIF)
RED, BLUE, WHITE, BLACK, GRAY = (220, 20, 20), (10, 90, 220), (255,) * 3, (0,) * 3, (128,) * 3
RGB = tuple[int, ...]


def prepare(root: Path, content: Image.Image | bytes, **options: Any) -> PreparedImage:
    config = options.pop("config", CONFIG)
    return prepare_image(str(root), put(root, "image", content, **options), config)


def refusal(root: Path, name: str, config: ImageConfig = CONFIG) -> ItemError:
    with pytest.raises(ItemError) as caught:
        prepare_image(str(root), name, config)
    reason = caught.value.reason
    assert reason and reason.isprintable() and "0x" not in reason and str(root) not in reason
    return caught.value


def kind_of(root: Path, content: Image.Image | bytes, **options: Any) -> str:
    config = options.pop("config", CONFIG)
    return refusal(root, put(root, "image", content, **options), config).kind


def pixel(prepared: PreparedImage, x: float, y: float) -> RGB:
    """The colour at fractions of the image."""
    width, height = prepared.image.size
    found = prepared.image.getpixel((int(x * width), int(y * height)))
    assert isinstance(found, tuple)
    return found


def near(found: RGB, wanted: RGB, tolerance: int = 3) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))


def shape_shows(prepared: PreparedImage) -> bool:
    """Does the image differ from what is at its corner?"""
    pixels = np.asarray(prepared.image).astype(int)
    return bool((np.abs(pixels - pixels[0, 0]).max(axis=-1) >= 24).any())


# ------------------------------------------------------------------ names and paths


def test_resolve_of_a_file_below_the_root_is_its_absolute_path(tmp_path: Path) -> None:
    put(tmp_path, "a/b.png", b"x")
    assert resolve_image(str(tmp_path), "a/b.png") == str((tmp_path / "a/b.png").resolve())


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("", "bad_name"),
        ("a\0.png", "bad_name"),
        ("\ud800.png", "bad_name"),
        ("\udcff\udcfe.png", "bad_name"),
        ("n" * 300, "bad_name"),
        ("/".join(["d" * 200] * 25), "bad_name"),
        ("/etc/passwd", "path_escape"),
        ("..", "path_escape"),
        (".", "path_escape"),
        ("./ok.png", "path_escape"),
        ("../x.png", "path_escape"),
        ("folder/../ok.png", "path_escape"),
        ("folder//x.png", "path_escape"),
        ("folder/", "not_a_file"),
        ("folder", "not_a_file"),
        ("absent.png", "missing_file"),
        ("ok.png/x.png", "missing_file"),
        ("OK.PNG", "missing_file"),
        ("ok.png\n", "missing_file"),
        ("~/x.png", "missing_file"),
        ("$HOME/x.png", "missing_file"),
        ("*.png", "missing_file"),
        ("%2e%2e/x.png", "missing_file"),
        ("folder\\x.png", "missing_file"),
    ],
)
def test_resolve_of_a_bad_name_fails_with_its_kind(tmp_path: Path, file: str, kind: str) -> None:
    put(tmp_path, "ok.png", ellipse(RED))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ItemError) as caught:
        resolve_image(str(tmp_path), file)
    assert caught.value.kind == kind


@pytest.mark.parametrize("name", [" a .png ", "new\nline.png", "[ab]*?.png", "back\\slash.png"])
def test_resolve_takes_an_awkward_name_literally(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, b"x")
    assert resolve_image(str(tmp_path), name).endswith(name)


def test_resolve_of_a_root_that_is_a_link_finds_its_files(tmp_path: Path) -> None:
    put(tmp_path / "real", "a.png", b"x")
    (tmp_path / "link").symlink_to("real")
    assert resolve_image(str(tmp_path / "link"), "a.png") == str(tmp_path / "real" / "a.png")


@pytest.mark.parametrize(
    ("link", "target", "file", "kind"),
    [
        ("out.png", "../outside/secret.png", "out.png", "path_escape"),
        ("folder", "../outside", "folder/secret.png", "path_escape"),
        ("zero.png", "/dev/zero", "zero.png", "path_escape"),
        ("sibling.png", "../root_sibling/a.png", "sibling.png", "path_escape"),
        ("loop.png", "loop.png", "loop.png", "unreadable"),
        ("dangling.png", "nothing.png", "dangling.png", "missing_file"),
    ],
)
def test_resolve_of_a_link_refuses_one_that_leaves_the_root_or_dangles(
    tmp_path: Path, link: str, target: str, file: str, kind: str
) -> None:
    put(tmp_path, "outside/secret.png", ellipse(RED))
    put(tmp_path, "root_sibling/a.png", ellipse(RED))
    root = tmp_path / "root"
    root.mkdir()
    (root / link).symlink_to(target)
    assert refusal(root, file).kind == kind


def test_resolve_of_a_link_that_stays_inside_follows_it(tmp_path: Path) -> None:
    put(tmp_path, "a.png", ellipse(RED))
    (tmp_path / "link.png").symlink_to("a.png")
    assert prepare_image(str(tmp_path), "link.png", CONFIG).width == 120


def test_resolve_of_a_long_chain_of_links_is_unreadable(tmp_path: Path) -> None:
    put(tmp_path, "0", ellipse(RED))
    for number in range(60):
        (tmp_path / str(number + 1)).symlink_to(str(number))
    assert refusal(tmp_path, "60").kind == "unreadable"


# ------------------------------------------------------------------ reading


def test_fifo_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    assert refusal(tmp_path, "fifo.png").kind == "not_a_file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads files of mode 000")
def test_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    put(tmp_path, "a.png", ellipse(RED))
    (tmp_path / "a.png").chmod(0)
    assert refusal(tmp_path, "a.png").kind == "unreadable"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_file_that_the_os_will_not_open_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    put(tmp_path, "a.png", ellipse(RED))
    monkeypatch.setattr(os, "open", refuse)
    assert refusal(tmp_path, "a.png").kind == "unreadable"


def test_socket_is_not_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        assert refusal(tmp_path, "s.png").kind == "not_a_file"


def test_sparse_garbage_of_300_mb_is_refused_by_its_first_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "sparse.png", b"garbage")
    os.truncate(tmp_path / "sparse.png", 300_000_000)
    monkeypatch.setattr(os, "fdopen", lambda *_, **__: pytest.fail("the file was read"))
    assert refusal(tmp_path, "sparse.png").kind == "not_an_image"


def test_image_file_beyond_the_size_on_disk_is_too_large(tmp_path: Path) -> None:
    put(tmp_path, "sparse.png", ellipse(RED))
    os.truncate(tmp_path / "sparse.png", 2**30)
    error = refusal(tmp_path, "sparse.png")
    assert (error.kind, error.reason) == ("too_large", "it has 1024 MiB; the limit is 512 MiB")


def test_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = encoded(ellipse(RED), "PNG") + b"trailing"
    assert prepare(tmp_path, content).sha256 == hashlib.sha256(content).hexdigest()


def test_many_refusals_leak_no_descriptor(tmp_path: Path) -> None:
    put(tmp_path, "text.png", b"text")
    put(tmp_path, "cut.png", encoded(ellipse(RED), "PNG")[:60])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        refusal(tmp_path, "text.png")
        refusal(tmp_path, "cut.png")
    assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"just text\n" * 9, "not in a format that is read"),
        (b"<?xml version='1.0'?>\n<!-- x -->\n<svg xmlns='s'>", "SVG"),
        (b"<!DOCTYPE html><title>404</title>", "web page"),
        (b"%PDF-1.4\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"PK\3\4" + bytes(60), "ZIP"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(60), "HEIC"),
        (b"P6 1 1 255\n\1\2\3", "not in a format that is read"),
    ],
)
def test_content_that_is_not_an_image_is_named_in_the_reason(
    tmp_path: Path, content: bytes, words: str
) -> None:
    error = refusal(tmp_path, put(tmp_path, "a.png", content))
    assert error.kind == "not_an_image"
    assert words in error.reason and "PNG, JPEG" in error.reason


def test_empty_file_is_said_to_be_empty_and_no_more(tmp_path: Path) -> None:
    error = refusal(tmp_path, put(tmp_path, "a.png", b""))
    assert (error.kind, error.reason) == ("not_an_image", "the file is empty")


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 95}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
        ("ICO", {}),
        ("ICO", {"bitmap_format": "bmp"}),
        pytest.param("AVIF", {"quality": 95}, marks=NEEDS_AVIF),
    ],
)
def test_format_is_found_by_content_and_shows_the_shape(
    tmp_path: Path, image_format: str, options: dict[str, Any]
) -> None:
    image = ellipse((*RED, 255), (64, 64), (*WHITE, 255)).convert("RGB")
    prepared = prepare(tmp_path, image, format=image_format, **options)
    assert (prepared.width, prepared.height, prepared.image.mode) == (64, 64, "RGB")
    assert near(pixel(prepared, 0.5, 0.5), RED, 12)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_shows_its_first_frame(tmp_path: Path, image_format: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in (RED, BLUE, WHITE)]
    options: dict[str, Any] = {"lossless": True} if image_format == "WEBP" else {}
    prepared = prepare(
        tmp_path, frames[0], format=image_format, save_all=True, append_images=frames[1:], **options
    )
    assert near(pixel(prepared, 0.5, 0.5), RED)


def test_mpo_shows_its_first_jpeg(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in (RED, BLUE)]
    prepared = prepare(tmp_path, frames[0], format="MPO", save_all=True, append_images=frames[1:])
    assert near(pixel(prepared, 0.5, 0.5), RED)


def test_icon_shows_its_largest_image(tmp_path: Path) -> None:
    small, large = (
        encoded(Image.new("RGB", (side, side), c), "PNG") for side, c in ((16, RED), (48, BLUE))
    )
    prepared = prepare(tmp_path, icon((16, 16, 32, small), (48, 48, 32, large)))
    assert (prepared.width, pixel(prepared, 0.5, 0.5)) == (48, BLUE)


def test_icon_of_equal_sizes_shows_the_deepest(tmp_path: Path) -> None:
    coarse, fine = (encoded(Image.new("RGB", (48, 48), c), "PNG") for c in (RED, BLUE))
    prepared = prepare(tmp_path, icon((48, 48, 4, coarse), (48, 48, 32, fine)))
    assert pixel(prepared, 0.5, 0.5) == BLUE


def test_icon_that_declares_less_than_it_holds_is_too_large_before_decoding(tmp_path: Path) -> None:
    huge = raw_png((9000, 9000), 1, 0, bytes(1125))
    assert kind_of(tmp_path, icon((16, 16, 32, huge))) == "too_large"


def test_icon_without_images_is_a_decode_error(tmp_path: Path) -> None:
    assert kind_of(tmp_path, icon()) == "decode_error"


# ------------------------------------------------------------------ damage and size


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO"])
def test_truncated_file_is_a_decode_error(tmp_path: Path, image_format: str) -> None:
    noise = Image.frombytes("RGB", (160, 120), random.Random(7).randbytes(160 * 120 * 3))
    content = encoded(noise, image_format)
    assert kind_of(tmp_path, content[: len(content) // 2]) == "decode_error"


@pytest.mark.parametrize("cut", [20, 40])
def test_png_cut_in_its_header_is_a_decode_error(tmp_path: Path, cut: int) -> None:
    assert kind_of(tmp_path, encoded(ellipse(RED), "PNG")[:cut]) == "decode_error"


def test_text_chunk_that_unpacks_to_200_mb_is_a_decode_error(tmp_path: Path) -> None:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"a" * 1_000_000) for _ in range(200)) + packer.flush()
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + packed)
    assert kind_of(tmp_path, raw_png((8, 8), 8, 2, bytes(24), bomb)) == "decode_error"


@pytest.mark.parametrize(
    ("image_format", "decoder"), [("PNG", "pyspng.load"), ("GIF", "PIL.Image.open")]
)
def test_decoder_out_of_memory_is_a_decode_error_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_format: str, decoder: str
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    put(tmp_path, "a", ellipse(RED), format=image_format)
    monkeypatch.setattr(decoder, exhausted)
    monkeypatch.setattr("threading.active_count", lambda: 1)  # as in a run's decoders
    error = refusal(tmp_path, "a")
    assert (error.kind, "memory" in error.reason) == ("decode_error", True)


def test_broken_colour_profile_is_ignored(tmp_path: Path) -> None:
    profile = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"garbage"))
    prepared = prepare(tmp_path, raw_png((8, 8), 8, 2, bytes(RED) * 8, profile))
    assert pixel(prepared, 0.5, 0.5) == RED


@pytest.mark.parametrize("side", [9000, 12000, 30000])
def test_pixels_beyond_the_cap_are_too_large_and_never_decoded(tmp_path: Path, side: int) -> None:
    content = raw_png((8, 8), 1, 0, b"\0")
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    content = content[:8] + png_chunk(b"IHDR", header) + content[33:]  # without pixel data
    assert kind_of(tmp_path, content) == "too_large"


def test_pixels_up_to_the_cap_are_allowed(tmp_path: Path) -> None:
    image = Image.new("L", (40, 25), 7)
    assert prepare(tmp_path, image, config=ImageConfig(max_image_pixels=1000)).width == 40
    assert kind_of(tmp_path, image, config=ImageConfig(max_image_pixels=999)) == "too_large"


def test_pillow_warnings_never_reach_the_caller(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        put(tmp_path, "big.png", raw_png((10_000, 9_500), 1, 0, bytes(1250)))
        config = ImageConfig(max_image_pixels=100_000_000)  # above Pillow's warning, 89 million
        assert prepare_image(str(tmp_path), "big.png", config).width == 10_000


# ------------------------------------------------------------------ orientation


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", AVIF])
@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [
        (1, (120, 60), (0.1, 0.5)),
        (2, (120, 60), (0.9, 0.5)),
        (3, (120, 60), (0.9, 0.5)),
        (6, (60, 120), (0.5, 0.1)),
        (8, (60, 120), (0.5, 0.9)),
    ],
)
def test_exif_orientation_turns_the_image_upright(
    tmp_path: Path,
    image_format: str,
    orientation: int,
    size: tuple[int, int],
    red_at: tuple[float, float],
) -> None:
    image = Image.new("RGB", (120, 60), WHITE)
    image.paste(RED, (0, 0, 60, 60))
    exif = Image.Exif()
    exif[0x112] = orientation
    for config in (CONFIG, ImageConfig(max_side=30)):
        prepared = prepare(tmp_path, image, format=image_format, exif=exif.tobytes(), config=config)
        assert (prepared.width, prepared.height) == size
        assert near(pixel(prepared, *red_at), RED, 12)
        assert near(pixel(prepared, 1 - red_at[0], 1 - red_at[1]), WHITE, 12)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_broken_exif_leaves_the_image_as_it_is(tmp_path: Path, exif: bytes) -> None:
    prepared = prepare(tmp_path, Image.new("RGB", (40, 30), RED), format="JPEG", exif=exif)
    assert (prepared.width, prepared.height) == (40, 30)
    assert not prepared.image.getexif(), "a broken EXIF must not travel on to the engine"


# ------------------------------------------------------------------ modes


def ramp(mode: str, dtype: str, top: float) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, top, 64).astype(dtype), (64, 1)))


@pytest.mark.parametrize(
    ("content", "image_format"),
    [
        (lambda: ramp("I;16", "<u2", 65535), "PNG"),
        (lambda: ramp("I;16", "<u2", 65535), "TIFF"),
        (lambda: ramp("I;16B", ">u2", 65535), "TIFF"),
        (lambda: ramp("I", "<i4", 255), "TIFF"),
        (lambda: ramp("I", "<i4", 65535), "TIFF"),
        (lambda: ramp("I", "<i4", 2e9), "TIFF"),
        (lambda: ramp("F", "<f4", 1), "TIFF"),
        (lambda: ramp("F", "<f4", 255), "TIFF"),
        (lambda: ramp("F", "<f4", 1e30), "TIFF"),
    ],
)
def test_deep_gray_is_scaled_not_clipped(
    tmp_path: Path, content: Callable[[], Image.Image], image_format: str
) -> None:
    for config in (CONFIG, ImageConfig(max_side=32)):
        prepared = prepare(tmp_path, content(), format=image_format, config=config)
        for x in (0.25, 0.5, 0.75):
            assert near(pixel(prepared, x, 0.5), (round(255 * x),) * 3, 8)


def test_dark_16_bit_gray_stays_dark(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, ramp("I;16", "<u2", 4095))
    assert max(pixel(prepared, 0.99, 0.5)) <= 16


def test_nan_values_are_black_and_an_image_of_only_nan_fails(tmp_path: Path) -> None:
    values = np.full((8, 8), 1.0, "<f4")
    values[:, :4] = np.nan
    prepared = prepare(tmp_path, Image.fromarray(values), format="TIFF")
    assert (pixel(prepared, 0.1, 0.5), pixel(prepared, 0.9, 0.5)) == (BLACK, WHITE)
    values[:] = np.nan
    assert kind_of(tmp_path, Image.fromarray(values), format="TIFF") == "decode_error"


def test_16_bit_gray_with_a_transparent_level_is_flattened(tmp_path: Path) -> None:
    row = struct.pack(">4H", 300, 300, 40_000, 40_000)
    prepared = prepare(
        tmp_path, raw_png((4, 4), 16, 0, row, png_chunk(b"tRNS", struct.pack(">H", 300)))
    )
    assert (pixel(prepared, 0.1, 0.5), prepared.backdrop) == (WHITE, "white")
    assert near(pixel(prepared, 0.9, 0.5), (156,) * 3)


@pytest.mark.parametrize(
    ("bits", "row", "level"), [(1, b"\x0f", 1), (2, b"\x00\xff", 3), (4, b"\0\0\xff\xff", 15)]
)
def test_gray_of_few_bits_with_a_transparent_level_is_flattened(
    tmp_path: Path, bits: int, row: bytes, level: int
) -> None:
    transparent = png_chunk(b"tRNS", struct.pack(">H", level))
    prepared = prepare(tmp_path, raw_png((8, 4), bits, 0, row, transparent))
    assert prepared.backdrop == "white"
    assert (pixel(prepared, 0.1, 0.5), pixel(prepared, 0.9, 0.5)) == (BLACK, WHITE)


def test_16_bit_rgb_with_a_transparent_colour_is_flattened(tmp_path: Path) -> None:
    clear, solid = struct.pack(">3H", 0x1234, 0x5678, 0x9ABC), struct.pack(">3H", 0, 0, 0)
    prepared = prepare(tmp_path, raw_png((2, 2), 16, 2, clear + solid, png_chunk(b"tRNS", clear)))
    assert (pixel(prepared, 0, 0), pixel(prepared, 0.9, 0)) == (WHITE, BLACK)


def palette_image() -> Image.Image:
    image = Image.new("P", (64, 64), 0)
    image.putpalette([*BLACK, *BLACK, *RED] + [0] * 759)
    ImageDraw.Draw(image).rectangle((16, 16, 47, 47), fill=1)
    return image


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (ellipse((*BLACK, 255)).convert("LA"), {}),
        (palette_image(), {"transparency": 0}),
        (palette_image(), {"transparency": bytes([0, 200])}),
        (ellipse((*RED, 255)).quantize(8, Image.Quantize.FASTOCTREE), {}),
        (ellipse((*BLACK, 255)), {"format": "GIF"}),
        (ellipse((*BLACK, 255)), {"format": "WEBP"}),
        (ellipse((*BLACK, 255)), {"format": "TIFF"}),
        (ellipse((*BLACK, 255), (64, 64)), {"format": "ICO"}),
        (ellipse((*BLACK, 255), (64, 64)), {"format": "ICO", "bitmap_format": "bmp"}),
        (ellipse((0, 0, 0, 255), outside=(7, 7, 7, 255)).convert("L"), {"transparency": 7}),
    ],
)
def test_transparency_of_every_kind_is_flattened_on_white(
    tmp_path: Path, image: Image.Image, options: dict[str, Any]
) -> None:
    prepared = prepare(tmp_path, image, **options)
    assert prepared.backdrop == "white"
    assert pixel(prepared, 0, 0) == WHITE
    assert shape_shows(prepared)


def test_rgb_with_a_transparent_colour_is_flattened(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), (1, 2, 3))
    ImageDraw.Draw(image).rectangle((16, 16, 47, 47), fill=BLACK)
    prepared = prepare(tmp_path, image, transparency=(1, 2, 3))
    assert (pixel(prepared, 0, 0), pixel(prepared, 0.5, 0.5)) == (WHITE, BLACK)


@pytest.mark.parametrize(
    ("image", "image_format", "wanted"),
    [
        (Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.new("YCbCr", (64, 64), (76, 85, 255)), "TIFF", (254, 0, 0)),
        (
            Image.merge("LAB", [Image.new("L", (64, 64), v) for v in (136, 208, 195)]),
            "TIFF",
            (250, 3, 11),
        ),
        (Image.new("1", (64, 64), 1), "PNG", WHITE),
        (Image.new("L", (64, 64), 77), "JPEG", (77, 77, 77)),
    ],
)
def test_colour_space_becomes_rgb(
    tmp_path: Path, image: Image.Image, image_format: str, wanted: RGB
) -> None:
    prepared = prepare(tmp_path, image, format=image_format)
    assert near(pixel(prepared, 0.5, 0.5), wanted, 12)
    assert prepared.backdrop == "none"


# ------------------------------------------------------------------ backdrop


@pytest.mark.parametrize(
    ("fill", "backdrop"),
    [
        ((*BLACK, 255), "white"),
        ((*GRAY, 255), "white"),
        ((*RED, 255), "white"),
        ((231, 231, 231, 255), "white"),
        ((232, 232, 232, 255), "black"),
        ((*WHITE, 255), "black"),
        ((255, 255, 200, 255), "white"),
        ((*WHITE, 24), "black"),
        ((*WHITE, 3), "black"),
        ((*BLACK, 24), "white"),
        ((*BLACK, 128), "white"),
    ],
)
def test_backdrop_is_white_unless_the_shape_is_lost_on_it(
    tmp_path: Path, fill: RGB, backdrop: str
) -> None:
    for size in ((120, 80), (700, 500), (2000, 1500)):
        prepared = prepare(tmp_path, ellipse(fill, size))
        assert prepared.backdrop == backdrop
        level = {"white": WHITE, "black": BLACK, "gray": GRAY}[backdrop]
        assert pixel(prepared, 0, 0) == level


def test_backdrop_is_gray_if_white_and_black_both_hide_much(tmp_path: Path) -> None:
    image = Image.new("RGBA", (100, 100))
    image.paste((*WHITE, 255), (0, 0, 100, 55))
    image.paste((*BLACK, 255), (0, 60, 100, 100))
    assert prepare(tmp_path, image).backdrop == "gray"


@pytest.mark.parametrize(("height_of_white", "backdrop"), [(48, "white"), (52, "black")])
def test_backdrop_changes_when_more_than_half_is_lost_on_white(
    tmp_path: Path, height_of_white: int, backdrop: str
) -> None:
    image = Image.new("RGBA", (128, 102))
    image.paste((*RED, 255), (0, 0, 128, 100))
    image.paste((*WHITE, 255), (0, 0, 128, height_of_white))
    assert prepare(tmp_path, image).backdrop == backdrop


def test_backdrop_weighs_pixels_by_alpha(tmp_path: Path) -> None:
    image = Image.new("RGBA", (100, 100))
    image.paste((*BLACK, 30), (0, 0, 100, 60))  # a wide faint shadow
    image.paste((*WHITE, 255), (0, 60, 100, 90))  # a white shape
    assert prepare(tmp_path, image).backdrop != "white"


@pytest.mark.parametrize("side", [100, 256, 384])
@pytest.mark.parametrize("period", [3, 4, 5, 8, 16])
@pytest.mark.parametrize("axis", [0, 1])
def test_backdrop_of_a_pattern_is_that_of_most_of_it(
    tmp_path: Path, side: int, period: int, axis: int
) -> None:
    at = np.indices((side, side))[axis]
    for white in (1, period - 1):
        for phase in range(period):
            level = np.where((at + phase) % period < white, 255, 0)
            levels = np.dstack([level] * 3 + [np.full_like(level, 254)]).astype(np.uint8)
            backdrop = prepare(tmp_path, Image.fromarray(levels)).backdrop
            assert (backdrop == "white") == (2 * white < period)


@pytest.mark.parametrize("side", [64, 256, 1024, 3000])
def test_white_hairline_is_seen_at_every_size(tmp_path: Path, side: int) -> None:
    image = Image.new("RGBA", (side, side))
    ImageDraw.Draw(image).rectangle((5, 5, side - 6, side - 6), outline=(*WHITE, 255), width=2)
    prepared = prepare(tmp_path, image)
    assert prepared.backdrop == "black"
    assert shape_shows(prepared)


def test_opaque_alpha_channel_counts_as_no_transparency(tmp_path: Path) -> None:
    assert prepare(tmp_path, Image.new("RGBA", (40, 30), (*WHITE, 255))).backdrop == "none"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_fully_transparent_image_is_a_decode_error_with_nothing_to_see(
    tmp_path: Path, mode: str
) -> None:
    error = refusal(tmp_path, put(tmp_path, "a.png", Image.new(mode, (64, 64))))
    assert error.kind == "decode_error" and "nothing to see" in error.reason


@pytest.mark.parametrize("size", [(120, 80), (1800, 1200)])
def test_colours_hidden_under_alpha_0_never_show(tmp_path: Path, size: tuple[int, int]) -> None:
    noise = Image.frombytes("RGB", size, random.Random(5).randbytes(3 * size[0] * size[1]))
    shape = ellipse((20, 120, 220, 255), size)
    image = Image.composite(shape, noise.convert("RGBA"), shape.getchannel("A"))
    image.putalpha(shape.getchannel("A"))
    prepared = prepare(tmp_path, image)
    pixels = np.asarray(prepared.image).reshape(-1, 3)
    between = (pixels >= (19, 119, 219)).all(axis=1)  # every mixture of the shape's blue and white
    assert between.all()
    assert pixel(prepared, 0.5, 0.5) == (20, 120, 220)


# ------------------------------------------------------------------ size and ratio


@pytest.mark.parametrize(
    ("size", "result"),
    [
        ((1, 1), (1, 1)),
        ((300, 200), (300, 200)),
        ((1024, 1024), (1024, 1024)),
        ((1025, 700), (1024, 699)),
        ((2048, 1000), (1024, 500)),
        ((700, 5000), (143, 1024)),
    ],
)
def test_longer_side_is_reduced_to_max_side_and_never_enlarged(
    tmp_path: Path, size: tuple[int, int], result: tuple[int, int]
) -> None:
    prepared = prepare(tmp_path, Image.new("RGB", size, BLUE), config=CONFIG.unbounded())
    assert (prepared.image.size, (prepared.width, prepared.height)) == (result, size)
    assert pixel(prepared, 0.5, 0.5) == BLUE


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize(
    ("size", "result"),
    [((896, 896), (448, 448)), ((895, 895), (895, 895)), ((1101, 760), (551, 380))],
)
def test_image_is_averaged_to_at_least_twice_what_the_processor_keeps(
    tmp_path: Path, mode: str, size: tuple[int, int], result: tuple[int, int]
) -> None:
    prepared = prepare(tmp_path, Image.new(mode, size, BLUE if "RGB" in mode else 90))
    assert (prepared.image.size, (prepared.width, prepared.height)) == (result, size)


def test_jpeg_sliver_keeps_its_short_side(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, Image.new("RGB", (5000, 30), BLUE), format="JPEG", quality=95)
    assert prepared.image.size == (1024, 6)
    assert near(pixel(prepared, 0.5, 0.5), BLUE, 12)


def test_small_image_keeps_its_exact_pixels(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (160, 120), random.Random(7).randbytes(160 * 120 * 3))
    assert prepare(tmp_path, noise).image.tobytes() == noise.tobytes()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_fine_stripes_are_averaged_not_aliased(tmp_path: Path, image_format: str) -> None:
    stripes = np.zeros((1200, 3000, 3), np.uint8)
    stripes[:, ::2] = 255
    prepared = prepare(tmp_path, Image.fromarray(stripes), format=image_format)
    assert CONFIG.max_side >= prepared.image.width >= CONFIG.max_side / 2
    middle = np.asarray(prepared.image)[50:-50, 50:-50].astype(int)
    assert np.abs(middle - 128).max() < 60


@pytest.mark.parametrize(
    ("size", "max_pixels", "result"),
    [
        ((4033, 3023), CONFIG.max_pixels, (1009, 756)),
        ((1920, 1080), CONFIG.max_pixels, (960, 540)),
        ((1024, 1024), CONFIG.max_pixels, (512, 512)),
        ((800, 800), CONFIG.max_pixels, (800, 800)),
        ((4033, 3023), 1280 * 28 * 28, (1024, 768)),
    ],
)
def test_large_jpeg_is_decoded_to_at_least_twice_what_the_processor_keeps(
    tmp_path: Path, size: tuple[int, int], max_pixels: int, result: tuple[int, int]
) -> None:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    config = ImageConfig(max_pixels=max_pixels)
    prepared = prepare(tmp_path, image, format="JPEG", quality=90, config=config)
    assert ((prepared.width, prepared.height), prepared.image.size) == (size, result)
    for y in (0.25, 0.75):
        assert near(pixel(prepared, 0.5, y), (round(255 * y),) * 3, 3)


@pytest.mark.parametrize(
    "size",
    [(1, 5000), (5000, 1), (1, 201), (201, 1), (3, 900), (10, 2048), (13, 2600), (2000, 9)],
)
@pytest.mark.parametrize("colour", [BLUE, WHITE, BLACK])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_sliver_is_padded_in_a_colour_that_shows_it(
    tmp_path: Path, size: tuple[int, int], colour: RGB, mode: str
) -> None:
    fill = colour if mode == "RGB" else (*colour, 200)
    prepared = prepare(tmp_path, Image.new(mode, size, fill))
    width, height = prepared.image.size
    assert max(width, height) <= CONFIG.max_side
    assert max(width, height) <= MAX_SIDE_RATIO * min(width, height)
    assert (width > height) == (size[0] > size[1])
    assert shape_shows(prepared), "the middle differs from the padded edge"


def test_side_ratio_of_exactly_200_is_not_padded(tmp_path: Path) -> None:
    assert prepare(tmp_path, Image.new("RGB", (1, 200), BLUE)).image.size == (1, 200)


def test_random_sizes_always_fit_the_processor(tmp_path: Path) -> None:
    chance = random.Random(3)
    for _ in range(60):
        size = chance.randint(1, 3000), chance.choice([1, 2, 3, 5, 8, 40])
        config = ImageConfig(max_side=chance.choice([28, 100, 1024]))
        prepared = prepare(tmp_path, Image.new("L", size, 90), config=config)
        width, height = prepared.image.size
        assert 1 <= min(width, height) <= max(width, height) <= config.max_side
        assert max(width, height) <= MAX_SIDE_RATIO * min(width, height)


# ------------------------------------------------------------------ threads, fuzz, corpus


def test_threads_prepare_the_same_pixels_as_one_thread(tmp_path: Path) -> None:
    names = [
        put(tmp_path, f"{number}.png", ellipse((number * 5, 40, 90, 255), (300 + number, 200)))
        for number in range(24)
    ]

    def pixels(name: str) -> bytes:
        return prepare_image(str(tmp_path), name, CONFIG).image.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(pixels, names * 3)) == [pixels(name) for name in names] * 3


def test_first_use_by_several_threads_of_a_fresh_process_works(tmp_path: Path) -> None:
    for image_format in ("PNG", "WEBP", "TIFF", "ICO"):
        put(tmp_path, image_format, ellipse((*RED, 255), (64, 64)), format=image_format)
    script = (
        "import sys; from concurrent.futures import ThreadPoolExecutor as P\n"
        "from vllm_caption.config import ImageConfig\n"
        "from vllm_caption.images.decode import prepare_image\n"
        "with P(4) as p: print(len(list(p.map(lambda n: prepare_image(sys.argv[1], n,"
        " ImageConfig()), ['PNG', 'WEBP', 'TIFF', 'ICO'] * 4))))"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("16", "")


@pytest.mark.parametrize(
    "image_format",
    ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", AVIF],
)
def test_flipped_bits_end_in_pixels_or_an_item_error(
    tmp_path: Path, image_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    options = {"exif": exif} if image_format in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    sample = encoded(ellipse((*RED, 255), (40, 32)).convert("RGB"), image_format, **options)
    chance = random.Random(image_format)
    for _ in range(120):
        flipped = bytearray(sample)
        for _ in range(chance.choice([1, 1, 4])):
            reach = chance.choice([60, len(sample)])  # headers matter most
            flipped[chance.randrange(min(reach, len(sample)))] ^= 1 << chance.randrange(8)
        try:
            assert prepare(tmp_path, bytes(flipped)).image.mode == "RGB"
        except ItemError as error:
            assert error.reason.isprintable()
    assert capfd.readouterr().err == ""


def check_pixels(prepared: PreparedImage, check: dict[str, Any]) -> None:
    if "size" in check:
        assert [prepared.width, prepared.height] == check["size"]
    for wanted in check.get("pixels", ()):
        assert near(pixel(prepared, *wanted["at"]), wanted["rgb"], wanted["tol"]), wanted
    if check.get("distinguishable"):
        assert shape_shows(prepared)
    if check.get("background_uniform"):
        corners = {pixel(prepared, x, y) for x in (0, 0.02, 0.98) for y in (0, 0.02, 0.98)}
        assert len(corners) == 1


def test_hostile_corpus_gives_every_item_its_expected_outcome(hostile_corpus: Path) -> None:
    expected = json.loads((hostile_corpus / "expected.json").read_text())
    root = hostile_corpus / "raw"
    # Names that are no strings are the manifest's concern, output conflicts the output's.
    items = [
        item
        for item in expected["items"]
        if isinstance(item["file"], str) and item.get("kind") != "output_conflict"
    ]
    assert len(items) > 100
    wrong = {item["document"]: came for item in items if (came := difference(root, item))}
    assert not wrong


def difference(root: Path, item: dict[str, Any]) -> str:
    """The outcome if it is not the expected one; empty if it is."""
    outcomes = {item["outcome"], item.get("alt", item["outcome"])}
    try:
        prepared = prepare_image(str(root), item["file"], CONFIG)
    except ItemError as error:
        agrees = "failed" in outcomes and (error.kind == item.get("kind") or "policy" in item)
        return "" if agrees else str(error)
    if "captioned" not in outcomes:
        return "captioned"
    check_pixels(prepared, item.get("check", {}))
    return ""


DECISIONS = {
    "i_rgba_empty": "decode_error",
    "i_i32_tif": "captioned",
    "i_no_iend": "captioned",
    "i_bad_crc": "decode_error",
    "i_svg": "not_an_image",
    "i_ztxt_bomb": "decode_error",
    "i_bomb_12000": "too_large",
    "i_zero_dim": "decode_error",
    "i_jpeg_soi": "decode_error",
    "i_trunc_header": "decode_error",
    "i_eps": "not_an_image",
    "i_dot": "path_escape",
    "i_double_slash": "path_escape",
    "i_name_http": "path_escape",
    "i_below_file": "missing_file",
    "i_symlink_escape": "path_escape",
    "i_symlink_loop": "unreadable",
    "i_backslash_windows": "missing_file",
}


@pytest.mark.parametrize(("document", "decision"), DECISIONS.items())
def test_hostile_corpus_policy_case_follows_our_decision(
    hostile_corpus: Path, document: str, decision: str
) -> None:
    expected = json.loads((hostile_corpus / "expected.json").read_text())
    (file,) = (item["file"] for item in expected["items"] if item["document"] == document)
    try:
        prepare_image(str(hostile_corpus / "raw"), file, CONFIG)
        came = "captioned"
    except ItemError as error:
        came = error.kind
    assert came == decision
