"""From whatever pixels a decoder gave to few of a plain kind: L or RGB on white, and their alpha.

Invariants
- A large image is converted and averaged band by band, so that beside the decoded pixels there is
  never a second copy of its size.
- Colours are averaged by their alpha: what hides under alpha 0 never shows.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms
from PIL.Image import Resampling

from vllm_caption.errors import ItemError
from vllm_caption.images.composite import Laid, lay_on_white

Size = tuple[int, int]

_BAND_PIXELS: Final = 2**16
"""So few that a band and what becomes of it stay in a processor's cache."""
_REDUCING_GAP: Final = 2.0
"""How much larger than its target an image stays until the filter: Pillow's own proposal."""


def shrink(image: Image.Image, least: Size, most: Size) -> Laid:
    """``image`` as L or RGB, laid on white, whatever its mode, at ``most`` if it is larger.

    Averages of whole pixels do where they fit between ``least`` and ``most``: they are cheap.
    """
    factor = min(have // need for have, need in zip(image.size, least, strict=True))
    if factor > 1 and math.ceil(max(image.size) / factor) <= max(most):
        small = _reduced(image, factor, factor)
    elif image.size == most:
        small = lay_on_white(_plain(image))
    else:
        small = _resized(image, most)
    return small.each(_scale_values) if small.on_white.mode in ("I", "F") else small


def _resized(image: Image.Image, target: Size) -> Laid:
    """As ``resize(…, reducing_gap)`` would, but in bands."""
    (width, height), (new_width, new_height) = image.size, target
    factor_x = int(width / new_width / _REDUCING_GAP) or 1
    factor_y = int(height / new_height / _REDUCING_GAP) or 1
    # HAMMING has no negative lobes: no halo around flat shapes, no colour stronger than its alpha,
    # no value outside the range of a 32-bit image; and it takes a third of LANCZOS' time.
    box = (0, 0, width / factor_x, height / factor_y)
    reduced = _reduced(image, factor_x, factor_y)
    return reduced.each(lambda layer: layer.resize(target, Resampling.HAMMING, box))


def _reduced(image: Image.Image, factor_x: int, factor_y: int) -> Laid:
    """Averages of ``factor_x`` × ``factor_y`` pixels."""
    if (factor_x, factor_y) == (1, 1):
        return lay_on_white(_plain(image))
    width, height = image.size
    size = math.ceil(width / factor_x), math.ceil(height / factor_y)
    rows = max(1, _BAND_PIXELS // (width * factor_y)) * factor_y
    reduced = None
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        piece = lay_on_white(_plain(band)).each(lambda layer: layer.reduce((factor_x, factor_y)))
        if reduced is None:
            reduced = piece.each(lambda layer: Image.new(layer.mode, size))
        reduced.paste(piece, top // factor_y)
    assert reduced is not None
    return reduced


def _plain(image: Image.Image) -> Image.Image:
    """The same as L, RGB or RGBA; or as I or F, whose values are scaled once it is small."""
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
    """16-bit gray to 8 bits; Pillow's own conversion clips all but the darkest levels to white."""
    values = np.asarray(image)
    gray = Image.fromarray((values >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return gray
    alpha = Image.fromarray((values != key).astype(np.uint8) * np.uint8(255))
    return Image.merge("LA", (gray, alpha)).convert("RGBA")


def _scale_values(image: Image.Image) -> Image.Image:
    """Numbers to 8-bit gray: by the usual range that holds them all, else from least to most."""
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
