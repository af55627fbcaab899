"""The text that goes with each image, as the job renders it."""

from __future__ import annotations

from functools import lru_cache

from vllm_caption.captions.prompt import load_prompt

load = lru_cache(load_prompt)


def question(prompt: str, file: str) -> str:
    """The user message; the benchmark's prompts know no variable but ``file``."""
    return load(prompt).user.replace("{{ file }}", file).strip()


def messages(prompt: str, file: str, image: dict[str, object]) -> list[dict[str, object]]:
    """One conversation; ``image`` is the part that stands for the pixels."""
    return [{"role": "user", "content": [image, {"type": "text", "text": question(prompt, file)}]}]
