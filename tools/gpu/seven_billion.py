"""A model folder with the shape of Qwen2.5-VL-7B-Instruct: 16.6 GB of weights that take no disk.

Configuration, the weights' names, shapes and index are the published model's; the weights are holes
in the files. Tokenizer and processor are those of the bundled model.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_caption.demo import MODEL_DIR

VOCABULARY, WIDTH, MLP, LAYERS, KEYS = 152064, 3584, 18944, 28, 512
VISION_WIDTH, VISION_MLP, VISION_LAYERS = 1280, 3420, 32
FILES = 5
BYTES_PER_WEIGHT = 2


def make_seven_billion(folder: Path) -> Path:
    """Write the model into ``folder``, which is made."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(MODEL_DIR / name, folder)
    for name in ("processor_config.json", "generation_config.json"):
        shutil.copy(MODEL_DIR / name, folder)
    (folder / "config.json").write_text(json.dumps(_config()))
    weights = list(_weights())
    names: dict[str, str] = {}
    for number in range(FILES):
        file = f"model-{number + 1:05}-of-{FILES:05}.safetensors"
        part = dict(weights[number::FILES])
        _write_holes(folder / file, part)
        names |= dict.fromkeys(part, file)
    total = sum(math.prod(shape) for _, shape in weights) * BYTES_PER_WEIGHT
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _write_holes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * BYTES_PER_WEIGHT
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def _weights() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight."""
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{norm}.weight", (WIDTH,)
        for part, size in (("q", WIDTH), ("k", KEYS), ("v", KEYS)):
            yield f"{name}.self_attn.{part}_proj.weight", (size, WIDTH)
            yield f"{name}.self_attn.{part}_proj.bias", (size,)
        yield f"{name}.self_attn.o_proj.weight", (WIDTH, WIDTH)
        for part in ("gate", "up"):
            yield f"{name}.mlp.{part}_proj.weight", (MLP, WIDTH)
        yield f"{name}.mlp.down_proj.weight", (WIDTH, MLP)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (VOCABULARY, WIDTH)
    yield "visual.patch_embed.proj.weight", (VISION_WIDTH, 3, 2, 14, 14)
    for layer in range(VISION_LAYERS):
        name = f"visual.blocks.{layer}"
        for norm in ("norm1", "norm2"):
            yield f"{name}.{norm}.weight", (VISION_WIDTH,)
        for part, shape in (
            ("attn.qkv", (3 * VISION_WIDTH, VISION_WIDTH)),
            ("attn.proj", (VISION_WIDTH, VISION_WIDTH)),
            ("mlp.gate_proj", (VISION_MLP, VISION_WIDTH)),
            ("mlp.up_proj", (VISION_MLP, VISION_WIDTH)),
            ("mlp.down_proj", (VISION_WIDTH, VISION_MLP)),
        ):
            yield f"{name}.{part}.weight", shape
            yield f"{name}.{part}.bias", shape[:1]
    merged = 4 * VISION_WIDTH
    yield "visual.merger.ln_q.weight", (VISION_WIDTH,)
    for part, shape in (("mlp.0", (merged, merged)), ("mlp.2", (WIDTH, merged))):
        yield f"visual.merger.{part}.weight", shape
        yield f"visual.merger.{part}.bias", shape[:1]


def _config() -> dict[str, Any]:
    """The published configuration, with the ids of the bundled tokenizer."""
    config: dict[str, Any] = json.loads((MODEL_DIR / "config.json").read_bytes())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    config["text_config"] |= {
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "layer_types": ["full_attention"] * LAYERS,
        "max_position_embeddings": 128000,
        "max_window_layers": LAYERS,
        "num_attention_heads": 28,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 4,
        "rope_parameters": {
            "mrope_section": [16, 24, 24],
            "rope_theta": 1000000.0,
            "rope_type": "default",
        },
        "vocab_size": VOCABULARY,
    }
    config["vision_config"] |= {
        "depth": VISION_LAYERS,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_size": VISION_WIDTH,
        "intermediate_size": VISION_MLP,
        "num_heads": 16,
        "out_hidden_size": WIDTH,
        "tokens_per_second": 2,
    }
    return config
