"""The job is tied to no model: other architectures caption, or are refused before an engine starts.

The models are tiny and random, see `tiny_models`; their words mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny_models
from support.job import Result, captions, input_flags, rows, run_here
from transformers import AutoProcessor, Idefics3ForConditionalGeneration

import vllm_caption.demo
from vllm_caption.captions.prompt import load_prompt
from vllm_caption.config import ImageConfig
from vllm_caption.images.decode import prepare_image

pytestmark = pytest.mark.engine

SAMPLE = Path(vllm_caption.demo.__file__).parent / "sample"
NUM_ITEMS = 5


def caption_sample(model: Path, output: Path, *flags: str) -> Result:
    """The first shapes of the bundled sample, captioned by one engine."""
    paths = [f"--model={model}", *input_flags(SAMPLE), f"--output={output}", "-dp=1"]
    return run_here(
        *paths, f"--limit={NUM_ITEMS}", "--max-tokens=8", "--no-checks", "--quiet", *flags
    )


@pytest.fixture(scope="module")
def idefics3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that vLLM knows."""
    folder = tmp_path_factory.mktemp("idefics3")
    tiny_models.build_idefics3(folder)
    return folder


@pytest.fixture(scope="module")
def native_output(idefics3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captions of the sample by vLLM's native code."""
    output = tmp_path_factory.mktemp("native")
    result = caption_sample(idefics3, output)
    assert result.exit_code == 0, result.stderr
    return output


def test_idefics3_captions_every_shape_and_each_caption_depends_on_its_image(
    native_output: Path,
) -> None:
    texts = captions(native_output)
    found = rows(native_output)
    assert len(texts) == len(found) == NUM_ITEMS
    assert {file: row["caption"] for file, row in found.items()} == texts
    assert all(text.strip() for text in texts.values())
    assert len(set(texts.values())) == NUM_ITEMS
    assert {row["output_tokens"] for row in found.values()} == {8}


def test_idefics3_captions_are_those_that_transformers_generates(
    idefics3: Path, native_output: Path
) -> None:
    processor = AutoProcessor.from_pretrained(idefics3)
    model = Idefics3ForConditionalGeneration.from_pretrained(idefics3, dtype=torch.float32)
    content = [{"type": "image"}, {"type": "text", "text": load_prompt("shape-brief").user.strip()}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    for file, caption in captions(native_output).items():
        image = prepare_image(str(SAMPLE / "raw"), file, ImageConfig()).image
        inputs = processor(images=[image], text=text, return_tensors="pt", add_special_tokens=False)
        (tokens,) = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = tokens[inputs["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(answer, skip_special_tokens=True).strip() == caption


def test_transformers_backend_of_vllm_gives_the_captions_of_its_native_code(
    idefics3: Path, native_output: Path, tmp_path: Path
) -> None:
    result = caption_sample(idefics3, tmp_path, "--model-impl=transformers")
    assert result.exit_code == 0, result.stderr
    assert captions(tmp_path) == captions(native_output)


def build_without_chat(folder: Path) -> None:
    tiny_models.build_idefics3(folder)
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (tiny_models.build_idefics2, "vLLM cannot prepare images for Idefics2ForConditional"),
        (tiny_models.build_kosmos2, "vLLM cannot prepare images for Kosmos2ForConditional"),
        (tiny_models.build_text_only, "takes no images"),
        (build_without_chat, "chat template"),
    ],
)
def test_model_that_cannot_caption_is_refused_in_one_line_before_an_engine_starts(
    build: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    model, output = tmp_path / "model", tmp_path / "output"
    model.mkdir()
    build(model)
    result = caption_sample(model, output)
    checking, *said = result.stderr.splitlines()
    assert checking.startswith("Checking")
    assert result.exit_code == 2
    assert len(said) == 1
    assert said[0].startswith(f"vllm-caption: error: --model {model}: ")
    assert why in said[0]
    assert "such as HuggingFaceTB/SmolVLM-Instruct" in said[0]
    assert not captions(output)
    assert not list(output.glob("logs/engine-*.log"))
