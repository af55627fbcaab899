"""How often the bundled model is right, measured through the whole job on the real engine.

    python benchmarks/demo_accuracy.py --count 600 --seed 101 [--json FILE]

Draws unseen shapes (PNGs with and without alpha) with their manifests, runs
`python -m vllm_caption` on them once per prompt, and compares every .txt, or the fields of
`shape-fields`, with the truth. Exits 1 when a share falls below what the model promises.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import vllm_caption
from tools.demo_model.captions import COLOURS, SHAPES, STYLES
from tools.demo_model.draw import draw_set
from tools.demo_model.evaluate import named

PROMISED = {"exact": 0.95, "shape": 0.99, "colour": 0.99}


def caption_all(folder: Path, prompt: str, engines: int) -> dict[str, str]:
    """file → caption, or its fields as JSON, by the command that users type."""
    output = folder / f"out-{prompt}"
    command = [
        *(sys.executable, "-m", "vllm_caption", "--model", "demo", "--prompt", prompt),
        *("--jsons", str(folder / "jsons"), "--json-detail", str(folder / "json_detail")),
        *("--images-root", str(folder / "raw"), "--output", str(output)),
        *("--data-parallel-size", str(engines)),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if prompt == "shape-fields":
        rows = vllm_caption.read(output).select(["file", "structured"]).to_pylist()
        return {row["file"]: row["structured"] or "" for row in rows}
    return {p.name[: -len(".txt")]: p.read_text("utf-8") for p in output.glob("*.txt")}


def words_of(caption: str, prompt: str) -> tuple[str | None, str | None]:
    """Shape and colour that a caption names, in English."""
    if prompt == "shape-zh":
        ends = [(len(zh), s) for s, zh in SHAPES.items() if caption.rstrip("。").endswith(zh)]
        shape = max(ends)[1] if ends else None  # 椭圆形 (oval) ends in 圆形 (circle)
        return shape, next((c for c, zh in COLOURS.items() if zh in caption), None)
    if prompt == "shape-fields":
        fields = json.loads(caption or "{}")
        return fields.get("shape"), fields.get("colour")
    return named(caption, list(SHAPES)), named(caption, list(COLOURS))


def compare(made: dict[str, str], truth: dict[str, Any], prompt: str) -> dict[str, Any]:
    """Shares of all images, what was mistaken for what, and captions of another image."""
    right: Counter[str] = Counter()
    confused: Counter[str] = Counter()
    foreign = 0
    expected = {file: entry["captions"][prompt] for file, entry in truth.items()}
    owners = Counter(expected.values())
    for file, entry in truth.items():
        caption = made.get(file, "")
        shape, colour = words_of(caption, prompt)
        right["exact"] += caption == expected[file]
        right["shape"] += shape == entry["shape"]
        right["colour"] += colour == entry["colour"]
        for said, true in ((shape, entry["shape"]), (colour, entry["colour"])):
            confused[f"{true} → {said}"] += said != true
        both_wrong = shape != entry["shape"] and colour != entry["colour"]
        foreign += both_wrong and caption in owners
    shares = {name: right[name] / len(truth) for name in PROMISED}
    mistakes = {pair: count for pair, count in confused.most_common() if count}
    return {"images": len(truth), **shares, "of_another_image": foreign, "confused": mistakes}


def main() -> int:
    """Draw, caption, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_set(folder, options.count, options.seed)
        truth = json.loads((folder / "truth.json").read_text("utf-8"))
        for prompt in STYLES:
            results[prompt] = compare(caption_all(folder, prompt, options.engines), truth, prompt)
    for prompt, result in results.items():
        shares = ", ".join(f"{name} {result[name]:.3f}" for name in PROMISED)
        print(f"{prompt}: {shares}, of another image {result['of_another_image']}")
        for pair, count in result["confused"].items():
            print(f"    {pair}: {count}")
    if options.json:
        options.json.write_text(json.dumps(results, ensure_ascii=False, indent=1))
    brief = results["shape-brief"]
    return int(any(brief[name] < PROMISED[name] for name in PROMISED))


if __name__ == "__main__":
    sys.exit(main())
