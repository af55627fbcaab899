"""What a transparent image is laid on, so that the model sees its shapes as a person would.

White, unless that hides more than half of the image; then black or gray, whichever hides less.
Always dropping alpha loses black icons, always white loses white ones; this choice loses none.

An image is laid on white first, whatever it will be laid on: the average of pixels on white is the
average of the image on white, and from that and the averaged alpha any other backdrop follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image, ImageChops
from PIL.Image import Resampling

from vllm_caption.errors import ItemError
from vllm_caption.messages import Backdrop

Pixels = np.ndarray[Any, Any]

MAX_SIDE_RATIO: Final = 200
"""Longer to shorter side; above it Qwen's image processor refuses an image."""
NEAR: Final = 24
"""A colour is lost on a backdrop from which no channel differs by at least this much (of 255)."""
_LEVEL: Final[dict[Backdrop, int]] = {"white": 255, "black": 0, "gray": 128}
_SAMPLES_A_SIDE: Final = 64
_ENOUGH: Final = 256
"""Pixels, by their alpha, that must be among the samples, lest a thin shape be judged by few."""


@dataclass(frozen=True, slots=True)
class Laid:
    """An image laid on white. What hides under alpha 0 is gone."""

    on_white: Image.Image
    """L or RGB; or I or F, which are never transparent."""
    alpha: Image.Image | None
    """L, of the same size; None for an image without."""

    def each(self, change: Callable[[Image.Image], Image.Image]) -> Laid:
        """The same change to both: an average, a turn, anything that mixes no two channels."""
        return Laid(change(self.on_white), change(self.alpha) if self.alpha else None)

    def paste(self, piece: Laid, top: int) -> None:
        """Put a band of the same kind in its place."""
        self.on_white.paste(piece.on_white, (0, top))
        if self.alpha and piece.alpha:
            self.alpha.paste(piece.alpha, (0, top))


def lay_on_white(image: Image.Image) -> Laid:
    """``image``, L, RGB, RGBA, I or F, on white."""
    if image.mode != "RGBA":
        return Laid(image, None)
    alpha = image.getchannel("A")
    least, _ = alpha.getextrema()
    if least == 255:
        return Laid(image.convert("RGB"), alpha)
    on_white = Image.new("RGB", image.size, (255,) * 3)
    on_white.paste(image, mask=image)
    return Laid(on_white, alpha)


def flatten(laid: Laid) -> tuple[Image.Image, Backdrop]:
    """A plain RGB image without metadata, on the backdrop that shows it best."""
    least, most = laid.alpha.getextrema() if laid.alpha else (255, 255)
    if not most:
        raise ItemError("decode_error", "there is nothing to see: all of it is transparent")
    flat = laid.on_white if laid.alpha else laid.on_white.convert("RGB")  # a copy in any case
    flat.info.clear()  # whoever reads a broken EXIF later on would fail
    if laid.alpha is None or least == 255:
        return flat, "none"
    backdrop = _best_backdrop(flat, laid.alpha)
    return (flat if backdrop == "white" else _on(_LEVEL[backdrop], flat, laid.alpha)), backdrop


def _on(level: int, on_white: Image.Image, alpha: Image.Image) -> Image.Image:
    """What shows on white, less what white gives to it beyond the gray of ``level``."""
    beyond = alpha.point([round((255 - a) * (255 - level) / 255) for a in range(256)])
    return ImageChops.subtract(on_white, Image.merge("RGB", (beyond,) * 3))


def _best_backdrop(on_white: Image.Image, alpha: Image.Image) -> Backdrop:
    """White, unless it hides more than half of the opaque area; then the better of black and gray.

    What counts is the colour of a pixel, weighted by its alpha. A faint pixel thus gets the
    backdrop that it contrasts with most.
    """
    weight, (red, green, blue) = _samples(on_white, alpha)
    # The channel farthest from a level is a pixel's darkest or its lightest one; from white, the
    # darkest. So most images need no more than this.
    darkest = np.minimum(np.minimum(red, green), blue).astype(np.int32)
    lost_on_white = weight[255 * (255 - darkest) < NEAR * weight].sum()
    if 2 * lost_on_white <= weight.sum():
        return "white"
    lightest = np.maximum(np.maximum(red, green), blue).astype(np.int32)
    # Colour × alpha × 255, without white's part: no division, so exact where alpha is small.
    weighted = [255 * (channel + weight - 255) for channel in (darkest, lightest)]

    def lost(level: int) -> int:
        low, high = (np.abs(channel - level * weight) for channel in weighted)
        return int(weight[np.maximum(low, high) < NEAR * weight].sum())

    return "black" if lost(_LEVEL["black"]) <= lost(_LEVEL["gray"]) else "gray"


def _samples(on_white: Image.Image, alpha: Image.Image) -> tuple[Pixels, Pixels]:
    """Alpha (n) and channels (3 × n) of pixels all over an image, or of all of them.

    The steps between them are 1.618 pixels, or 2.618, or 3.618, …, so that no pattern of whole
    pixels falls in step with them.
    """
    factor = max(alpha.size) // _SAMPLES_A_SIDE
    if factor:
        width, height = (math.ceil(side / (factor + 0.618)) for side in alpha.size)
        few = [layer.resize((width, height), Resampling.NEAREST) for layer in (on_white, alpha)]
        weight = np.frombuffer(few[1].tobytes(), np.uint8).astype(np.int32)
        if weight.sum() >= 255 * _ENOUGH:
            return weight, np.frombuffer(few[0].tobytes(), np.uint8).reshape(-1, 3).T
    return np.asarray(alpha, np.int32).ravel(), np.asarray(on_white).reshape(-1, 3).T


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
