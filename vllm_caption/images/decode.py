"""From a file to pixels: the model sees what a person would see, and nothing else.

    name → path below the root → bytes, read once → a frame, shrunk, upright → on a backdrop

Invariants
- ``prepare_image`` raises only ``ItemError``, whatever the file contains.
- The header is checked against ``max_image_pixels`` before a pixel is decoded.
- Calls share no state but a cache of colour profiles, so any number of threads may prepare images
  at a time.
- Pillow's warnings are silenced for the whole process at the first call.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Final

# Registers the formats that we read, so that Image.open does not import Pillow's other forty.
from PIL import AvifImagePlugin as _avif  # noqa: F401
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL import IcoImagePlugin as _ico  # noqa: F401
from PIL import TiffImagePlugin as _tiff  # noqa: F401
from PIL import WebPImagePlugin as _webp
from PIL.Image import Transpose

from vllm_caption.config import ImageConfig
from vllm_caption.errors import ItemError
from vllm_caption.formatting import first_line
from vllm_caption.images.composite import Composite, flatten, pad
from vllm_caption.images.files import read_image
from vllm_caption.images.frames import MAX_FRAMES, may_have_more, shows_something
from vllm_caption.images.icons import largest_icon
from vllm_caption.images.png import plain_image, store_pixels
from vllm_caption.images.shrink import Size, fit, least_size, shrink
from vllm_caption.messages import Backdrop

_QUIET_PILLOW: Final = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_TURNS: Final = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What turns an image upright, by EXIF orientation."""
_SIDEWAYS: Final = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))
_TAG_ERRORS: Final = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError),
    *(struct.error, SyntaxError, TypeError, ValueError),
)


_LATER_PIXELS: Final = 4
"""Further frames are decoded up to this many times `max_image_pixels`."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """What the model sees, and what the manifest records about it."""

    image: Image.Image
    """RGB, upright, flattened, longer side <= ``max_side``, side ratio <= ``MAX_SIDE_RATIO``.

    Never enlarged; a larger image may come out smaller than ``max_side``, but never below
    `least_size`.
    """
    width: int
    height: int
    """Upright size of the file before any resizing, in pixels."""
    backdrop: Backdrop
    sha256: str
    """Hex digest of the file's bytes."""


def prepare_image(images_root: str, file: str, config: ImageConfig) -> PreparedImage:
    """The pixels of ``file``, a name relative to ``images_root``; raises only ``ItemError``."""
    return decode_image(*read_image(images_root, file), config)


def decode_image(data: bytes, image_format: str, config: ImageConfig) -> PreparedImage:
    """The pixels of what `read_image` returned; raises only ``ItemError``."""
    digest = hashlib.sha256(data).hexdigest()
    source = io.BytesIO(data)
    del data  # so that the bytes are freed once ``source`` is closed
    try:
        composite, (width, height) = _decode(source, image_format, config)
        image, backdrop = flatten(composite)
        image = pad(image, backdrop)
    except ItemError:
        raise
    except Image.DecompressionBombError as error:
        raise ItemError("too_large", "it has more pixels than Pillow will decode") from error
    except Exception as error:  # decoders can raise anything; the item's row records it
        raise ItemError("decode_error", _reason(image_format, error)) from error
    return PreparedImage(image, width, height, backdrop, digest)


def _reason(image_format: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it starts like {image_format}, but its header is damaged; export it again"
    if isinstance(error, MemoryError):
        return f"there is not enough memory to decode this {image_format}"
    return f"the {image_format} data cannot be decoded: {first_line(error, 200)}"


def _decode(source: io.BytesIO, image_format: str, config: ImageConfig) -> tuple[Composite, Size]:
    """The first frame that shows something, on white, shrunk and upright; and its upright size.

    Closes ``source`` once the pixels are decoded, to make room for their composite, unless there
    may be more frames.
    """
    _hush_pillow()
    if image_format == "ICO":
        check = partial(_check_pixels, max_image_pixels=config.max_image_pixels)
        source = io.BytesIO(largest_icon(source.getvalue(), check))
    elif image_format == "PNG":
        if plain := plain_image(source.getvalue(), config.max_image_pixels):
            source.close()
            return _shrunk(plain, plain.size, config), plain.size
        source = io.BytesIO(store_pixels(source.getvalue()))
    image = _open(source, image_format)
    if not may_have_more(image):
        return _frame(image, config, source)
    first = _frame(image, config)
    del image
    if shows_something(first[0]):
        return first
    return _later_frame(source, image_format, config) or first


def _later_frame(
    source: io.BytesIO, image_format: str, config: ImageConfig
) -> tuple[Composite, Size] | None:
    """The first frame after the first that shows something; None if none does or one is broken."""
    pixels_left = _LATER_PIXELS * config.max_image_pixels
    try:
        source.seek(0)
        image = Image.open(source, formats=[image_format])
        for number in range(1, MAX_FRAMES):
            image.seek(number)
            pixels_left -= image.width * image.height
            if pixels_left < 0:
                return None
            frame = _frame(image, config)
            if shows_something(frame[0]):
                return frame
    except (ItemError, Image.DecompressionBombError, *_TAG_ERRORS):
        pass  # the end of the file, too
    return None


def _frame(
    image: ImageFile.ImageFile, config: ImageConfig, source: io.BytesIO | None = None
) -> tuple[Composite, Size]:
    """The current frame of an image. ``source`` is closed once the pixels are decoded."""
    size = image.size
    _check_pixels(size, config.max_image_pixels)
    image.draft(image.mode, least_size(size, config.max_pixels))
    _fix_transparency(image)
    image.load()
    if image.format == "BMP" and image.mode == "RGBA":
        _fill_absent_alpha(image)
    turn = _turn(image)  # before the conversions, after the load: a PNG's EXIF may come last
    if source is not None:
        source.close()
    small = _shrunk(image, size, config)
    if turn is None:
        return small, size
    upright = small.map(lambda layer: layer.transpose(turn))
    return upright, size[::-1] if turn in _SIDEWAYS else size


def _shrunk(image: Image.Image, size: Size, config: ImageConfig) -> Composite:
    """``size`` is that of the file; a JPEG may be decoded smaller."""
    least = least_size(size, config.max_pixels)
    return shrink(image, least, fit(image.size, config.max_side))


def _fill_absent_alpha(image: Image.Image) -> None:
    """Many programs write 32-bit bitmaps with an alpha of zeros; every viewer shows them opaque."""
    if not image.getchannel("A").getextrema()[1]:
        image.putalpha(255)


class _WebPFile(_webp.WebPImageFile):
    """Only the first frame, so that the decoder is freed before memory for the pixels is allocated.

    The decoder keeps two canvases of 4 bytes per pixel, besides the frame that it returned.
    """

    def load_prepare(self) -> None:
        self._decoder = None
        super().load_prepare()


def _open(source: io.BytesIO, image_format: str) -> ImageFile.ImageFile:
    if image_format == "WEBP":
        try:
            return _WebPFile(source)
        except SyntaxError as error:  # Image.open would translate it
            raise UnidentifiedImageError from error
    return Image.open(source, formats=[image_format])


def _hush_pillow() -> None:
    """Ignore Pillow's warnings in this process: whatever they warn of becomes an ``ItemError``, or
    does not matter.

    Not ``catch_warnings``, which is not thread-safe.
    """
    if warnings.filters[:1] != [_QUIET_PILLOW]:
        warnings.filterwarnings("ignore", module=_QUIET_PILLOW[3].pattern)


def _check_pixels(size: Size, max_image_pixels: int) -> None:
    width, height = size
    if width * height > max_image_pixels:
        limit = f"the limit (--max-image-pixels) is {max_image_pixels}"
        raise ItemError("too_large", f"it has {width} × {height} pixels; {limit}")


def _fix_transparency(image: ImageFile.ImageFile) -> None:
    """Scale a PNG's transparent colour to the 8 bits of the pixels, which Pillow does not."""
    key = image.info.get("transparency")
    raw_mode = image.tile[0].args if image.tile else None
    if raw_mode == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in key)
    elif raw_mode in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * (85 if raw_mode == "L;2" else 17)


def _turn(image: Image.Image) -> Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _TAG_ERRORS:
        return None  # a broken tag is ignored; the pixels are fine
