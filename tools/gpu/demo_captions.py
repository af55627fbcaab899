"""What the bundled model answers on a CPU, and which other answers bf16 explains.

A GPU computes in bf16, a CPU in float32, so where two tokens are almost equally likely the other
one may win. `demo_captions.json` holds the captions of a CPU in float32, and how far ahead each of
their tokens was of the second best. To make it anew, in an environment with the CPU build:

    python -m tools.gpu.demo_captions
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

PATH: Final = Path(__file__).with_name("demo_captions.json")
TOLERANCE: Final = 2.0
"""How many times as much as on the CPU bf16 may shift a lead: a GPU adds in another order."""


class CpuCaption(msgspec.Struct, frozen=True):
    """The tokens of a caption as text, its end included, and the lead of each (in logits)."""

    tokens: tuple[str, ...]
    leads: tuple[float, ...]

    @property
    def text(self) -> str:
        """The caption."""
        return "".join(self.tokens).strip()


class CpuCaptions(msgspec.Struct, frozen=True):
    """``shift``: by how much bf16 changed a lead at most, on the CPU."""

    shift: float
    captions: dict[str, CpuCaption]

    def explains(self, file: str, caption: str) -> bool:
        """Whether bf16 may turn the CPU's caption into this one: where they part, the lead is
        small."""
        ours = self.captions[file]
        if caption == ours.text:
            return True
        said = ""
        for token, lead in zip(ours.tokens, ours.leads, strict=True):
            said += token
            if not token or not caption.startswith(said.strip()):
                return lead <= TOLERANCE * self.shift
        return False


def read_cpu_captions() -> CpuCaptions:
    """The file that the project carries."""
    return msgspec.json.decode(PATH.read_bytes(), type=CpuCaptions)


def compared(cpu: CpuCaptions, made: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """How captions of the sample compare with the CPU's, as figures; and the problems."""
    equal = [file for file, caption in cpu.captions.items() if made.get(file) == caption.text]
    others = {file: text for file, text in made.items() if file in cpu.captions.keys() - set(equal)}
    explained = [file for file, text in others.items() if cpu.explains(file, text)]
    unlike = {
        file: {"cpu": cpu.captions[file].text, "here": text}
        for file, text in others.items()
        if file not in explained
    }
    missing = cpu.captions.keys() - made.keys()
    figures = {
        "captions": len(cpu.captions),
        "equal_to_cpu": len(equal),
        "explained_by_bf16": len(explained),
        "unlike_cpu": unlike,
    }
    problems = [f"{len(missing)} captions are missing"] if missing else []
    if unlike:
        problems.append(f"{len(unlike)} captions differ from the CPU's more than bf16 explains")
    return figures, problems


def make_cpu_captions() -> CpuCaptions:
    """Ask transformers for the captions of the sample, in float32, then for the same in bf16."""
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    from vllm_caption.captions.prompt import load_prompt, render
    from vllm_caption.config import ImageConfig, RunConfig
    from vllm_caption.demo import MODEL_DIR, SAMPLE_DIR
    from vllm_caption.images.decode import prepare_image
    from vllm_caption.items import Document, Item

    config = ImageConfig()
    bounds = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    processor = AutoProcessor.from_pretrained(MODEL_DIR, size=bounds)
    load = Qwen2_5_VLForConditionalGeneration.from_pretrained
    full, half = (load(MODEL_DIR, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    asked = render(load_prompt(RunConfig().prompt), Item("a.png", Document("d"), 0, "SvgElement"))
    content = [{"type": "image"}, {"type": "text", "text": asked.user}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )

    def leads(model: Any, inputs: Any, tokens: Any) -> Any:
        pixels = inputs["pixel_values"].to(model.dtype)
        kinds = (tokens == model.config.image_token_id).long()
        grid = inputs["image_grid_thw"]
        logits = model(
            input_ids=tokens, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds
        ).logits[0, inputs["input_ids"].shape[1] - 1 : -1]
        chosen = tokens[0, inputs["input_ids"].shape[1] :, None]
        best = logits.float().gather(1, chosen)
        others = logits.float().scatter(1, chosen, float("-inf"))
        return (best - others.max(1, keepdim=True).values)[:, 0]

    captions, shift = {}, 0.0
    for file in json.loads((SAMPLE_DIR / "labels.json").read_text("utf-8")):
        image = prepare_image(str(SAMPLE_DIR / "raw"), file, config).image
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        with torch.no_grad():
            tokens = full.generate(**inputs, do_sample=False, max_new_tokens=100)
            ours, theirs = (leads(model, inputs, tokens) for model in (full, half))
        shift = max(shift, float((ours - theirs).abs().max()))
        words = [
            processor.decode([token], skip_special_tokens=True)
            for token in tokens[0, inputs["input_ids"].shape[1] :]
        ]
        captions[file] = CpuCaption(tuple(words), tuple(round(float(lead), 3) for lead in ours))
    return CpuCaptions(round(shift, 3), captions)


if __name__ == "__main__":
    PATH.write_bytes(msgspec.json.format(msgspec.json.encode(make_cpu_captions()), indent=0))
