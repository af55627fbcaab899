"""From an RGB picture to the vision tower's patches, in NumPy and Pillow.

Invariants: sizes are those of Qwen2.5-VL's `smart_resize`; rows come in the processor's order
(merge blocks of 2 × 2 patches, channel, frame, row, column); values differ from the processor's
by a rounding of the resampling at most.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PATCH = 14
MERGE = 2
TOKEN = PATCH * MERGE
MIN_PIXELS = TOKEN * TOKEN * 8
MAX_PIXELS = TOKEN * TOKEN * 64
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def view_size(width: int, height: int) -> tuple[int, int]:
    """Width and height in pixels at which the model sees a picture."""
    seen_w, seen_h = round(width / TOKEN) * TOKEN, round(height / TOKEN) * TOKEN
    if seen_w * seen_h > MAX_PIXELS:
        scale = math.sqrt(width * height / MAX_PIXELS)
        seen_w = max(TOKEN, math.floor(width / scale / TOKEN) * TOKEN)
        seen_h = max(TOKEN, math.floor(height / scale / TOKEN) * TOKEN)
    elif seen_w * seen_h < MIN_PIXELS:
        scale = math.sqrt(MIN_PIXELS / (width * height))
        seen_w = math.ceil(width * scale / TOKEN) * TOKEN
        seen_h = math.ceil(height * scale / TOKEN) * TOKEN
    return seen_w, seen_h


def view(picture: Image.Image) -> NDArray[np.uint8]:
    """The picture as the model sees it: resized, still 8 bits a channel."""
    resized = picture.resize(view_size(*picture.size), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.uint8)


def patch_rows(seen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One row of 3 × 14 × 14 values per patch, in the processor's order, one frame only."""
    height, width, _ = seen.shape
    blocks = seen.reshape(height // TOKEN, MERGE, PATCH, width // TOKEN, MERGE, PATCH, 3)
    rows = blocks.transpose(0, 3, 1, 4, 6, 2, 5)
    return np.ascontiguousarray(rows).reshape(-1, 3 * PATCH * PATCH)


def pixel_values(seen: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The processor's `pixel_values`: normalised, and a still's one frame given twice."""
    rows = patch_rows(seen).reshape(-1, 3, 1, PATCH * PATCH).astype(np.float32) / 255
    rows = (rows - MEAN[:, None, None]) / STD[:, None, None]
    return np.repeat(rows, 2, axis=2).reshape(rows.shape[0], -1).astype(np.float32)
