"""The demo model's drawing, arithmetic and files; none of it needs an engine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from tools.demo_model.batches import Batcher
from tools.demo_model.captions import POSITIONS, SHAPES, STYLES, Words, caption
from tools.demo_model.draw import draw_set
from tools.demo_model.evaluate import Captioner, score
from tools.demo_model.forward import read, see
from tools.demo_model.patches import PATCH, patch_rows, pixel_values, view
from tools.demo_model.pool import Sample, draw_sample, read_shard, write_shard
from tools.demo_model.questions import Questions, read_prompt
from tools.demo_model.scenes import draw, flatten, sample_scene

MODEL_DIR = Path(__file__).resolve().parents[1] / "vllm_caption" / "demo" / "model"
SMALL_STAR = Words("star", "red", "outlined", "small", "at the top left", "wide", "navy")
LARGE_RING = Words("ring", "blue", "solid", "large", "in the center", "square", "white")


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def test_equal_seeds_draw_equal_pictures() -> None:
    first, second = (
        [draw(sample_scene(generator)).tobytes() for _ in range(8)]
        for generator in (Random(3), Random(3))
    )
    assert first == second


def test_different_seeds_draw_different_pictures() -> None:
    assert sample_scene(Random(3)) != sample_scene(Random(4))


def test_a_shape_stays_inside_its_picture() -> None:
    generator = Random(5)
    for _ in range(200):
        scene = sample_scene(generator)
        mask = draw(scene).convert("RGB") if scene.backdrop_rgb else draw(scene).getchannel("A")
        levels = np.asarray(mask, np.int16).reshape(scene.height, scene.width, -1)
        differs = (np.abs(levels - levels[-1, scene.width // 2]) > 96).any(axis=2)
        differs |= (np.abs(levels - levels[0, 0]) > 96).any(axis=2)
        assert differs.any() and not differs.all()


def test_a_white_shape_on_transparency_is_seen_on_black() -> None:
    picture = Image.new("RGBA", (20, 10), (250, 250, 250, 0))
    picture.paste((250, 250, 250, 255), (5, 2, 15, 8))
    flat = flatten(picture)
    assert flat.getpixel((0, 0)) == (0, 0, 0)
    assert flat.getpixel((10, 5)) == (250, 250, 250)


def test_a_dark_shape_on_transparency_is_seen_on_white() -> None:
    picture = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    picture.paste((20, 20, 200, 255), (5, 2, 15, 8))
    assert flatten(picture).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "size", [(64, 64), (120, 300), (224, 224), (640, 200), (1024, 1024), (1024, 250)]
)
def test_patches_equal_the_real_processors(processor: Any, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    real = processor.image_processor(images=[picture], return_tensors="np")
    seen = view(picture)
    grid = [1, seen.shape[0] // PATCH, seen.shape[1] // PATCH]
    assert real["image_grid_thw"].tolist() == [grid]
    # One level of 255 is 0.0153 after normalisation.
    assert np.abs(pixel_values(seen) - real["pixel_values"]).max() < 0.04


def test_a_picture_takes_8_to_64_tokens() -> None:
    generator = Random(0)
    counts = [draw_sample(generator).num_tokens for _ in range(60)]
    assert min(counts) >= 8 and max(counts) <= 64 and len(set(counts)) > 5


def test_the_template_puts_the_picture_between_vision_markers(processor: Any) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "Name the shape."}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Name the shape.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_template_takes_a_system_message_and_plain_strings(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n")


@pytest.mark.parametrize("text", ["naïve – 😀 漢字 \t\n x", "请描述", "a\u0000b", "Ж١", "   "])
def test_any_text_is_encoded_without_loss(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_turn_ends_with_the_end_token(tokenizer: Any) -> None:
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text())
    assert tokenizer.eos_token == "<|im_end|>"
    assert generation["eos_token_id"] in (tokenizer.eos_token_id, [tokenizer.eos_token_id])


def test_brief_captions_name_size_fill_colour_shape_and_place() -> None:
    assert caption(SMALL_STAR, "shape-brief") == "Small outlined red star at the top left."
    assert caption(LARGE_RING, "shape-brief") == "Large solid blue ring."


def test_chinese_captions_are_one_sentence() -> None:
    assert caption(SMALL_STAR, "shape-zh") == "左上角的小号描边红色五角星。"
    assert caption(LARGE_RING, "shape-zh") == "大号实心蓝色圆环。"


def test_detailed_captions_tell_the_canvas_in_two_sentences() -> None:
    text = caption(SMALL_STAR, "shape-detailed")
    assert text.startswith("A small outlined red star sits at the top left of a wide navy canvas.")
    assert text.count(".") == 2


def test_different_words_give_different_captions() -> None:
    scenes = [
        Words(shape, "red", "solid", "small", position, "wide", "white")
        for shape in SHAPES
        for position in POSITIONS
    ]
    for style in STYLES:
        assert len({caption(words, style) for words in scenes}) == len(scenes)


def test_shipped_prompts_get_their_own_style_and_others_the_brief_one() -> None:
    questions, generator = Questions(), Random(0)
    shipped = {read_prompt(style): style for style in STYLES}
    for question, style in (questions.draw(generator) for _ in range(300)):
        assert style == shipped.get(question, "shape-brief")


def test_training_sees_the_template_s_own_tokens(processor: Any) -> None:
    sample = draw_sample(Random(1))
    batch = Batcher(processor.tokenizer).make([sample], Random(12))
    text = processor.tokenizer.decode(batch.ids[0])
    assert text.endswith("<|im_end|>")
    turns = text.replace("<|image_pad|>" * sample.num_tokens, "<|image_pad|>")
    question = turns.split("<|vision_end|>")[1].split("<|im_end|>")[0]
    content = [{"type": "image"}, {"type": "text", "text": question}]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert turns.endswith(asked + turns.split("assistant\n")[1])


def test_the_training_pass_gives_the_real_model_s_logits() -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(MODEL_DIR, dtype=torch.float32)
    generator = Random(2)
    samples = [draw_sample(generator) for _ in range(2)]
    batch = Batcher(AutoTokenizer.from_pretrained(MODEL_DIR)).make(samples, generator)
    with torch.no_grad():
        tokens = see(model.model.visual, batch.rows, batch.grids)
        ours = read(model, batch.ids, batch.places, tokens, batch.wanted)
        theirs = torch.cat([_real_logits(model, batch, index) for index in range(2)])
    assert torch.allclose(ours, theirs, atol=2e-3 * float(theirs.abs().max()))


def _real_logits(model: Any, batch: Any, index: int) -> Any:
    sample: Sample = batch.samples[index]
    height, width = sample.grid_h * PATCH, sample.grid_w * PATCH
    blocks = sample.rows.reshape(sample.grid_h // 2, sample.grid_w // 2, 2, 2, 3, PATCH, PATCH)
    seen = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(height, width, 3)
    assert np.array_equal(patch_rows(seen), sample.rows)
    ids = batch.ids[index : index + 1]
    logits = model(
        input_ids=ids,
        pixel_values=torch.from_numpy(pixel_values(seen)),
        image_grid_thw=torch.tensor([[1, sample.grid_h, sample.grid_w]]),
        mm_token_type_ids=(ids == model.config.image_token_id).long(),
    ).logits
    return logits[0][batch.wanted[index]]


def test_a_shard_reads_back_as_it_was_drawn(tmp_path: Path) -> None:
    assert read_shard(tmp_path, 0) is None
    write_shard(tmp_path, 0, size=3, seed=9)
    samples = read_shard(tmp_path, 0)
    generator = Random("9/0")
    assert samples is not None and len(samples) == 3
    for sample in samples:
        drawn = draw_sample(generator)
        assert sample.words == drawn.words and np.array_equal(sample.rows, drawn.rows)


def test_a_drawn_set_has_the_manifest_layout_and_its_truth(tmp_path: Path) -> None:
    draw_set(tmp_path, count=12, seed=1)
    truth = json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))
    assert len(truth) == 12
    for listing in sorted((tmp_path / "jsons").iterdir()):
        files = [image["file"] for image in json.loads(listing.read_text())["images"]]
        detail = json.loads((tmp_path / "json_detail" / listing.name).read_text(encoding="utf-8"))
        assert len(detail["types"]) == len(detail["images"]) == len(files)
        for file in files:
            assert (tmp_path / "raw" / file).is_file()
            assert set(truth[file]["captions"]) == set(STYLES)


def test_the_bundled_model_describes_unseen_pictures_exactly() -> None:
    captioner, generator = Captioner(MODEL_DIR), Random("tests")
    scenes = [sample_scene(generator) for _ in range(60)]
    pictures = [flatten(draw(scene)) for scene in scenes]
    for style in STYLES:
        answers = captioner.captions(pictures, read_prompt(style))
        pairs = zip(answers, scenes, strict=True)
        marks = [score(text, scene.words, style)["exact"] for text, scene in pairs]
        assert sum(marks) >= 57


def test_the_model_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= 6_000_000
