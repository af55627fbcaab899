"""Text around a caption that is not part of it: a preface, a code fence, a tail of punctuation.

Pure functions of text. Invariant: quoted lettering never counts as one of these.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

TAIL: Final = 5
"""A caption that ends in this many of the same punctuation mark has a tail."""
DOTS_IN_TAIL: Final = 7
"""The same for dots: an ellipsis has six in Chinese, three elsewhere."""
_TAIL_CHARACTERS: Final = frozenset(".,;:!?…。，、；：！？\"'”’)）")
_YES: Final = (
    r"(?:sure(?:\ thing)?|certainly|of\ course|absolutely|okay|ok|alright|no\ problem|got\ it"
    r"|great\ question)"
)
_THING: Final = (
    r"(?:description|caption|summary|answer|response|alt(?:ernative)?(?:\ |-)text|analysis)"
)
_PREFACES: Final = re.compile(
    rf"""
    {_YES}[!.,:;]+\s*(?:here|i|i'[a-z]+|let|below)\b
    |{_YES}!+\s*(?:this|the|that|$)
    |(?:here(?:'s|\ is|\ are)|below\ is|this\ is|the\ following\ is)\ (?:\w+\ ){{0,4}}{_THING}\b
        (?=\s*(?:[:.,]|of\b|for\b|in\b|based\b|that\b|with\b))
    |(?:(?:image|short|brief|concise|detailed|final)\ )?{_THING}\s*[:：\n]
    |assistant\s*(?::|\n|$)|(?:user|human|system|model)\ ?\n
    |\[/?inst\]|</?s>
    |(?:好的|好|当然(?:可以)?|當然(?:可以)?|没问题|沒問題)[，,。！!：:]\s*(?:这|這|以下|下面|我|根据|根據)
    |(?:以下|下面)(?:是|為|为)[^。：:\n]{{0,24}}(?:描述|说明|說明|标题|標題|回答|答案)\s*[：:\n]
    |(?:描述|说明|說明|标题|標題|回答|答案)\s*[：:]
    |(?:はい|もちろん(?:です)?|承知しました|かしこまりました)[、。！!]\s*(?:以下|こちら|この)
    |以下(?:は|に)[^。：:\n]{{0,24}}(?:説明|キャプション|回答)
    |(?:물론입니다|물론이죠|네|알겠습니다)[,.!]\s*(?:다음|여기|아래|이)
    |(?:natürlich|gerne?)[!,.]\s*(?:hier|ich)\b|hier\ ist\ (?:\w+\ ){{0,3}}beschreibung\b
    |(?:bien\ sûr|d'accord)[!,.\ ]+(?:voici|je)\b|voici\ (?:\w+\ ){{0,3}}description\b
    |(?:claro|por\ supuesto)[!,.]\s*(?:aquí|esta|este|aqui)\b
    |aquí\ (?:está|tienes)\ (?:\w+\ ){{0,3}}descripción\b
    |(?:конечно|хорошо)[!,.]\s*(?:вот|это)\b|вот\ (?:\w+\ ){{0,3}}описание\b
    """,
    re.VERBOSE,
)
_TEMPLATE: Final = re.compile(r"\baddCriterion\b|<\|[a-z_]+\|>")
"""Pieces of a chat template, anywhere in the text."""
_SIGNS: Final = ("addCriterion", "<|")
"""Every such piece contains one of these."""
_BLANKS: Final = re.compile(r" [^\S\n]+|[^\S\n ][^\S\n]*")
"""Blanks in a line that are not a single space."""
_FENCE: Final = re.compile(r"^[ \t]*```|```\s*$", re.MULTILINE)
_EMPHASIS: Final = re.compile(r"\*\*|__")
_MARKUP: Final = "*_#> \t\n"
INVISIBLE: Final = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_MAX_CHARS: Final = 400
"""How much of a caption is searched: a preface is short."""


def has_preface(caption: str) -> bool:
    """Whether a caption starts with words about the answer ("Sure! Here is"), a label or the name
    of a role, or contains a piece of a chat template."""
    plain = caption[:_MAX_CHARS]
    if not plain.isascii():
        plain = INVISIBLE.sub("", unicodedata.normalize("NFKC", plain)).replace("’", "'")
    plain = plain.casefold()
    plain = _BLANKS.sub(" ", plain)
    start = _EMPHASIS.sub("", plain).lstrip(_MARKUP)
    if _PREFACES.match(start):
        return True
    return any(map(caption.__contains__, _SIGNS)) and bool(_TEMPLATE.search(caption))


def has_fence(caption: str) -> bool:
    """Whether a line starts, or the caption ends, with the fence of a code block."""
    return "```" in caption and _FENCE.search(caption) is not None


def has_tail(caption: str) -> bool:
    """Whether a caption ends in a row of the same punctuation mark."""
    last = caption[-1:]
    if last not in _TAIL_CHARACTERS:
        return False
    length = len(caption) - len(caption.rstrip(last))
    return length >= (DOTS_IN_TAIL if last == "." else TAIL)
