"""What a transparent image is laid on, so that the model sees its shapes as a person would.

White, unless that hides more than half of the image; then black or gray, whichever hides less.
Always dropping alpha loses black icons, always white loses white ones; this choice loses none.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Final

import numpy as np
from PIL import Image, ImageChops

from vllm_caption.errors import ItemError
from vllm_caption.messages import Backdrop

MAX_SIDE_RATIO: Final = 200
"""Longer to shorter side; above it Qwen's image processor refuses an image."""
NEAR: Final = 24
"""A colour is lost on a backdrop from which no channel differs by at least this much (of 255)."""
_LEVEL: Final[dict[Backdrop, int]] = {"white": 255, "black": 0, "gray": 128}


def flatten(image: Image.Image) -> tuple[Image.Image, Backdrop]:
    """A plain RGB image without metadata, on the backdrop that shows it best."""
    if image.mode == "RGBA":
        alpha = image.getchannel("A")
        least, most = alpha.getextrema()
        if not most:
            raise ItemError("decode_error", "there is nothing to see: all of it is transparent")
        if least != 255:
            return _on_best_backdrop(image, alpha)
    flat = image.copy() if image.mode == "RGB" else image.convert("RGB")
    flat.info.clear()  # whoever reads a broken EXIF later on would fail
    return flat, "none"


def _on_best_backdrop(image: Image.Image, alpha: Image.Image) -> tuple[Image.Image, Backdrop]:
    on_white = _on(image, "white")
    backdrop = _best_backdrop(on_white, alpha)
    return (on_white if backdrop == "white" else _on(image, backdrop)), backdrop


def _on(image: Image.Image, backdrop: Backdrop) -> Image.Image:
    flat = Image.new("RGB", image.size, (_LEVEL[backdrop],) * 3)
    flat.paste(image, mask=image)
    return flat


def _best_backdrop(on_white: Image.Image, alpha: Image.Image) -> Backdrop:
    """White, unless it hides more than half of the opaque area; then the better of black and gray.

    What counts is the colour of a pixel, weighted by its alpha. A faint pixel thus gets the
    backdrop that it contrasts with most. Measured at about 64 pixels a side, which is plenty.
    """
    factor = max(1, max(alpha.size) // 64)
    weight = np.asarray(alpha.reduce(factor), dtype=np.int32)
    bands = on_white.reduce(factor).split()
    # The channel farthest from a level is a pixel's darkest or its lightest one; from white, the
    # darkest. So most images need no more than this.
    darkest = np.asarray(reduce(ImageChops.darker, bands), dtype=np.int32)
    lost_on_white = weight[255 * (255 - darkest) < NEAR * weight].sum()
    if 2 * lost_on_white <= weight.sum():
        return "white"
    lightest = np.asarray(reduce(ImageChops.lighter, bands), dtype=np.int32)
    # Colour × alpha × 255, without white's part: no division, so exact where alpha is small.
    weighted = [255 * (band + weight - 255) for band in (darkest, lightest)]

    def lost(level: int) -> int:
        low, high = (np.abs(band - level * weight) for band in weighted)
        return int(weight[np.maximum(low, high) < NEAR * weight].sum())

    return "black" if lost(_LEVEL["black"]) <= lost(_LEVEL["gray"]) else "gray"


def pad(image: Image.Image, backdrop: Backdrop) -> Image.Image:
    """Centre a sliver on a strip that the model's processor accepts."""
    width, height = image.size
    least = math.ceil(max(image.size) / MAX_SIDE_RATIO)
    if min(width, height) >= least:
        return image
    if backdrop == "none":  # an opaque sliver, too, must show against what is put beside it
        backdrop = _best_backdrop(image, Image.new("L", image.size, 255))
    strip = (max(width, least), max(height, least))
    padded = Image.new("RGB", strip, (_LEVEL[backdrop],) * 3)
    padded.paste(image, ((strip[0] - width) // 2, (strip[1] - height) // 2))
    return padded
