"""Colour profiles: converts the colours of a file to sRGB, which every model was trained on.

The ICC profile of a file or, in a PNG, its gamma says what the numbers mean. Invariants: a profile
that is broken, of another kind than the pixels, or hardly different from sRGB changes nothing, so
ordinary images cost a look-up; alpha stays as it is.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms

Conversion = Callable[[Image.Image], Image.Image]

NEAR_SRGB: Final = 3
"""A profile that shifts no colour by more than this (of 255) is a version of sRGB."""
MAX_PROFILE_BYTES: Final = 4 * 2**20
_LEAST_WHITE: Final = 200
"""A profile with a darker white is broken."""
_KINDS: Final = {
    **dict.fromkeys(("1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N"), "GRAY"),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"), "RGB"),
    "CMYK": "CMYK",
}
"""Mode of an image → the colour space that its profile must have."""
_BROKEN: Final = (
    ImageCms.PyCMSError,
    *(ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError),
)
_SRGB_GAMMA: Final = 1 / 2.2
_NEAR_GAMMA: Final = 0.03


def to_srgb_of(image: Image.Image) -> Conversion | None:
    """The conversion of an image to sRGB; it takes CMYK as it is, other images as L, RGB or RGBA.

    None for nearly all images.
    """
    profile, kind = image.info.get("icc_profile"), _KINDS.get(image.mode)
    if kind is None:
        return None
    if isinstance(profile, bytes) and 0 < len(profile) <= MAX_PROFILE_BYTES:
        return _by_profile(profile, kind)
    gamma = image.info.get("gamma")
    if not isinstance(gamma, float) or "srgb" in image.info or kind == "CMYK":
        return None
    return _by_gamma(gamma)


@lru_cache(maxsize=16)
def _by_profile(profile: bytes, kind: str) -> Conversion | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        convert = _converter(source, kind)  # refused for a profile of another kind
        probe = _probe(kind)
        before, after = np.asarray(probe).astype(int), np.asarray(convert(probe)).astype(int)
    except _BROKEN:
        return None
    white = after.reshape(-1, 3)[0 if kind == "CMYK" else -1]
    if white.min() < _LEAST_WHITE:
        return None
    if kind == "GRAY":
        before = before[..., None]
    if kind != "CMYK" and np.abs(after - before).max() <= NEAR_SRGB:
        return None
    return convert


def _converter(source: ImageCms.ImageCmsProfile, kind: str) -> Conversion:
    srgb = ImageCms.createProfile("sRGB")

    def transform(mode: str, to: str) -> ImageCms.ImageCmsTransform:
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        return ImageCms.buildTransform(source, srgb, mode, to, intent, flags)

    def applied(image: Image.Image, by: ImageCms.ImageCmsTransform) -> Image.Image:
        converted = ImageCms.applyTransform(image, by)
        assert converted is not None
        return converted

    if kind == "CMYK":
        to_rgb = transform("CMYK", "RGB")
        return lambda image: applied(image, to_rgb)
    if kind == "GRAY":
        gray = transform("L", "RGB")

        def convert_gray(image: Image.Image) -> Image.Image:
            if image.mode != "RGBA":
                return applied(image, gray)
            converted = applied(image.getchannel("R"), gray)
            converted.putalpha(image.getchannel("A"))
            return converted

        return convert_gray
    opaque, transparent = transform("RGB", "RGB"), transform("RGBA", "RGBA")
    return lambda image: applied(image, transparent if image.mode == "RGBA" else opaque)


def _probe(kind: str) -> Image.Image:
    """Colours from all over the colour space; white is the last, for CMYK the first."""
    if kind == "GRAY":
        return Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    if kind == "CMYK":
        return Image.new("CMYK", (1, 1))
    levels = np.linspace(0, 255, 8).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    return Image.fromarray(grid.reshape(16, 32, 3))


@lru_cache(maxsize=16)
def _by_gamma(gamma: float) -> Conversion | None:
    if not 0.01 <= gamma <= 10 or abs(gamma - _SRGB_GAMMA) <= _NEAR_GAMMA:
        return None
    light = (np.arange(256) / 255) ** (1 / gamma)
    encoded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    table = [round(255 * float(value)) for value in encoded]
    unchanged = list(range(256))

    def convert(image: Image.Image) -> Image.Image:
        colours = len(image.getbands()) - (image.mode == "RGBA")
        return image.point(table * colours + unchanged * (image.mode == "RGBA"))

    return convert
