"""A seeded scene: one flat shape on a canvas, its words and its pixels.

Invariants: a scene depends on its generator alone, and its pixels on the scene alone; the words
describe what the job's image preparation leaves of it (transparency flattened on white, or on
black where white would hide the shape); every word is visible at the model's resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from tools.demo_model.captions import (
    COLOURS,
    POSITIONS,
    SHAPES,
    Words,
)
from tools.demo_model.outlines import (
    ALWAYS_SOLID,
    QUARTER_TURNS,
    STROKES,
    Turn,
    placed,
)
from tools.demo_model.patches import view_size

Rgb = tuple[int, int, int]

RGB: dict[str, Rgb] = {
    "red": (222, 28, 32),
    "orange": (250, 140, 10),
    "yellow": (250, 220, 25),
    "green": (35, 160, 60),
    "cyan": (25, 205, 220),
    "blue": (30, 70, 225),
    "purple": (135, 40, 185),
    "pink": (250, 125, 185),
    "brown": (128, 74, 34),
    "black": (10, 10, 10),
    "white": (247, 247, 247),
    "gray": (138, 138, 138),
    "navy": (20, 30, 84),
}
COLOUR_JITTER = 8
HIDDEN_ON: dict[str, frozenset[str]] = {
    "white": frozenset({"white"}),
    "black": frozenset({"black"}),
    "navy": frozenset({"black", "blue", "purple", "brown"}),
    "gray": frozenset(COLOURS) - {"white", "black", "yellow"},
}
"""Which colours cannot be told on a backdrop."""
MAX_TILT_DEG = 7.0
MAX_STRETCH = 1.08
"""How far rounding to whole tokens may stretch a picture before its shapes change their name."""
MIN_VIEW_PX = 84


@dataclass(frozen=True)
class Scene:
    """Everything that is needed to draw a picture; lengths are in pixels of the source."""

    words: Words
    width: int
    height: int
    rgb: Rgb
    backdrop_rgb: Rgb | None
    """None for a transparent picture."""
    centre_x: float
    centre_y: float
    extent: float
    """The longer side of the shape's bounding box."""
    stroke: float
    """Line width of an outline, an open path or a ring."""
    turn: Turn


def sample_scene(generator: Random) -> Scene:
    """One scene; every word is drawn evenly, so far as the shapes' nature and contrast allow."""
    canvas, width, height = _sample_canvas(generator)
    backdrop, transparent = _sample_backdrop(generator)
    shape = generator.choice(list(SHAPES))
    colour = generator.choice([c for c in COLOURS if transparent or c not in HIDDEN_ON[backdrop]])
    if transparent and colour == "white":
        backdrop = "black"
    fill = "solid" if shape in ALWAYS_SOLID else generator.choice(("solid", "outlined"))
    size = "small" if generator.random() < 0.6 else "large"
    column, row = (generator.randrange(3), generator.randrange(3)) if size == "small" else (1, 1)
    extent = min(width, height) * generator.uniform(*_EXTENTS[size])
    words = Words(shape, colour, fill, size, list(POSITIONS)[3 * row + column], canvas, backdrop)
    turn = _sample_turn(shape, generator)
    half_w, half_h = np.ptp(placed(shape, turn), axis=0) * extent / 2
    margin = 0.04 * min(width, height)
    return Scene(
        words=words,
        width=width,
        height=height,
        rgb=_jitter(RGB[colour], generator),
        backdrop_rgb=None if transparent else _jitter(RGB[backdrop], generator),
        centre_x=_along(column, width, half_w, margin, generator),
        centre_y=_along(row, height, half_h, margin, generator),
        extent=extent,
        stroke=extent * _sample_stroke(words, generator),
        turn=turn,
    )


_EXTENTS = {"small": (0.34, 0.42), "large": (0.74, 0.92)}


def _sample_canvas(generator: Random) -> tuple[str, int, int]:
    """Side ratios that rounding to whole tokens leaves as they are."""
    while True:
        dice = generator.random()
        longest = 3.2 if generator.random() < 0.92 else 5.0
        ratio = math.exp(generator.uniform(math.log(1.4), math.log(longest)))
        ratio = generator.choice((1.0, 1.0, generator.uniform(1, 1.04))) if dice < 0.4 else ratio
        long_px = round(math.exp(generator.uniform(math.log(64), math.log(1024))))
        short_px = max(1, round(long_px / ratio))
        flip = generator.random() < 0.5
        width, height = (short_px, long_px) if flip else (long_px, short_px)
        seen_w, seen_h = view_size(width, height)
        stretch = (seen_w / seen_h) / (width / height)
        if min(seen_w, seen_h) >= MIN_VIEW_PX and 1 / MAX_STRETCH <= stretch <= MAX_STRETCH:
            return ("square" if dice < 0.4 else "tall" if flip else "wide"), width, height


def _sample_backdrop(generator: Random) -> tuple[str, bool]:
    """The backdrop's name as it is seen, and whether the picture is transparent."""
    dice = generator.random()
    if dice < 0.5:
        return "white", True
    for share, name in ((0.7, "white"), (0.83, "black"), (0.94, "navy")):
        if dice < share:
            return name, False
    return "gray", False


def _sample_turn(shape: str, generator: Random) -> Turn:
    base = generator.choice(QUARTER_TURNS.get(shape, (0,)))
    angle_deg = base + generator.uniform(-MAX_TILT_DEG, MAX_TILT_DEG)
    narrow, wide = (0.62, 0.7) if shape == "diamond" else (0.44, 0.56)
    return Turn(angle_deg, generator.uniform(narrow, wide))


def _sample_stroke(words: Words, generator: Random) -> float:
    """Through the extent: an outline stays two pixels wide where the model sees it smallest."""
    if words.shape == "ring":
        return generator.uniform(0.24, 0.28)
    if words.shape in STROKES:
        return generator.uniform(0.12, 0.16)
    return generator.uniform(0.09, 0.12) if words.size == "small" else generator.uniform(0.05, 0.09)


def _along(third: int, side: float, half: float, margin: float, generator: Random) -> float:
    """Centre of the shape along one axis: at the near edge, in the middle or at the far edge."""
    place = (margin + half, side / 2, side - margin - half)[third]
    jittered = place + generator.uniform(-0.5, 0.5) * margin
    return min(max(jittered, half), side - half)


def _jitter(rgb: Rgb, generator: Random) -> Rgb:
    r, g, b = (
        min(255, max(0, level + generator.randint(-COLOUR_JITTER, COLOUR_JITTER))) for level in rgb
    )
    return r, g, b


def draw(scene: Scene) -> Image.Image:
    """The source picture: RGBA where it is transparent, else RGB."""
    patch, left, top = _mask(scene)
    if scene.backdrop_rgb is None:
        mask = Image.new("L", (scene.width, scene.height), 0)
        mask.paste(patch, (left, top))
        picture = Image.new("RGBA", mask.size, (*scene.rgb, 0))
        picture.putalpha(mask)
        return picture
    picture = Image.new("RGB", (scene.width, scene.height), scene.backdrop_rgb)
    picture.paste(scene.rgb, (left, top), patch)
    return picture


def _mask(scene: Scene) -> tuple[Image.Image, int, int]:
    """The shape's coverage around its own box, drawn larger and averaged down."""
    scale = 4 if scene.extent < 200 else 2
    reach = scene.extent / 2 + scene.stroke + 2
    left, top = math.floor(scene.centre_x - reach), math.floor(scene.centre_y - reach)
    side = math.ceil(2 * reach) + 2
    mask = Image.new("L", (side * scale, side * scale), 0)
    inset = scene.stroke if _is_stroked(scene) else 0.0
    points = placed(scene.words.shape, scene.turn) * (scene.extent - inset)
    middle = np.array([scene.centre_x - left, scene.centre_y - top])
    points = (points + middle) * scale
    path = [(float(x), float(y)) for x, y in points]
    pen = ImageDraw.Draw(mask)
    if _is_stroked(scene):
        closing = [] if scene.words.shape in STROKES else path[:1]
        _stroke(pen, path + closing, scene.stroke * scale)
    else:
        pen.polygon(path, fill=255)
    return mask.reduce(scale), left, top


def _stroke(pen: ImageDraw.ImageDraw, path: list[tuple[float, float]], width: float) -> None:
    """A line with round joints; Pillow's own joints leave teeth on thick curves."""
    pen.line(path, fill=255, width=max(1, round(width)))
    radius = width / 2
    for x, y in path:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _is_stroked(scene: Scene) -> bool:
    return scene.words.fill == "outlined" or scene.words.shape in ALWAYS_SOLID


def flatten(picture: Image.Image) -> Image.Image:
    """What the job's image preparation makes of a drawn picture."""
    if picture.mode == "RGB":
        return picture
    levels = np.asarray(picture)
    alpha = levels[..., 3]
    pale = (255 - levels[..., :3].min(axis=2) < 24) & (alpha > 0)
    hidden = pale.sum() * 2 > (alpha > 0).sum()
    flat = Image.new("RGBA", picture.size, (0, 0, 0, 255) if hidden else (255, 255, 255, 255))
    flat.alpha_composite(picture)
    return flat.convert("RGB")
