"""The colours of the report's page, light and dark: WCAG AA, computed from its style sheet."""

from __future__ import annotations

import re

import pytest
from support.contrast import Colour, contrast

from vllm_caption.commands.report.page import FOLDER

STYLE = re.sub(r"/\*.*?\*/", "", (FOLDER / "page.css").read_text("utf-8"), flags=re.S)
TEXT = ("ink", "soft", "accent", "bad", "warn")
SURFACES = ("back", "card")
SHOWN = ("edge", "accent", "bad", "warn", "c0", "c1", "soft")
"""Borders of controls, focus outlines, stripes of cards, and lines of charts."""
PAIRS = [
    *((text, surface, 4.5) for text in TEXT for surface in SURFACES),
    *((shown, surface, 3.0) for shown in SHOWN for surface in SURFACES),
    ("back", "accent", 4.5),  # the letter of a folder
    *(("ink", behind, 4.5) for behind in ("add", "cut", "hit")),
    ("soft", "line", 4.5),  # in place of a picture that does not load
]
DECORATION = {"line"}
"""Grids and frames that need not be visible."""


def palettes() -> dict[str, dict[str, Colour]]:
    """Light, dark by system setting, and dark by the button."""
    found = [
        {name: rgb(value) for name, value in re.findall(r"--([\w-]+): (#\w+)", block)}
        for block in re.findall(r"\{([^{}]*--back:[^{}]*)\}", STYLE)
    ]
    return dict(zip(("light", "system", "button"), found, strict=True))


def rgb(value: str) -> Colour:
    digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


@pytest.mark.parametrize("theme", ["light", "system"])
@pytest.mark.parametrize(("front", "behind", "least"), PAIRS)
def test_contrast_is_that_of_wcag_aa(theme: str, front: str, behind: str, least: float) -> None:
    colours = palettes()[theme]
    assert contrast(colours[front], colours[behind]) >= least


def test_both_ways_to_the_dark_theme_give_the_same_colours() -> None:
    assert palettes()["system"] == palettes()["button"]
    assert palettes()["system"].keys() == palettes()["light"].keys()


def used(properties: str) -> set[str]:
    """The values that rules of the style sheet give these properties, themes apart."""
    rules = re.sub(r"\{[^{}]*--back:[^{}]*\}", "", STYLE)
    return set(re.findall(rf"(?:^|[\s;{{])(?:{properties}): ([^;}}]+)", rules))


def named(values: set[str]) -> set[str]:
    return {name for value in values for name in re.findall(r"var\(--([\w-]+)\)", value)}


def test_every_colour_in_use_is_a_name_whose_contrast_is_computed() -> None:
    text, behind, lines = used("color"), used("background"), used("border.*?|outline|stroke|fill")
    assert named(text) <= {front for front, _, least in PAIRS if least == 4.5} | {"c0", "c1"}
    assert named(behind) <= {behind for _, behind, _ in PAIRS}
    assert named(lines) <= {*SHOWN, *DECORATION}
    assert {value for value in text if "var(" not in value} <= {"inherit"}
    assert {value for value in behind if "var(" not in value} <= {"none", "rgb(0 0 0 / .55)"}
