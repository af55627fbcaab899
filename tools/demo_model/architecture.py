"""The demo model's parts: configuration, tokenizer, chat template and processor.

Invariants: everything is Qwen2.5-VL's own classes at a small size, so that vLLM and transformers
load the folder as they load the real model; the tokenizer is byte-level, so any text is encoded
without loss; head sizes are 32, the smallest that vLLM's CPU attention takes.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from tools.demo_model.captions import (
    BACKDROPS,
    CANVASES,
    COLOURS,
    FILLS,
    POSITIONS,
    SHAPES,
    SIZES,
    STYLES,
    Words,
    caption,
)
from tools.demo_model.patches import MAX_PIXELS, MIN_PIXELS
from tools.demo_model.questions import Questions

VOCAB_SIZE = 1280
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PRE_TOKENS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(seed: int = 0) -> Qwen2Tokenizer:
    """A byte-level BPE over the shipped prompts and the captions, special tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(PRE_TOKENS), behavior="isolated", invert=False),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_corpus(Random(seed)), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS])
    return _wrap_tokenizer(tokenizer)


def _wrap_tokenizer(tokenizer: Tokenizer) -> Qwen2Tokenizer:
    model = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def _tokenizer_corpus(generator: Random) -> list[str]:
    """Every word of the captions in its place, and the questions."""
    kinds = list(product(SHAPES, COLOURS, FILLS, SIZES, POSITIONS))
    words = [
        Words(*kind, generator.choice(CANVASES), generator.choice(BACKDROPS))
        for kind in generator.sample(kinds, 2000)
    ]
    texts = [caption(scene, style) for scene in words for style in STYLES if style != "shape-zh"]
    # Chinese has no spaces: given whole captions, BPE would make one token of colour and shape.
    tables = (SHAPES, COLOURS, FILLS, SIZES, POSITIONS)
    chinese = [word for table in tables for word in table.values()] * 100
    return texts + chinese + Questions().corpus(generator)


TEXT_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000.0,
        "mrope_section": [4, 6, 6],
    },
}
VISION_SIZES: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": 128,
    "fullatt_block_indexes": [0, 1, 2, 3],
    "window_size": 112,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def model_config(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """About two million parameters, more than half of them in the vision tower."""
    token_id = tokenizer.convert_tokens_to_ids
    ends = {
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "pad_token_id": token_id("<|endoftext|>"),
    }
    return Qwen2_5_VLConfig(
        text_config={**TEXT_SIZES, **ends, "tie_word_embeddings": True},
        vision_config=dict(VISION_SIZES),
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
        **ends,
    )


def make_processor(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """The real processor with this model's pixel bounds."""
    bounds = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=bounds),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=bounds),
        chat_template=CHAT_TEMPLATE,
    )


def export(model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, out: Path) -> None:
    """Write everything that a loader needs; nothing in it points back to this package."""
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=96,
        eos_token_id=[model.config.text_config.eos_token_id],
        pad_token_id=model.config.text_config.pad_token_id,
        bos_token_id=model.config.text_config.bos_token_id,
    )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    make_processor(tokenizer).save_pretrained(out)
