"""Checks that a caption is written in the script of its prompt's ``language``.

Only scripts are compared: English and French are the same here, English and Russian are not. Words
are those of `rules.words`; text in quotation marks is lettering and may be in any script, and so
may a few words outside them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

MIN_SHARE: Final = 1 / 3
"""At least this share of the words that have a script must be in one of the language."""
MAX_KANA_SHARE: Final = 1 / 5
"""A Chinese caption with a larger share of kana is Japanese."""
MIN_HAN_FOR_KANA: Final = 8
"""A caption with this many Chinese characters and no kana is not Japanese."""

_BY_SCRIPTS: Final = {
    ("LATIN",): (
        "af az bs ca cs cy da de en es et eu fi fil fr ga gl hr hu id is it jv lt lv ms mt nb nl nn"
        " no pl pt ro sk sl so sq sv sw tl tr uz vi"
    ),
    ("CJK",): "yue zh",
    ("CJK", "HIRAGANA", "KATAKANA"): "ja",
    ("HANGUL",): "ko",
    ("CYRILLIC",): "be bg kk ky mk mn ru tg uk",
    ("CYRILLIC", "LATIN"): "sr",
    ("ARABIC",): "ar fa ps ur",
    ("HEBREW",): "he yi",
    ("GREEK",): "el",
    ("THAI",): "th",
    ("DEVANAGARI",): "hi mr ne",
    ("BENGALI",): "bn",
    ("GUJARATI",): "gu",
    ("GURMUKHI",): "pa",
    ("KANNADA",): "kn",
    ("MALAYALAM",): "ml",
    ("TAMIL",): "ta",
    ("TELUGU",): "te",
    ("SINHALA",): "si",
    ("ARMENIAN",): "hy",
    ("GEORGIAN",): "ka",
    ("ETHIOPIC",): "am",
    ("KHMER",): "km",
    ("LAO",): "lo",
    ("MYANMAR",): "my",
}
SCRIPTS: Final = {
    code: frozenset(scripts) for scripts, codes in _BY_SCRIPTS.items() for code in codes.split()
}
"""The scripts of each language, by ISO 639 code, as Unicode names them."""
_KNOWN: Final = frozenset().union(*SCRIPTS.values())
_QUOTES: Final = re.compile("[“\"„«‘「『《']")
_QUOTED: Final = re.compile(
    r"“[^”]*”|\"[^\"]*\"|„[^“”]*[“”]|«[^»]*»|‘[^’]*’|「[^」]*」|『[^』]*』|《[^》]*》|(?<!\w)'[^']*'(?!\w)"
)


def language_code(text: str) -> str:
    """The language of a tag: `zh` for `zh-CN`, `pt` for `pt_BR`."""
    return re.split("[-_]", text.strip().casefold())[0]


def without_quotations(caption: str) -> str:
    """The caption without quoted lettering."""
    return _QUOTED.sub(" ", caption) if _QUOTES.search(caption) else caption


def in_other_script(words: Sequence[str], language: str) -> bool:
    """Whether most words are in a script that the language is not written in."""
    found = Counter(script for word in words if (script := _script(word)))
    total, own = found.total(), SCRIPTS[language]
    if not total:
        return False
    if sum(found[script] for script in own) < MIN_SHARE * total:
        return True
    kana = found["HIRAGANA"] + found["KATAKANA"]
    if language == "ja":
        return not kana and found["CJK"] >= MIN_HAN_FOR_KANA
    return own == {"CJK"} and kana > MAX_KANA_SHARE * total


def _script(word: str) -> str | None:
    """The script of the first letter that has one."""
    return next((script for char in word if (script := _script_of(char))), None)


@lru_cache(maxsize=4096)
def _script_of(char: str) -> str | None:
    if not char.isalpha():
        return None
    name = unicodedata.name(unicodedata.normalize("NFKC", char)[0], "")
    first = name.partition(" ")[0]
    return "CJK" if first == "IDEOGRAPHIC" else first if first in _KNOWN else None
