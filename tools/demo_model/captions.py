"""What a drawn scene is called: its words and its captions in four styles.

Invariants: a caption is a pure function of the scene and of the style; two scenes that differ
in a word of the brief style differ in the other styles too; no caption names "the image".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

Style = Literal["shape-brief", "shape-detailed", "shape-zh", "shape-fields"]
STYLES: tuple[Style, ...] = ("shape-brief", "shape-detailed", "shape-zh", "shape-fields")
FIELDS: tuple[str, ...] = ("size", "fill", "colour", "shape", "position")
"""The words that `shape-fields` asks for, in its order."""

SHAPES: dict[str, str] = {
    "circle": "圆形",
    "oval": "椭圆形",
    "square": "正方形",
    "rectangle": "长方形",
    "triangle": "三角形",
    "star": "五角星",
    "heart": "心形",
    "arrow": "箭头",
    "ring": "圆环",
    "cross": "十字形",
    "diamond": "菱形",
    "hexagon": "六边形",
    "crescent": "月牙形",
    "wave": "波浪线",
    "line": "直线",
}
COLOURS: dict[str, str] = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "cyan": "青色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
    "black": "黑色",
    "white": "白色",
    "gray": "灰色",
}
FILLS: dict[str, str] = {"solid": "实心", "outlined": "描边"}
SIZES: dict[str, str] = {"small": "小号", "large": "大号"}
POSITIONS: dict[str, str] = {
    "at the top left": "左上角",
    "at the top": "顶部",
    "at the top right": "右上角",
    "at the left": "左侧",
    "in the center": "中央",
    "at the right": "右侧",
    "at the bottom left": "左下角",
    "at the bottom": "底部",
    "at the bottom right": "右下角",
}
"""Row by row, so that the index is 3 * row + column."""
CANVASES: tuple[str, ...] = ("square", "wide", "tall")
BACKDROPS: tuple[str, ...] = ("white", "black", "gray", "navy")


@dataclass(frozen=True)
class Words:
    """What can be said about a scene. Sentences give the position of small shapes only; a large one
    is in the center."""

    shape: str
    colour: str
    fill: str
    size: str
    position: str
    canvas: str
    backdrop: str


def caption(words: Words, style: Style) -> str:
    """The answer for a scene in one style. For `shape-fields`, as the JSON that vLLM lets a model
    write: without blanks."""
    if style == "shape-fields":
        return json.dumps({name: getattr(words, name) for name in FIELDS}, separators=(",", ":"))
    if style == "shape-zh":
        return _chinese(words)
    if style == "shape-detailed":
        return _detailed(words)
    return _brief(words)


def _brief(words: Words) -> str:
    head = f"{words.size.capitalize()} {words.fill} {words.colour} {words.shape}"
    return f"{head} {words.position}." if words.size == "small" else f"{head}."


def _detailed(words: Words) -> str:
    head = f"A {words.size} {words.fill} {words.colour} {words.shape}"
    place = f"sits {words.position} of" if words.size == "small" else "fills most of"
    body = "an even surface" if words.fill == "solid" else "an even outline and an empty inside"
    return (
        f"{head} {place} a {words.canvas} {words.backdrop} canvas. "
        f"It has {body}, and nothing else is drawn."
    )


def _chinese(words: Words) -> str:
    place = f"{POSITIONS[words.position]}的" if words.size == "small" else ""
    kind = f"{SIZES[words.size]}{FILLS[words.fill]}{COLOURS[words.colour]}{SHAPES[words.shape]}"
    return f"{place}{kind}。"
