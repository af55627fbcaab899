"""Each caption belongs to its own image: the job against transformers' own `generate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from job import captions, input_flags, make_input, run_here

from vllm_caption.config import ImageConfig
from vllm_caption.demo import MODEL_DIR
from vllm_caption.demo.command import SAMPLE_DIR
from vllm_caption.images import prepare_image
from vllm_caption.manifest import Document, Item
from vllm_caption.prompts import load_prompt, render

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
