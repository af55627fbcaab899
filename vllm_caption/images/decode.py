"""From a file to pixels: the model sees what a person would see, and nothing else.

    name → path below the root → bytes, read once → first frame, shrunk, upright → on a backdrop

Invariants
- Only ``ItemError`` leaves ``prepare_image``, whatever the file holds.
- A header passes ``max_image_pixels`` before a pixel is decoded.
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
from typing import Final

# Registers the formats that are read, so that Image.open need not import Pillow's other forty.
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
from vllm_caption.images.png import store_pixels
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
"""What makes an image upright, by its EXIF orientation."""
_SIDEWAYS: Final = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))
_TAG_ERRORS: Final = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError),
    *(struct.error, SyntaxError, TypeError, ValueError),
)


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """What the model is shown, and what the manifest records about it."""

    image: Image.Image
    """RGB, upright, flattened, longer side <= ``max_side``, side ratio <= ``MAX_SIDE_RATIO``.

    Never enlarged; a larger file may come out smaller than ``max_side``, never under twice what
    ``max_pixels`` leaves of it.
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
    """The pixels of what `read_image` gave; raises only ``ItemError``."""
    digest = hashlib.sha256(data).hexdigest()
    source = io.BytesIO(data)
    del data  # so that the bytes are gone once ``source`` is closed
    try:
        composite, (width, height) = _decode(source, image_format, config)
        image, backdrop = flatten(composite)
        image = pad(image, backdrop)
    except ItemError:
        raise
    except Image.DecompressionBombError as error:
        raise ItemError("too_large", "it has more pixels than Pillow will decode") from error
    except Exception as error:  # decoders raise anything; the item's row records it
        raise ItemError("decode_error", _reason(image_format, error)) from error
    return PreparedImage(image, width, height, backdrop, digest)


def _reason(image_format: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it starts like {image_format}, but its header is damaged; export it again"
    if isinstance(error, MemoryError):
        return f"there is not enough memory to decode this {image_format}"
    return f"the {image_format} data cannot be decoded: {first_line(error, 200)}"


def _decode(source: io.BytesIO, image_format: str, config: ImageConfig) -> tuple[Composite, Size]:
    """First frame on white, shrunk and upright; and the file's upright size.

    Closes ``source`` once the pixels are there, to make room for their composite.
    """
    _hush_pillow()
    if image_format == "ICO":
        source = io.BytesIO(_largest_icon(source.getvalue(), config.max_image_pixels))
    elif image_format == "PNG":
        source = io.BytesIO(store_pixels(source.getvalue()))
    image = _open(source, image_format)
    size = image.size
    _check_pixels(size, config.max_image_pixels)
    least = least_size(size, config.max_pixels)
    image.draft(image.mode, least)
    _fix_transparency(image)
    image.load()
    turn = _turn(image)  # before the conversions, after the load: a PNG's EXIF may come last
    source.close()
    small = shrink(image, least, fit(image.size, config.max_side))
    if turn is None:
        return small, size
    upright = small.map(lambda layer: layer.transpose(turn))
    return upright, size[::-1] if turn in _SIDEWAYS else size


class _WebPFile(_webp.WebPImageFile):
    """Its first frame alone, so that the decoder goes before the pixels get their own memory.

    The decoder keeps two canvases of 4 bytes a pixel, besides the frame that it gave.
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
    """Ignore Pillow's warnings in this process: here each becomes pixels or an ``ItemError``.

    Not ``catch_warnings``, which is neither thread-safe nor free for the other threads' warnings.
    """
    if warnings.filters[:1] != [_QUIET_PILLOW]:
        warnings.filterwarnings("ignore", module=_QUIET_PILLOW[3].pattern)


def _check_pixels(size: Size, max_image_pixels: int) -> None:
    width, height = size
    if width * height > max_image_pixels:
        limit = f"the limit (max_image_pixels) is {max_image_pixels}"
        raise ItemError("too_large", f"it has {width} × {height} pixels; {limit}")


def _largest_icon(data: bytes, max_image_pixels: int) -> bytes:
    """An ICO with nothing but the largest, deepest image of this one.

    Pillow decodes while it opens an ICO, and takes the shallowest of the largest.
    """
    (count,) = struct.unpack_from("<H", data, 4)
    entries = list(struct.iter_unpack("<4B2H2I", data[6 : 6 + 16 * count]))
    best = max(entries, key=lambda e: ((e[0] or 256) * (e[1] or 256), e[5] or 256))
    frame = data[best[7] :]
    if frame.startswith(b"\x89PNG"):
        size = struct.unpack_from(">II", frame, 16)
    else:
        width, twice_height = struct.unpack_from("<ii", frame, 4)
        size = abs(width), abs(twice_height) // 2
    _check_pixels(size, max_image_pixels)
    return data[:4] + struct.pack("<H4B2H2I", 1, *best[:7], 22) + frame


def _fix_transparency(image: ImageFile.ImageFile) -> None:
    """Scale a PNG's transparent colour to the 8 bits of the pixels, as Pillow does not."""
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
        return None  # a broken tag says nothing; the pixels are sound
