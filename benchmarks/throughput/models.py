"""The models: the bundled one, and a larger one with random weights, where the engine is what takes
the time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vllm_caption.demo import MODEL_DIR

LARGER = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}


def tiny_model() -> str:
    """The bundled model."""
    return str(MODEL_DIR)


def larger_model(folder: Path) -> str:
    """The bundled model's classes, tokens and chat template with a larger decoder and encoder."""
    if (folder / "model.safetensors").is_file():
        return str(folder)
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    shutil.copytree(MODEL_DIR, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    head_dim = LARGER["hidden_size"] // HEADS["num_attention_heads"]
    text |= LARGER | HEADS | {"layer_types": ["full_attention"] * LARGER["num_hidden_layers"]}
    text["rope_parameters"]["mrope_section"] = [
        head_dim // 8,
        3 * head_dim // 16,
        3 * head_dim // 16,
    ]
    config["vision_config"] |= {"out_hidden_size": LARGER["hidden_size"]}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)).to(torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:  # large enough for an answer to depend on the image
                torch.nn.init.normal_(weight, std=1.5 * weight.shape[1:].numel() ** -0.5)
    model.save_pretrained(folder)
    return str(folder)
