"""What a run will ask its model, known before any item is read: for the check at the start."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_caption.captions.prompt import NO_OPTIONS, Prompt, RenderedPrompt, RequestOptions, render
from vllm_caption.items import Document, Item


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt rendered for an element without metadata and for one with the longest metadata, and
    the options of its requests."""

    prompt_name: str
    plain: RenderedPrompt
    longest: RenderedPrompt
    options: RequestOptions = NO_OPTIONS


def make_question(prompt: Prompt, longest: Item) -> Question:
    """``longest``: an item with the longest values that an input can have."""
    plain = Item("a.png", Document("a"), 0, longest.element_type)
    return Question(prompt.name, render(prompt, plain), render(prompt, longest), prompt.options)
