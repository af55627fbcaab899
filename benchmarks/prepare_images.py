"""Images per second and core, from file to the model's pixel_values: ours against the naive way.

naive   Image.open(path).convert("RGB"): shows black shapes on black, drops transparency
flat    the same, laid on white first: the least that shows most shapes
ours    prepare_image(...)

Each then goes through the model's own image processor (Qwen2-VL's, built without a download).
All are timed in turn on the same files (naive, flat, ours, naive, …) on one thread; the figures
are medians. The columns in ms are the parts before the processor.

    python benchmarks/prepare_images.py --rounds 15 --json prepare_images.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vllm_caption.config import ImageConfig
from vllm_caption.images.decode import prepare_image

CONFIG = ImageConfig()
TARGETS = {"JPEG 12 MP": 2.0}
"""Least ratio to naive; 1 where nothing is named."""


@dataclass(frozen=True, slots=True)
class Row:
    case: str
    naive_images_per_s: float
    flat_images_per_s: float
    ours_images_per_s: float
    ratio_to_naive: float
    ratio_to_flat: float
    target: float
    naive_ms: float
    flat_ms: float
    ours_ms: float


def naive(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def flat(path: Path) -> Image.Image:
    image = Image.open(path)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def ours(path: Path) -> Image.Image:
    return prepare_image(str(path.parent), path.name, CONFIG).image


def shape(side: int, seed: int) -> Image.Image:
    """A flat drawing with soft edges on transparency, as design elements are."""
    chance = np.random.default_rng(seed)
    image = Image.new("RGBA", (side, side))
    for _ in range(12):
        x, y = (int(v) for v in chance.integers(0, side * 3 // 4, 2))
        reach = int(chance.integers(side // 10, side // 4))
        fill = (*(int(v) for v in chance.integers(0, 256, 3)), 255)
        ImageDraw.Draw(image).ellipse((x, y, x + reach, y + reach), fill=fill)
    image.putalpha(image.getchannel("A").filter(ImageFilter.GaussianBlur(1)))
    return image


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Smooth areas, edges and some noise: about 0.2 bytes a pixel as a JPEG."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, 256, (height // 60, width // 60, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height)), dtype=np.float32)
    noisy = smooth + chance.normal(0, 5, smooth.shape).astype(np.float32)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_cases(root: Path, files: int) -> dict[str, list[str]]:
    makers: dict[str, tuple[Callable[[int], Image.Image], str, dict[str, Any]]] = {
        "PNG 256 alpha": (lambda seed: shape(256, seed), "png", {}),
        "PNG 1024 alpha": (lambda seed: shape(1024, seed), "png", {}),
        "JPEG 1080p": (lambda seed: photo(1920, 1080, seed), "jpg", {"quality": 88}),
        "JPEG 12 MP": (lambda seed: photo(4032, 3024, seed), "jpg", {"quality": 88}),
    }
    cases: dict[str, list[str]] = {}
    for case, (make, ending, options) in makers.items():
        cases[case] = [f"{case} {seed}.{ending}" for seed in range(files)]
        for seed, name in enumerate(cases[case]):
            make(seed).save(root / name, **options)
    return cases


def timed(way: Callable[[Path], Image.Image], path: Path, processor: Any) -> tuple[float, float]:
    """Seconds to the RGB image, and to pixel_values."""
    start = time.perf_counter()
    image = way(path)
    middle = time.perf_counter()
    processor(images=[image], return_tensors="pt")
    return middle - start, time.perf_counter() - start


def measure(case: str, paths: list[Path], rounds: int, processor: Any) -> Row:
    times: dict[str, list[tuple[float, float]]] = {"naive": [], "flat": [], "ours": []}
    for round_number in range(rounds + 1):
        for path in paths:
            for way in (naive, flat, ours):
                taken = timed(way, path, processor)
                if round_number:  # the first round warms caches
                    times[way.__name__].append(taken)
    before = [statistics.median(t[0] for t in taken) for taken in times.values()]
    whole = [statistics.median(t[1] for t in taken) for taken in times.values()]
    speeds = [round(1 / seconds, 1) for seconds in whole]
    ratios = [round(whole[0] / whole[2], 3), round(whole[1] / whole[2], 3)]
    target = TARGETS.get(case, 1.0)
    return Row(case, *speeds, *ratios, target, *(round(1e3 * seconds, 2) for seconds in before))


def print_table(rows: list[Row]) -> None:
    print(f"{'':16}{'images/s':^24}{'ours to':^16}{'target':>8}{'ms before the processor':^30}")
    heads = ("naive", "flat", "ours"), ("naive", "flat")
    print(f"{'case':16}" + "".join(f"{head:>8}" for head in (*heads[0], *heads[1], "")), end="")
    print("".join(f"{head:>10}" for head in heads[0]))
    for row in rows:
        values = list(asdict(row).values())
        print(f"{row.case:16}" + "".join(f"{value:8.1f}" for value in values[1:4]), end="")
        print("".join(f"{value:8.2f}" for value in values[4:7]), end="")
        print("".join(f"{value:10.2f}" for value in values[7:]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="times each file is prepared")
    parser.add_argument("--files", type=int, default=4, help="different files per case")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import Qwen2VLImageProcessor

    torch.set_num_threads(1)
    bounds = {"shortest_edge": CONFIG.min_pixels, "longest_edge": CONFIG.max_pixels}
    processor = Qwen2VLImageProcessor(size=bounds)
    with tempfile.TemporaryDirectory() as folder:
        cases = write_cases(Path(folder), args.files)
        rows = [
            measure(case, [Path(folder, name) for name in names], args.rounds, processor)
            for case, names in cases.items()
        ]
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0 if all(row.ratio_to_naive >= row.target for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
