"""Colour profiles: the model sees the colours that a file means."""

from __future__ import annotations

import io
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features
from support.colour_profiles import (
    DISPLAY_P3,
    PROPHOTO,
    SRGB,
    cmyk_profile,
    gray_profile,
    rgb_profile,
)
from support.image_files import ellipse, encoded, png_chunk, put, raw_png

from vllm_caption.config import ImageConfig
from vllm_caption.images.decode import PreparedImage, prepare_image
from vllm_caption.images.profiles import to_srgb_of

CONFIG = ImageConfig()
PROFILES = {
    "ProPhoto": rgb_profile(PROPHOTO, 1.8),
    "linear": rgb_profile(SRGB, 1.0),
    "Display P3": rgb_profile(DISPLAY_P3, 2.2),
}
COLOURS = [
    *((220, 20, 20), (20, 120, 40), (20, 60, 200), (250, 200, 30), (240, 120, 20), (130, 40, 150)),
    *((240, 150, 180), (120, 70, 30), (40, 180, 190), (160, 220, 60), (128, 0, 32), (70, 90, 110)),
    *((128, 128, 128), (200, 200, 200), (60, 60, 60), (245, 235, 215)),
]
BRIGHT = [colour for colour in COLOURS if min(colour) >= 15]
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 98, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {},
    **({"AVIF": {"quality": 98}} if features.check("avif") else {}),
}


def stored(colour: tuple[int, ...], profile: bytes) -> tuple[int, ...]:
    """The numbers that mean an sRGB colour in a profile."""
    source, target = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    by = ImageCms.buildTransform(source, target, "RGB", "RGB", intent)
    converted = ImageCms.applyTransform(Image.new("RGB", (1, 1), colour), by)
    assert converted is not None
    found = converted.getpixel((0, 0))
    assert isinstance(found, tuple)
    return found


def prepare(root: Path, content: Image.Image | bytes, **options: Any) -> PreparedImage:
    return prepare_image(str(root), put(root, "image", content, **options), CONFIG)


def middle(prepared: PreparedImage) -> tuple[int, ...]:
    found = prepared.image.getpixel((prepared.image.width // 2, prepared.image.height // 2))
    assert isinstance(found, tuple)
    return found


def near(found: tuple[int, ...], wanted: tuple[int, ...], tolerance: int = 8) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("image_format", FORMATS)
def test_colours_are_those_of_the_profile(tmp_path: Path, name: str, image_format: str) -> None:
    profile, far = PROFILES[name], 0
    for colour in BRIGHT:
        numbers = stored(colour, profile)
        far += not near(numbers, colour, 24)
        image, options = Image.new("RGB", (40, 30), numbers), FORMATS[image_format]
        prepared = prepare(tmp_path, image, format=image_format, icc_profile=profile, **options)
        assert near(middle(prepared), colour, 24 if image_format == "AVIF" else 12), (
            colour,
            numbers,
            middle(prepared),
        )
    assert far > len(BRIGHT) / 2 or name == "Display P3", "without the profile they were others"


@pytest.mark.parametrize("size", [(120, 80), (2000, 1500)])
def test_alpha_stays_and_colours_change(tmp_path: Path, size: tuple[int, int]) -> None:
    colour, profile = (220, 60, 40), PROFILES["linear"]
    image = ellipse((*stored(colour, profile), 255), size)
    prepared = prepare(tmp_path, image, icc_profile=profile)
    assert (middle(prepared), prepared.backdrop) == (pytest.approx(colour, abs=8), "white")
    assert prepared.image.getpixel((0, 0)) == (255, 255, 255)


def test_backdrop_is_chosen_by_the_converted_colours(tmp_path: Path) -> None:
    """Linear 150 is sRGB 201, which is visible on white; linear 230 is 244, which is not."""
    profile = PROFILES["linear"]
    for level, backdrop in ((150, "white"), (230, "black")):
        image = ellipse((level, level, level, 255))
        assert prepare(tmp_path, image, icc_profile=profile).backdrop == backdrop
        assert prepare(tmp_path, image).backdrop == "white"


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("P", (40, 30), 1), {}),
        (Image.new("P", (40, 30), 1), {"transparency": 0}),
        (Image.new("RGB", (40, 30), (128, 128, 128)), {"transparency": (1, 2, 3)}),
    ],
)
def test_profiles_apply_to_palettes_and_transparent_colours(
    tmp_path: Path, image: Image.Image, options: dict[str, Any]
) -> None:
    if image.mode == "P":
        image.putpalette([0, 0, 0, 128, 128, 128] + [0] * 762)
    prepared = prepare(tmp_path, image, icc_profile=PROFILES["linear"], **options)
    assert near(middle(prepared), (188, 188, 188))


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "1"])
def test_gray_image_has_a_gray_profile(tmp_path: Path, mode: str) -> None:
    half = {"L": 128, "LA": (128, 255), "I;16": 128 << 8, "1": 1}[mode]
    image = Image.new(mode, (40, 30), half)
    wanted = (255,) * 3 if mode == "1" else (188,) * 3
    prepared = prepare(tmp_path, image, icc_profile=gray_profile(1.0))
    assert near(middle(prepared), wanted)
    of_colours = prepare(tmp_path, image, icc_profile=PROFILES["linear"])
    assert near(middle(of_colours), (255,) * 3 if mode == "1" else (128,) * 3, 0)


def test_gray_keeps_its_transparency(tmp_path: Path) -> None:
    image = ellipse((128, 128, 128, 255)).convert("LA")
    prepared = prepare(tmp_path, image, icc_profile=gray_profile(1.0))
    assert near(middle(prepared), (188, 188, 188))
    assert (prepared.image.getpixel((0, 0)), prepared.backdrop) == ((255, 255, 255), "white")


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(tmp_path: Path, image_format: str) -> None:
    paper, black, green = (100.0, 0.0, 0.0), (0.0, 0.0, 0.0), (60.0, -50.0, 40.0)
    corners = [black if n & 1 else green if n & 8 else paper for n in range(16)]
    image = Image.new("CMYK", (40, 30), (255, 0, 0, 0))
    options = {"quality": 98} if image_format == "JPEG" else {}
    plain = prepare(tmp_path, image, format=image_format, **options)
    assert near(middle(plain), (0, 255, 255), 12)
    profile = cmyk_profile(corners)
    prepared = prepare(tmp_path, image, format=image_format, icc_profile=profile, **options)
    assert near(middle(prepared), (60, 165, 70), 20)
    white = Image.new("CMYK", (40, 30))
    prepared = prepare(tmp_path, white, format=image_format, icc_profile=profile, **options)
    assert near(middle(prepared), (255, 255, 255), 4)


@pytest.mark.parametrize(
    "profile",
    [
        b"garbage",
        PROFILES["linear"][:150],
        PROFILES["linear"][:128] + bytes(400),
        rgb_profile(((0.0, 0.0, 0.0),) * 3, 2.2),
        gray_profile(1.0),
    ],
    ids=["garbage", "cut", "zeros", "black", "gray"],
)
@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_profile_that_is_broken_or_of_another_kind_is_ignored(
    tmp_path: Path, profile: bytes, image_format: str
) -> None:
    image = Image.new("RGB", (40, 30), (128, 128, 128))
    options = FORMATS[image_format]
    prepared = prepare(tmp_path, image, format=image_format, icc_profile=profile, **options)
    assert near(middle(prepared), (128, 128, 128), 2)


def test_profile_of_more_than_4_mib_is_ignored(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 30), (128, 128, 128))
    for extra, shown in ((2**20, 188), (5 * 2**20, 128)):
        profile = PROFILES["linear"] + bytes(extra)
        prepared = prepare(tmp_path, image, format="TIFF", icc_profile=profile)
        assert near(middle(prepared), (shown,) * 3)


def test_flipped_bits_of_a_profile_end_in_pixels(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(3)
    for _ in range(60):
        profile = bytearray(PROFILES["ProPhoto"])
        for _ in range(chance.choice([1, 4])):
            profile[chance.randrange(len(profile))] ^= 1 << chance.randrange(8)
        image = Image.new("RGB", (8, 8), (128, 128, 128))
        assert prepare(tmp_path, image, icc_profile=bytes(profile)).image.mode == "RGB"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "profile", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), None]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pixels_are_unchanged_with_srgb_or_no_profile(
    tmp_path: Path, profile: bytes | None, mode: str
) -> None:
    noise = Image.frombytes("RGB", (160, 120), random.Random(7).randbytes(160 * 120 * 3))
    image = noise.convert(mode)
    image.info["icc_profile"] = profile
    assert to_srgb_of(image) is None
    assert prepare(tmp_path, image, icc_profile=profile).image.tobytes() == (
        image.convert("RGB").tobytes()
    )


def test_large_image_has_the_colours_of_a_small_one(tmp_path: Path) -> None:
    """Its profile is applied band by band."""
    profile, colour = PROFILES["ProPhoto"], (20, 120, 40)
    image = Image.new("RGB", (3000, 2000), stored(colour, profile))
    prepared = prepare(tmp_path, image, icc_profile=profile)
    assert prepared.image.width <= CONFIG.max_side
    extremes = np.asarray(prepared.image).reshape(-1, 3)
    assert near(tuple(extremes.min(0)), colour) and near(tuple(extremes.max(0)), colour)


def test_threads_that_share_a_profile_get_the_same_pixels(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (400, 300), random.Random(7).randbytes(400 * 300 * 3))
    for number, profile in enumerate(PROFILES.values()):
        put(tmp_path, f"{number}.png", noise, icc_profile=profile)
    names = [f"{number % 3}.png" for number in range(48)]

    def pixels(name: str) -> bytes:
        return prepare_image(str(tmp_path), name, CONFIG).image.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(pixels, names)) == [pixels(name) for name in names]


@pytest.mark.parametrize(
    ("gamma", "extra", "shown"),
    [
        (100_000, b"", 188),
        (45_455, b"", 128),
        (55_556, b"", 145),
        (100_000, png_chunk(b"sRGB", b"\0"), 128),
        (0, b"", 128),
        (1, b"", 128),
    ],
    ids=["linear", "usual", "old Mac", "sRGB", "zero", "absurd"],
)
@pytest.mark.parametrize(
    ("colour_type", "row"),
    [(2, bytes([128] * 3)), (6, bytes([128, 128, 128, 255])), (0, b"\x80"), (4, b"\x80\xff")],
    ids=["RGB", "RGBA", "L", "LA"],
)
def test_gamma_of_a_png_is_applied(
    tmp_path: Path, gamma: int, extra: bytes, shown: int, colour_type: int, row: bytes
) -> None:
    chunks = extra + png_chunk(b"gAMA", struct.pack(">I", gamma))
    prepared = prepare(tmp_path, raw_png((8, 8), 8, colour_type, row * 8, chunks))
    assert near(middle(prepared), (shown,) * 3, 2)


def test_profile_of_a_png_overrides_its_gamma(tmp_path: Path) -> None:
    content = encoded(Image.new("RGB", (8, 8), (128,) * 3), "PNG", icc_profile=PROFILES["linear"])
    with_gamma = content[:33] + png_chunk(b"gAMA", struct.pack(">I", 100_000)) + content[33:]
    assert near(middle(prepare(tmp_path, with_gamma)), (188,) * 3)
