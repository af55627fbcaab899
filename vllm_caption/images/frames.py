"""Animations and files of several pages: the first frame, unless it shows nothing.

Many begin blank, to fade in or to be drawn; then the first frame that shows something is taken.
"""

from __future__ import annotations

from typing import Final

from PIL import ImageFile

from vllm_caption.images.composite import Composite

MAX_FRAMES: Final = 500
"""Frames that are looked at; a larger image has fewer, see `decode`."""
_NEAR_BLANK: Final = 5
_ALWAYS: Final = ("GIF", "TIFF")
"""Formats in which to count the frames would be to read the whole file."""


def may_have_more(image: ImageFile.ImageFile) -> bool:
    """Whether a file that was just opened can have further frames."""
    return image.format in _ALWAYS or bool(getattr(image, "is_animated", False))


def shows_something(composite: Composite) -> bool:
    """Whether a frame is more than transparency, or one area of white or of black."""
    least, most = composite.alpha.getextrema() if composite.alpha else (255, 255)
    if least != most or not most:
        return bool(most)
    extrema = composite.on_white.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    if any(low != high for low, high in bands):
        return True
    levels = [low for low, _ in bands]
    return max(levels) > _NEAR_BLANK and min(levels) < 255 - _NEAR_BLANK
