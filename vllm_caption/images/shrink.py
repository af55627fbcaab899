"""The size at which the model sees an image, and how the image is shrunk to it.

Invariants
- A large image is composited and averaged band by band, so that there is never a second copy of the
  decoded pixels.
- Colours are averaged on white, weighted by alpha: what is hidden under alpha 0 never shows.
"""

from __future__ import annotations

import math
from typing import Final

from PIL import Image
from PIL.Image import Resampling

from vllm_caption.images.composite import Composite, composite_on_white

Size = tuple[int, int]

_BAND_PIXELS: Final = 2**16
"""Small enough for a band and its results to stay in the processor's cache."""
_REDUCING_GAP: Final = 2.0
"""How much larger than its target an image is before the filter: Pillow's recommendation."""


def fit(size: Size, max_side: int) -> Size:
    """``size``, with its longer side at ``max_side`` if it is longer."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def least_size(size: Size, max_pixels: int) -> Size:
    """The smallest size that a large image is averaged to: twice what the model's processor keeps.

    Decoding a JPEG at 1/2, 1/4 or 1/8, or averaging whole pixels, is faster than the processor's
    filter, whose result looks the same afterwards.
    """
    scale = min(1.0, 2 * math.sqrt(max_pixels / (size[0] * size[1])))
    return math.ceil(size[0] * scale), math.ceil(size[1] * scale)


def shrink(image: Image.Image, least: Size, most: Size) -> Composite:
    """``image``, of any mode, on white, at ``most`` if it is larger.

    Averages of whole pixels are cheap, so they are used if their size is between the two.
    """
    factor = min(have // need for have, need in zip(image.size, least, strict=True))
    if factor > 1 and math.ceil(max(image.size) / factor) <= max(most):
        return _reduced(image, factor, factor)
    return composite_on_white(image) if image.size == most else _resized(image, most)


def _resized(image: Image.Image, target: Size) -> Composite:
    """Like ``resize(…, reducing_gap)``, but in bands."""
    (width, height), (new_width, new_height) = image.size, target
    factor_x = int(width / new_width / _REDUCING_GAP) or 1
    factor_y = int(height / new_height / _REDUCING_GAP) or 1
    # HAMMING has no negative lobes: no halo around flat shapes, no colour stronger than its alpha,
    # no value outside the range of a 32-bit image; and it takes a third of LANCZOS' time.
    box = (0, 0, width / factor_x, height / factor_y)
    reduced = _reduced(image, factor_x, factor_y)
    return reduced.map(lambda layer: layer.resize(target, Resampling.HAMMING, box))


def _reduced(image: Image.Image, factor_x: int, factor_y: int) -> Composite:
    """Averages of ``factor_x`` × ``factor_y`` pixels."""
    if (factor_x, factor_y) == (1, 1):
        return composite_on_white(image)
    width, height = image.size
    size = math.ceil(width / factor_x), math.ceil(height / factor_y)
    rows = max(1, _BAND_PIXELS // (width * factor_y)) * factor_y
    reduced = None
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        averages = composite_on_white(band).map(lambda layer: layer.reduce((factor_x, factor_y)))
        if reduced is None:
            reduced = averages.map(lambda layer: Image.new(layer.mode, size))
        reduced.paste(averages, top // factor_y)
    assert reduced is not None
    return reduced
