"""Draw an unseen set: `python -m tools.demo_model.draw --count 500 --seed 7 --out DIR`.

Invariants: the folder has the job's manifest layout (`jsons/`, `json_detail/`, `raw/`); the set
depends on its options alone; `truth.json` maps each file to its words and its captions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

from tools.demo_model.captions import STYLES, caption
from tools.demo_model.questions import CATEGORIES, KEYWORDS
from tools.demo_model.scenes import Scene, draw, sample_scene

IMAGES_PER_DESIGN = 10


def draw_set(out: Path, count: int, seed: int) -> None:
    """Write designs of up to ten elements each."""
    # The prefix keeps these scenes apart from the training shards of the same number.
    generator = Random(f"unseen/{seed}")
    for folder in ("jsons", "json_detail", "raw"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {}
    for start in range(0, count, IMAGES_PER_DESIGN):
        name = f"design_{start // IMAGES_PER_DESIGN:05}"
        files = []
        for index in range(start, min(start + IMAGES_PER_DESIGN, count)):
            scene = sample_scene(generator)
            files.append(f"{name}_{index - start:02}.png")
            draw(scene).save(out / "raw" / files[-1])
            truth[files[-1]] = describe(scene)
        _write_design(out, name, files, generator)
    _write_json(out / "truth.json", truth)


def describe(scene: Scene) -> dict[str, Any]:
    """A scene's entry in `truth.json`; a large shape has no position."""
    words = scene.words
    return {
        "shape": words.shape,
        "colour": words.colour,
        "fill": words.fill,
        "size": words.size,
        "position": words.position if words.size == "small" else None,
        "canvas": words.canvas,
        "backdrop": words.backdrop,
        "captions": {style: caption(words, style) for style in STYLES},
    }


def _write_design(out: Path, name: str, files: list[str], generator: Random) -> None:
    detail = {
        "images": files,
        "types": ["SvgElement"] * len(files),
        "category": generator.choice(CATEGORIES),
        "title": " ".join(generator.sample(KEYWORDS, 3)).title(),
        "keywords": generator.sample(KEYWORDS, generator.randint(0, 5)),
    }
    listing = {"images": [{"file": file} for file in files]}
    _write_json(out / "jsons" / f"{name}.json", listing)
    _write_json(out / "json_detail" / f"{name}.json", detail)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the options and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    draw_set(options.out, options.count, options.seed)


if __name__ == "__main__":
    main()
