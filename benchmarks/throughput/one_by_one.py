"""f. transformers `generate`, image by image, as the old scripts did."""

from __future__ import annotations

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.throughput.clock import Record
from benchmarks.throughput.outcome import Task
from benchmarks.throughput.questions import messages
from vllm_caption.config import ImageConfig
from vllm_caption.images.decode import prepare_image


def run(task: Task, record: Record) -> None:
    """Process, generate, decode, write; torch uses as many cores as it wants."""
    config = ImageConfig()
    processor = AutoProcessor.from_pretrained(task.model)
    size = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    model = AutoModelForImageTextToText.from_pretrained(task.model, dtype=torch.float32).eval()
    if task.ignore_eos:
        model.generation_config.eos_token_id = None
    chat = messages(task.prompt, "", {"type": "image"})
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    record.ready()
    for file in task.files:
        image = prepare_image(task.images_root, file, config).image
        inputs = processor(text=[text], images=[image], size=size, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=task.max_tokens, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        (caption,) = processor.batch_decode(new, skip_special_tokens=True)
        record.write(file, caption)
