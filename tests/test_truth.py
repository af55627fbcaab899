"""Captions are true and belong to their own image: the job against what was drawn, and against
transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from support.job import captions, input_flags, make_input, rows, run_here, write_document

from tools.demo_model.captions import STYLES, Style, caption
from tools.demo_model.scenes import Scene, draw, sample_scene
from vllm_caption.captions.prompt import load_prompt, render
from vllm_caption.commands.demo import SAMPLE_DIR
from vllm_caption.config import ImageConfig
from vllm_caption.demo import MODEL_DIR
from vllm_caption.images.decode import prepare_image
from vllm_caption.items import Document, Item

pytestmark = pytest.mark.engine

MAX_TOKENS = 24


def transformers_captions(root: Path, files: list[str], prompt_name: str) -> dict[str, str]:
    """Greedy captions in float32, one image at a time, straight through Hugging Face."""
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    config = ImageConfig()
    bounds = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    processor = AutoProcessor.from_pretrained(MODEL_DIR, size=bounds)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(MODEL_DIR, dtype=torch.float32)
    made = {}
    for file in files:
        image = prepare_image(str(root), file, config).image
        asked = render(load_prompt(prompt_name), Item(file, Document("d"), 0, "SvgElement"))
        content = [{"type": "image"}, {"type": "text", "text": asked.user}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        made[file] = processor.decode(answer, skip_special_tokens=True).strip()
    return made


@pytest.mark.parametrize("prompt_name", ["shape-brief", "shape-zh"])
def test_captions_equal_those_of_transformers_image_by_image(
    tmp_path: Path, prompt_name: str
) -> None:
    files = make_input(tmp_path, 24)
    arguments = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=2", "--no-checks"]
    result = run_here(
        "--model=demo", *arguments, f"--max-tokens={MAX_TOKENS}", f"--prompt={prompt_name}"
    )
    assert result.exit_code == 0
    expected = transformers_captions(tmp_path / "raw", files, prompt_name)
    assert captions(tmp_path / "out") == expected
    assert len(set(expected.values())) > 6


def test_captions_of_the_sample_equal_those_of_transformers(tmp_path: Path) -> None:
    folder = SAMPLE_DIR
    arguments = [*input_flags(folder), f"--output={tmp_path}", "--no-checks", "--limit=20"]
    run_here("--model=demo", *arguments, f"--max-tokens={MAX_TOKENS}")
    made = captions(tmp_path)
    assert made == transformers_captions(folder / "raw", sorted(made), "shape-brief")


@dataclass(frozen=True)
class Drawn:
    """Unseen scenes, captioned with one prompt after the other."""

    scenes: dict[str, Scene]
    made: dict[Style, dict[str, str]]
    """The answers: captions, or the fields as JSON."""
    backdrops: dict[str, str]

    def share_exact(self, style: Style) -> float:
        """How many answers say exactly what was drawn."""
        right = (self.made[style][f] == caption(s.words, style) for f, s in self.scenes.items())
        return sum(right) / len(self.scenes)


def is_transparent(colour: str) -> Callable[[Scene], bool]:
    return lambda scene: scene.backdrop_rgb is None and scene.words.colour == colour


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("drawn")
    generator = Random("unseen/tests")
    endless = iter(lambda: sample_scene(generator), None)
    scenes = {f"any/{n}.png": scene for n, scene in enumerate(islice(endless, 40))}
    for colour in ("black", "white"):
        found = islice(filter(is_transparent(colour), endless), 12)
        scenes |= {f"{colour}/{n}.png": scene for n, scene in enumerate(found)}
    for file, scene in scenes.items():
        path = folder / "raw" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(scene).save(path)
    write_document(folder, "design", list(scenes), ["SvgElement"] * len(scenes))
    made: dict[Style, dict[str, str]] = {}
    for style in STYLES:
        output = folder / style
        flags = [*input_flags(folder), f"--output={output}", f"--prompt={style}", "-dp=2"]
        assert run_here("--model=demo", *flags).exit_code == 0
        made[style] = captions(output)
        if style == "shape-fields":
            made[style] = {file: row["structured"] for file, row in rows(output).items()}
    backdrops = {file: row["backdrop"] for file, row in rows(folder / "shape-brief").items()}
    return Drawn(scenes, made, backdrops)


@pytest.mark.parametrize("style", STYLES)
def test_caption_describes_what_was_drawn(drawn: Drawn, style: Style) -> None:
    assert drawn.share_exact(style) >= 0.93  # 0.99 of 600 images, see benchmarks/RESULTS.md


def test_no_caption_belongs_to_another_image(drawn: Drawn) -> None:
    for file, scene in drawn.scenes.items():
        said = drawn.made["shape-brief"][file]
        assert scene.words.colour in said or scene.words.shape in said


@pytest.mark.parametrize(("colour", "backdrop"), [("black", "white"), ("white", "black")])
def test_transparent_shape_is_shown_on_a_contrasting_backdrop(
    drawn: Drawn, colour: str, backdrop: str
) -> None:
    files = [file for file in drawn.scenes if file.startswith(colour)]
    assert {drawn.backdrops[file] for file in files} == {backdrop}
    for file in files:
        assert colour in drawn.made["shape-brief"][file]
        assert drawn.scenes[file].words.shape in drawn.made["shape-brief"][file]


def test_prompt_decides_how_the_same_image_is_captioned(drawn: Drawn) -> None:
    for file in drawn.scenes:
        brief, detailed, chinese, fields = (made[file] for made in drawn.made.values())
        assert fields.startswith("{")
        assert len(detailed) > 2 * len(brief)
        assert not chinese.isascii()
