"""A file at the pixel cap costs a bounded amount of memory, the Python process included."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.colour_profiles import PROPHOTO, rgb_profile
from support.image_files import png_chunk, put, raw_png

from vllm_caption.images.shrink import shrink

SIDE = 8000  # 64 million pixels, the default cap
PROBE = """
import re, sys
from vllm_caption.config import ImageConfig
from vllm_caption.images.decode import prepare_image
prepared = prepare_image(sys.argv[1], sys.argv[2], ImageConfig())
assert (prepared.image.size, prepared.width) == ((471, 471), 8000)
# Not getrusage: its peak includes what the parent held when it started this process.
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read()).group(1))
"""
WRITE_WEBP = """
import sys
from PIL import Image
image = Image.new("RGBA", (8000, 8000), (200, 20, 20, 90))
image.save(sys.argv[1], lossless=True, quality=0, method=0)
"""


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=True
    ).stdout.strip()


def peak_mb(root: Path, name: str) -> int:
    return int(run(PROBE, str(root), name)) * 1024 // 10**6


def test_webp_at_the_pixel_cap_peaks_below_900_mb(tmp_path: Path) -> None:
    run(WRITE_WEBP, str(tmp_path / "a.webp"))
    assert peak_mb(tmp_path, "a.webp") < 900


@pytest.mark.parametrize(
    ("bits", "colour_type", "row", "profile"),
    [
        (8, 6, b"\xc8\x14\x14\x5a" * SIDE, b""),
        (8, 6, b"\xc8\x14\x14\x5a" * SIDE, rgb_profile(PROPHOTO, 1.8)),
        (8, 4, b"\xc8\x5a" * SIDE, b""),
        (16, 0, b"\xc8\x14" * SIDE, b""),
    ],
    ids=["RGBA", "RGBA with a profile", "LA", "I;16"],
)
def test_png_at_the_pixel_cap_peaks_below_500_mb(
    tmp_path: Path, bits: int, colour_type: int, row: bytes, profile: bytes
) -> None:
    extra = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)) if profile else b""
    put(tmp_path, "a.png", raw_png((SIDE, SIDE), bits, colour_type, row, extra))
    assert peak_mb(tmp_path, "a.png") < 500


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "CMYK", "P"])
@pytest.mark.parametrize(("size", "target"), [((2111, 1303), (251, 155)), ((3, 9001), (1, 1024))])
def test_shrinking_in_bands_gives_the_pixels_of_shrinking_whole(
    mode: str, size: tuple[int, int], target: tuple[int, int]
) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert("RGB").convert(mode) if mode in "CMYK P" else None
    image = image or Image.fromarray(noise).convert(mode)
    plain = image.convert("RGB") if mode in ("CMYK", "P") else image
    alpha = image.getchannel("A") if mode in ("RGBA", "LA") else None
    if alpha:
        plain = Image.new("RGB", size, "white")
        plain.paste(image.convert("RGBA"), mask=alpha)
    bands = shrink(image, size, target)
    for layer, whole in ((bands.on_white, plain), (bands.alpha, alpha)):
        assert (layer is None) == (whole is None)
        if layer and whole:
            resized = whole.resize(target, Image.Resampling.HAMMING, reducing_gap=2.0)
            assert layer.tobytes() == resized.tobytes()
