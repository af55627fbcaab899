"""Animations and files with several pages: the first frame, unless it shows nothing.

Many start blank, to fade in or to be drawn; then the first frame that shows something is used.
"""

from __future__ import annotations

from typing import Final

from PIL import ImageFile

from vllm_caption.images.composite import Composite

MAX_FRAMES: Final = 500
"""How many frames are checked; fewer of a larger image, see `decode`."""
_NEAR_BLANK: Final = 5
_ALWAYS: Final = ("GIF", "TIFF")
"""Formats in which counting the frames would mean reading the whole file."""


def may_have_more(image: ImageFile.ImageFile) -> bool:
    """Whether a newly opened file can have further frames."""
    return image.format in _ALWAYS or bool(getattr(image, "is_animated", False))


def shows_something(composite: Composite) -> bool:
    """Whether a frame is more than transparency or a single area of white or black."""
    least, most = composite.alpha.getextrema() if composite.alpha else (255, 255)
    if least != most or not most:
        return bool(most)
    extrema = composite.on_white.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    if any(low != high for low, high in bands):
        return True
    levels = [low for low, _ in bands]
    return max(levels) > _NEAR_BLANK and min(levels) < 255 - _NEAR_BLANK
