"""Modes, backdrop and padding: from a decoder's pixels to RGB that shows the shapes.

A transparent image is composited onto white, unless that hides more than half of it; then onto
black or gray, whichever hides less. Dropping alpha would lose black icons, and white alone would
lose white ones; this choice loses none.

Every image is composited onto white first: averaging commutes with compositing, and any other
backdrop follows from the averages on white and of alpha. So an image may be shrunk between
`composite_on_white` and `flatten`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from operator import mul
from typing import Any, Final

import numpy as np
from PIL import Image, ImageChops, ImageCms
from PIL.Image import Resampling

from vllm_caption.errors import ItemError
from vllm_caption.images.profiles import to_srgb_of
from vllm_caption.messages import Backdrop

Pixels = np.ndarray[Any, Any]

MAX_SIDE_RATIO: Final = 200
"""Longer to shorter side; Qwen's image processor refuses images with a larger ratio."""
NEAR: Final = 24
"""A colour is lost on a backdrop if no channel differs by at least this much (of 255)."""
_LEVEL: Final[dict[Backdrop, int]] = {"white": 255, "black": 0, "gray": 128}
_SAMPLES_A_SIDE: Final = 64
_ENOUGH: Final = 256
"""Opaque pixels that a sample needs, so that a thin shape is not judged by a few of its pixels."""


@dataclass(frozen=True, slots=True)
class Composite:
    """An image on white, with its alpha. Colours hidden under alpha 0 are gone."""

    on_white: Image.Image
    """L or RGB; or I or F, which are never transparent, with values that `flatten` scales."""
    alpha: Image.Image | None
    """L, of the same size; None for an image without."""

    def map(self, change: Callable[[Image.Image], Image.Image]) -> Composite:
        """Apply a change that mixes no channels (averaging, a rotation) to both layers."""
        return Composite(change(self.on_white), change(self.alpha) if self.alpha else None)

    def paste(self, band: Composite, top: int) -> None:
        """Put a band of the same kind in its place."""
        self.on_white.paste(band.on_white, (0, top))
        if self.alpha and band.alpha:
            self.alpha.paste(band.alpha, (0, top))


def composite_on_white(image: Image.Image) -> Composite:
    """``image``, of any mode, on white."""
    plain = _plain(image)
    if plain.mode != "RGBA":
        return Composite(plain, None)
    alpha = plain.getchannel("A")
    least, _ = alpha.getextrema()
    if least == 255:
        return Composite(plain.convert("RGB"), alpha)
    on_white = Image.new("RGB", plain.size, (255,) * 3)
    on_white.paste(plain, mask=plain)
    return Composite(on_white, alpha)


def flatten(composite: Composite) -> tuple[Image.Image, Backdrop]:
    """A plain RGB image without metadata, on the backdrop that shows it best."""
    on_white, alpha = composite.on_white, composite.alpha
    least, most = alpha.getextrema() if alpha else (255, 255)
    if not most:
        raise ItemError("decode_error", "there is nothing to see: all of it is transparent")
    if on_white.mode in ("I", "F"):
        on_white = _scale_values(on_white)
    flat = on_white if alpha else on_white.convert("RGB")  # a copy in any case
    flat.info.clear()  # whoever reads a broken EXIF later on would fail
    if alpha is None or least == 255:
        return flat, "none"
    backdrop = _best_backdrop(flat, alpha)
    return (flat if backdrop == "white" else _on(_LEVEL[backdrop], flat, alpha)), backdrop


def pad(image: Image.Image, backdrop: Backdrop) -> Image.Image:
    """Centre a sliver on a strip that the model's processor accepts."""
    width, height = image.size
    least = math.ceil(max(image.size) / MAX_SIDE_RATIO)
    if min(width, height) >= least:
        return image
    if backdrop == "none":  # an opaque sliver, too, must contrast with the padding
        backdrop = _best_backdrop(image, Image.new("L", image.size, 255))
    strip = (max(width, least), max(height, least))
    padded = Image.new("RGB", strip, (_LEVEL[backdrop],) * 3)
    padded.paste(image, ((strip[0] - width) // 2, (strip[1] - height) // 2))
    return padded


# --- modes ----------------------------------------------------------------------------------------


def _plain(image: Image.Image) -> Image.Image:
    """The same image as L, RGB or RGBA in sRGB; or as I or F, whose range depends on the whole
    image."""
    to_srgb = to_srgb_of(image)
    if to_srgb is None:
        return _in_its_colours(image)
    return to_srgb(image if image.mode == "CMYK" else _in_its_colours(image))


def _in_its_colours(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _high_bytes(image)
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "I", "F"):
        return image
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "LAB":
        converted = ImageCms.applyTransform(image, _lab_to_srgb())
        assert converted is not None
        return converted
    return image.convert("L" if image.mode == "1" else "RGB")


@cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def _high_bytes(image: Image.Image) -> Image.Image:
    """16-bit gray to 8 bits; Pillow's conversion clips all but the darkest levels to white."""
    values = np.asarray(image)
    gray = Image.fromarray((values >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return gray
    alpha = Image.fromarray((values != key).astype(np.uint8) * np.uint8(255))
    return Image.merge("LA", (gray, alpha)).convert("RGBA")


def _scale_values(image: Image.Image) -> Image.Image:
    """Numbers to 8-bit gray: by the first usual range that fits, else from minimum to maximum."""
    values = np.asarray(image, dtype=np.float32)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ItemError("decode_error", "there is nothing to see: none of its values is a number")
    low, high = float(finite.min()), float(finite.max())
    for usual in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= usual:
            low, high = 0.0, usual
            break
    scaled = (values - low) * (255 / max(high - low, 1e-30))
    return Image.fromarray(np.nan_to_num(scaled).clip(0, 255).astype(np.uint8))


# --- backdrop -------------------------------------------------------------------------------------


def _on(level: int, on_white: Image.Image, alpha: Image.Image) -> Image.Image:
    """The image on gray of this level: the one on white, minus what white adds beyond the gray."""
    beyond = alpha.point([round((255 - a) * (255 - level) / 255) for a in range(256)])
    return ImageChops.subtract(on_white, Image.merge("RGB", (beyond,) * 3))


def _best_backdrop(on_white: Image.Image, alpha: Image.Image) -> Backdrop:
    """White, unless it hides more than half of the opaque area; then the better of black and gray.

    A pixel counts by its colour, weighted by its alpha, so that a faint pixel, too, asks for the
    backdrop that it contrasts with most.
    """
    on_white, alpha, area = _samples(on_white, alpha)
    # Few images have many pixels that are pale in all channels: then no more need be looked at.
    levels = on_white.histogram(alpha)
    pale = min(sum(levels[end - NEAR : end]) for end in (256, 512, 768))
    if 2 * 255 * pale <= area:
        return "white"
    # The channel farthest from a level is a pixel's darkest or its lightest one; from white, the
    # darkest.
    weight = np.frombuffer(alpha.tobytes(), np.uint8).astype(np.int32)
    red, green, blue = np.frombuffer(on_white.tobytes(), np.uint8).reshape(-1, 3).T
    darkest = np.minimum(np.minimum(red, green), blue).astype(np.int32)
    lost_on_white = weight[255 * (255 - darkest) < NEAR * weight].sum()
    if 2 * lost_on_white <= area:
        return "white"
    lightest = np.maximum(np.maximum(red, green), blue).astype(np.int32)
    # Colour × alpha × 255, without white's part: no division, so exact even for small alpha.
    weighted = [255 * (channel + weight - 255) for channel in (darkest, lightest)]

    def lost(level: int) -> int:
        low, high = (np.abs(channel - level * weight) for channel in weighted)
        return int(weight[np.maximum(low, high) < NEAR * weight].sum())

    return "black" if lost(_LEVEL["black"]) <= lost(_LEVEL["gray"]) else "gray"


def _samples(on_white: Image.Image, alpha: Image.Image) -> tuple[Image.Image, Image.Image, int]:
    """Pixels all over an image, or all its pixels; their alpha, and the sum of it.

    Using all pixels would add a millisecond to the three that a small image takes. The steps
    between samples are 1.618 pixels, or 2.618, or 3.618, …, so that they cannot coincide with a
    regular pattern.
    """
    factor = max(alpha.size) // _SAMPLES_A_SIDE
    if factor:
        width, height = (math.ceil(side / (factor + 0.618)) for side in alpha.size)
        few = alpha.resize((width, height), Resampling.NEAREST)
        if (area := _area(few)) >= 255 * _ENOUGH:
            return on_white.resize((width, height), Resampling.NEAREST), few, area
    return on_white, alpha, _area(alpha)


def _area(alpha: Image.Image) -> int:
    return sum(map(mul, alpha.histogram(), range(256)))
