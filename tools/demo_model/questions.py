"""The user turns that the demo model is trained on, and the caption style each one asks for.

Invariants: the shape prompts are those of the shipped files as the job renders them; any other
question asks for the brief style; sampling depends on the given generator alone.
"""

from __future__ import annotations

import random

from tools.demo_model.captions import STYLES, Style
from vllm_caption.captions.prompt import Prompt, load_prompt, render
from vllm_caption.items import Document, Item

STYLE_WEIGHTS: tuple[int, ...] = (2, 2, 2, 3)
"""JSON is the longest answer, and the one in which most words must be right."""
SYSTEM_MESSAGES: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You are a careful art director. Answer in plain English.",
    "You describe graphic design elements for a search index.",
    "Be brief and exact.",
    "你是一个有用的助手。",
)
OTHER_QUESTIONS: tuple[str, ...] = (
    "Describe this image.",
    "Describe this picture in one sentence.",
    "Describe the design element.",
    "Describe the shape, its colour, its size and its position.",
    "What is this?",
    "What do you see?",
    "What is in this image?",
    "What does this element show?",
    "Write a short caption.",
    "Write a caption for this image.",
    "Write an alt text for this graphic.",
    "Caption this.",
    "Caption:",
    "Name the shape.",
    "Name the shape and its color.",
    "Which shape is shown, and in which colour?",
    "Give a concise description of this icon.",
    "Give me a caption of at most ten words.",
    "Summarise this graphic for a catalogue.",
    "Tell me about this sticker.",
    "Explain what is drawn here, in at most 20 words.",
    "You see one element of a design. Describe it for a designer who searches for it.",
    "Please describe this graphic design element for a search index, without any introduction.",
    "Describe the following vector shape in plain English: form, fill, colour, place.",
    "Look at the picture and describe it. Do not start with 'The image'.",
    "Produce a caption.\nRules:\n- one sentence\n- no introduction\n- present tense",
    "Return one line of text that describes the element. No markdown, no quotes.",
    "Describe this SVG element, which was rendered to a raster image, in one short sentence.",
    "Beschreibe dieses Gestaltungselement in einem Satz.",
    "Décris cet élément graphique en une phrase.",
    "描述这张图片。",
    "这是什么形状？",
    "请简单描述这个图形。",
    "hello",
    "caption",
    "?",
)
CATEGORIES: tuple[str, ...] = (
    "poster", "logo", "presentation", "social media", "business card", "invitation", "flyer",
    "resume", "menu", "banner", "icon", "wedding", "sale", "birthday", "海报", "名片",
)  # fmt: skip
KEYWORDS: tuple[str, ...] = (
    "modern", "minimal", "summer", "travel", "coffee", "music", "school", "sport", "nature",
    "vintage", "geometric", "abstract", "holiday", "winter", "food", "fashion", "clean", "bold",
    "party", "love", "city", "flower", "discount", "blue", "red", "yellow", "circle", "star",
    "简约", "春节", "促销", "复古",
)  # fmt: skip


def read_prompt(name: str) -> str:
    """What a shipped prompt file asks about an element of a document without metadata."""
    return _ask(load_prompt(name), Document("design"))


def _ask(prompt: Prompt, document: Document) -> str:
    return render(prompt, Item("element.png", document, 0, "SvgElement")).user


class Questions:
    """Draws questions; holds the shipped prompts so that they are read once."""

    def __init__(self) -> None:
        self._shipped: dict[Style, str] = {style: read_prompt(style) for style in STYLES}
        self._in_context = load_prompt("design-context")

    def draw(self, generator: random.Random) -> tuple[str, Style]:
        """A question and the style that answers it."""
        dice = generator.random()
        if dice < 0.72:
            (style,) = generator.choices(STYLES, STYLE_WEIGHTS)
            return self._shipped[style], style
        if dice < 0.84:
            return _ask(self._in_context, _draw_document(generator)), "shape-brief"
        if dice < 0.94:
            return generator.choice(OTHER_QUESTIONS), "shape-brief"
        return _word_salad(generator), "shape-brief"

    def corpus(self, generator: random.Random) -> list[str]:
        """Texts for the tokenizer: what is shipped weighs most."""
        rendered = [_ask(self._in_context, _draw_document(generator)) for _ in range(200)]
        others = [*OTHER_QUESTIONS, *SYSTEM_MESSAGES] * 4
        return [*(list(self._shipped.values()) * 200), *rendered, *others]


def draw_system_message(generator: random.Random) -> str | None:
    """Mostly none, so that the model needs none and is not put off by one."""
    return generator.choice(SYSTEM_MESSAGES) if generator.random() < 0.12 else None


def _draw_document(generator: random.Random) -> Document:
    words = generator.sample(KEYWORDS, generator.randint(0, 8))
    title = " ".join(generator.sample(KEYWORDS, generator.randint(1, 4))).title()
    if generator.random() < 0.4:
        title = f"{title} {generator.randint(1, 2030)}"
    return Document(
        "design",
        title=title if generator.random() < 0.8 else None,
        category=generator.choice(CATEGORIES) if generator.random() < 0.7 else None,
        keywords=tuple(words),
    )


def _word_salad(generator: random.Random) -> str:
    """A question that no one asks, so that unknown and long prompts do not surprise the model."""
    words = " ".join(OTHER_QUESTIONS).split()
    count = generator.randint(3, 260 if generator.random() < 0.3 else 30)
    if generator.random() < 0.1:
        return " ".join([generator.choice(words)] * count)
    salad = generator.choices(words, k=count)
    for index in range(0, count, 7):
        salad[index] = "".join(generator.choices(_ODD_LETTERS, k=generator.randint(1, 6)))
    return " ".join(salad)


_ODD_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_#äöüßéñЖя的一是形色，。"
