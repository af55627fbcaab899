"""What a run will ask its model, known before it has read an item: for the check at its start."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_caption.captions.prompt import NO_OPTIONS, Prompt, RenderedPrompt, RequestOptions, render
from vllm_caption.items import Document, Item


@dataclass(frozen=True, slots=True)
class Question:
    """The texts of a prompt for an element without metadata, and for one with the longest, and what
    goes with each of its requests."""

    prompt_name: str
    plain: RenderedPrompt
    longest: RenderedPrompt
    options: RequestOptions = NO_OPTIONS


def make_question(prompt: Prompt, longest: Item) -> Question:
    """``longest``: an item whose values are as long as an input can make them."""
    plain = Item("a.png", Document("a"), 0, longest.element_type)
    return Question(prompt.name, render(prompt, plain), render(prompt, longest), prompt.options)
