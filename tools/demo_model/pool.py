"""Pre-drawn training pictures on disk, in shards, so that drawing does not hold training up.

Invariants: a shard depends on its seed alone; a shard's files are complete once its list of
entries is there, which is written last; patches are stored in the processor's order, 8 bits each.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from tools.demo_model.captions import Words
from tools.demo_model.patches import PATCH, patch_rows, view
from tools.demo_model.scenes import draw, flatten, sample_scene


@dataclass(frozen=True)
class Sample:
    """One picture as the model sees it, and its words."""

    rows: NDArray[np.uint8]
    grid_h: int
    """Patches from top to bottom; twice the tokens."""
    grid_w: int
    words: Words

    @property
    def num_tokens(self) -> int:
        """Tokens that the picture takes in the language model."""
        return self.grid_h * self.grid_w // 4


def draw_sample(generator: Random) -> Sample:
    """One picture through drawing, flattening and patching."""
    scene = sample_scene(generator)
    seen = view(flatten(draw(scene)))
    return Sample(patch_rows(seen), seen.shape[0] // PATCH, seen.shape[1] // PATCH, scene.words)


def write_shard(folder: Path, index: int, size: int, seed: int) -> None:
    """Draw one shard."""
    generator = Random(f"{seed}/{index}")
    samples = [draw_sample(generator) for _ in range(size)]
    entries = [{"h": s.grid_h, "w": s.grid_w, "words": asdict(s.words)} for s in samples]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{index:04}.npy", np.concatenate([s.rows for s in samples]))
    unfinished = folder / f"{index:04}.tmp"
    unfinished.write_text(json.dumps(entries), encoding="utf-8")
    unfinished.rename(folder / f"{index:04}.json")


def read_shard(folder: Path, index: int) -> list[Sample] | None:
    """A shard's pictures, mapped from disk, or None where it is not finished."""
    listing = folder / f"{index:04}.json"
    if not listing.exists():
        return None
    rows = np.load(folder / f"{index:04}.npy", mmap_mode="r")
    samples, start = [], 0
    for entry in json.loads(listing.read_text(encoding="utf-8")):
        stop = start + entry["h"] * entry["w"]
        samples.append(Sample(rows[start:stop], entry["h"], entry["w"], Words(**entry["words"])))
        start = stop
    return samples
