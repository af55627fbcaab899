"""Ask the exported model about unseen pictures: `python -m ….evaluate --model DIR --count 500`.

Invariants: pictures pass the real processor and captions come from transformers' greedy
generation, so nothing of the training code but the drawing is used; every figure is a share of
all pictures, and none is left out.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from tools.demo_model.captions import COLOURS, SHAPES, STYLES, Style, Words, caption
from tools.demo_model.questions import read_prompt
from tools.demo_model.scenes import Scene, draw, flatten, sample_scene

MODEL_DIR = Path(__file__).resolve().parents[2] / "vllm_caption" / "demo" / "model"


class Captioner:
    """The exported model behind one call."""

    def __init__(self, folder: Path) -> None:
        self._processor = AutoProcessor.from_pretrained(folder)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval()

    def captions(self, pictures: list[Any], question: str) -> list[str]:
        """One caption per picture, greedily, as the model's generation config says."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = self._processor(
            images=pictures,
            text=[text] * len(pictures),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        with torch.no_grad():
            generated = self._model.generate(**inputs)
        start = inputs["input_ids"].shape[1]
        answers: list[str] = self._processor.batch_decode(
            generated[:, start:], skip_special_tokens=True
        )
        return answers


def named(text: str, names: list[str]) -> str | None:
    """The first of the names that occurs in a caption, as a word."""
    words = text.lower().rstrip(".").replace(".", " ").split()
    return next((word for word in words if word in names), None)


def score(text: str, words: Words, style: Style) -> dict[str, bool]:
    """What is right about one caption."""
    marks = {"exact": text == caption(words, style)}
    if style == "shape-zh":
        marks["shape"] = text.rstrip("。").endswith(SHAPES[words.shape])
        marks["colour"] = COLOURS[words.colour] in text
    elif style == "shape-fields":
        marks["shape"] = f'"shape":"{words.shape}"' in text
        marks["colour"] = f'"colour":"{words.colour}"' in text
    else:
        marks["shape"] = named(text, list(SHAPES)) == words.shape
        marks["colour"] = named(text, list(COLOURS)) == words.colour
    return marks


def evaluate(folder: Path, count: int, seed: int, batch_size: int = 20) -> dict[str, float]:
    """Shares per style, and a list of what went wrong on standard output."""
    captioner = Captioner(folder)
    generator = Random(f"unseen/{seed}")
    scenes = [sample_scene(generator) for _ in range(count)]
    totals: Counter[str] = Counter()
    for start in range(0, count, batch_size):
        part = scenes[start : start + batch_size]
        pictures = [flatten(draw(scene)) for scene in part]
        for style in STYLES:
            answers = captioner.captions(pictures, read_prompt(style))
            for scene, text in zip(part, answers, strict=True):
                marks = score(text, scene.words, style)
                totals.update(f"{style} {mark}" for mark, right in marks.items() if right)
                if not marks["exact"] and style == STYLES[0]:
                    _tell(scene, text)
    return {name: right / count for name, right in sorted(totals.items())}


def _tell(scene: Scene, text: str) -> None:
    size = f"{scene.width} × {scene.height}"
    print(f"{size}, {scene.words.backdrop}: {caption(scene.words, STYLES[0])} ≠ {text}")


def main() -> None:
    """Parse the options and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start_s = time.monotonic()
    for name, share in evaluate(options.model, options.count, options.seed).items():
        print(f"{name}: {share:.3f}")
    print(f"{options.count} unseen pictures, {time.monotonic() - start_s:.0f} s")


if __name__ == "__main__":
    main()
