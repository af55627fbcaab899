"""Checks a caption: the rules of its prompt, and the ways in which a model fails to describe.

Pure functions of text.

Invariants: flags have a fixed order, worst first; a rule that a prompt does not set is never
broken; honest short captions ("very very large", "red, green and blue dots") are never flagged.

A *word* is a run of characters without white space, or one character of Chinese or Japanese;
punctuation alone is not a word.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, Protocol, Self

from vllm_caption.captions.form import INVISIBLE, has_fence, has_preface, has_tail
from vllm_caption.captions.reasoning import answer_of
from vllm_caption.captions.scripts import in_other_script, without_quotations
from vllm_caption.errors import CAPTION_FLAGS, CaptionFlag

Verdict = Literal["accept", "retry_or_flag", "retry_or_fail"]

LOOP_REPEATS: Final = ((12, 2), (4, 3), (2, 4), (1, 5))
"""(words in a block, repeats in a row that make a loop), longest first. A long sentence is a loop
if it comes twice, a single word only if it comes five times."""
MIN_HALF_WORDS: Final = 4
MAX_BLOCK_WORDS: Final = 100
MAX_LOOP_WORDS: Final = 1000
MIN_WORDS_FOR_VARIETY: Final = 24
MIN_VARIETY: Final = 0.5
ECHO_WORDS: Final = (8, 5)
ECHO_CHARACTERS: Final = (12, 8)
"""How many words or characters of the prompt are an echo: (within a caption, as a whole caption).
"""

HAN: Final = (
    "\u3005\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Characters that are words by themselves, as the inside of a character class."""
_WIDE_PUNCTUATION: Final = (
    "\u3000-\u303f\u3040\u3097-\u309c\u30a0\u30fb"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_SPACE: Final = r"\s" + "\x0b\x1c-\x1f\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f"
_BREAKS: Final = rf"{_SPACE}{HAN}{_WIDE_PUNCTUATION}"
_WORD: Final = re.compile(rf"[{HAN}]|[^{_BREAKS}]+")
WORD_RE2: Final = (
    rf"[{HAN}]|[^{_BREAKS}]*"
    rf"(?:[^\P{{L}}{_BREAKS}]|[^\P{{N}}{_BREAKS}])[^{_BREAKS}]*"
)
"""Matches once per word of `words`. For RE2, which counts a whole column at a time: no later step
drops lone punctuation, and its ``\\s`` is ASCII only."""
_HAN_CHAR: Final = re.compile(rf"[{HAN}]")
_EDGES: Final = re.compile(r"^[\W_]+|[\W_]+$")
_LEADING: Final = re.compile(r"^[\W_]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x9f]")
_SPACE_CONTROL: Final = re.compile(r"[\x0b-\x0d\x1c-\x1f\x85]")
"""Control characters that separate words, such as a lone carriage return or a form feed."""
_LINE_BREAK: Final = re.compile(r"\s*[\n\u2028\u2029]\s*")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_OUTER: Final = "".join(c for c in map(chr, range(0x3001)) if c.isspace()) + "\u200b\ufeff"
# The same few characters over and over, for text without words: "aaaa…", "-=-=-=…".
_CHARACTER_LOOP: Final = re.compile(r"(\S)\1{11,}|(\S{2,12}?)\2{5,}")
_MIN_CHARACTER_LOOP: Final = 12

_CANNOT: Final = (
    r"(?:can't|cannot|can\ not|could\ not|couldn't|won't|don't|do\ not|unable\ to|not\ able\ to)"
)
_REFUSALS: Final = re.compile(
    rf"""
    ^(?:i(?:'m|\ am)\ (?:\w+\ )?sorry|sorry|i\ apologi[sz]e|my\ apologies|unfortunately)\W{{1,3}}
        (?:but\ |however,?\ |and\ )*i(?:'m|\ am)?\ (?:{_CANNOT}|need)
    |^i(?:'m|\ am)?\ {_CANNOT}\ (?:\w+\ )?(?:see|view|help|assist|describe|identify|provide|
        determine|process|access|analy[sz]e|fulfil|comply|open|display|generate|recogni[sz]e)
    |^as\ an?\ (?:ai|artificial|language\ model|large\ language|text-based)\b
    |^(?:我)?(?:很|非常|十分)?(?:抱歉|对不起|對不起|遗憾|遺憾)[，,。！!：:\s]*
        (?:但|我(?!们|們)|作为|作為|由于|由於|无法|無法|不能)
    |^(?:我|作[为為][^，,]{{0,12}}[，,]\s*我)(?:无法|無法|不能|没办法|沒辦法)(?:\w{{0,4}})
        (?:看|查|识别|識別|描述|提供|访问|打开|打開|分析|回答|协助|協助)
    |^作[为為](?:一个|一個|一名|一款)?\s*(?:ai|人工智能|人工智慧|语言模型|語言模型|大语言|大語言)
    |^(?:申し訳|すみません|ごめんなさい).{{0,24}}(?:できません|ありません|いたしかねます)
    |^(?:죄송|미안).{{0,24}}(?:없습니다|없어요|못합니다)
    |^(?:lo\ siento|lamentablemente)\W{{1,3}}(?:pero\ )?no\ (?:puedo|tengo)
    |^(?:je\ suis\ )?(?:désolée?|navrée?)\W{{1,3}}(?:mais\ )?je\ ne\ (?:peux|suis|vois)
    |^(?:es\ )?tut\ mir\ leid\W{{1,3}}(?:aber\ )?ich\ (?:kann|bin|habe)
    |^(?:извините|простите|к\ сожалению)\W{{1,3}}(?:но\ )?я\ не\ (?:могу|вижу)
    |^(?:desculpe|sinto\ muito)\W{{1,3}}(?:mas\ )?(?:eu\ )?não\ (?:posso|consigo|tenho)
    """,
    re.VERBOSE,
)
_REQUESTS: Final = re.compile(
    r"""
    \bplease\ (?:provide|upload|share|attach)\ (?:the|an|your)\ (?:image|picture|design)\b
    |\bno\ (?:image|picture)\ (?:was\ |is\ |has\ been\ )?(?:provided|attached|uploaded|shared)\b
    |[请請](?:您)?(?:提供|上传|上傳)(?:一张|一張|该|該|您的|具体的?)?(?:图片|圖片|图像|圖像|照片)
    """,
    re.VERBOSE,
)
_SIGNS_OF_REQUESTS: Final = ("please ", "no image ", "no picture ", "请", "請")
"""Every request for the image contains one of these."""


class Rules(Protocol):
    """What a prompt requires of its captions."""

    @property
    def max_words(self) -> int | None: ...
    @property
    def forbid_openings(self) -> tuple[str, ...]: ...
    @property
    def language(self) -> str | None: ...
    @property
    def single_line(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class CaptionRules:
    """The rules of one run. Unless ``enabled`` (see ``--no-checks``), only reasoning without an
    answer is flagged.

    ``language``: a key of `scripts.SCRIPTS`.
    """

    max_words: int | None = None
    forbid_openings: tuple[str, ...] = ()
    enabled: bool = True
    language: str | None = None
    single_line: bool = False

    @classmethod
    def from_prompt(cls, prompt: Rules, enabled: bool = True) -> Self:
        """The rules that the prompt's front matter sets."""
        return cls(
            prompt.max_words,
            prompt.forbid_openings,
            enabled,
            prompt.language,
            prompt.single_line,
        )


def judge(
    answer: str, finish_reason: str | None, rules: CaptionRules, prompt_text: str = ""
) -> tuple[str, tuple[CaptionFlag, ...]]:
    """The caption in a model's answer, as it is stored, and its flags.

    Reasoning without an answer is never a caption, whatever the rules: its text is returned, for
    messages, with the flag `reasoning`.
    """
    caption = answer_of(answer)
    if caption is None:
        flags: tuple[CaptionFlag, ...] = ("reasoning",)
        return clean_caption(answer), (*flags, "cut_off") if finish_reason == "length" else flags
    caption = clean_caption(caption, single_line=rules.single_line)
    return caption, check_caption(caption, finish_reason, rules, prompt_text)


def clean_caption(text: str, *, single_line: bool = False) -> str:
    """The caption as it is stored: no outer white space, no control characters, encodable.

    A broken last character (cut off within its bytes) is removed, too; quotes, markup and all inner
    text stay. ``single_line``: a line break and the blanks around it become one blank.
    """
    if not text.isprintable():  # most captions are one line of plain text
        text = _SPACE_CONTROL.sub(" ", text.replace("\r\n", "\n"))
        text = _LONE_SURROGATE.sub("\ufffd", _CONTROL.sub("", text))
    text = text.strip(_OUTER).rstrip(_OUTER + "\ufffd")
    return _LINE_BREAK.sub(" ", text) if single_line else text


def check_caption(
    caption: str, finish_reason: str | None, rules: CaptionRules, prompt_text: str = ""
) -> tuple[CaptionFlag, ...]:
    """The flags of a caption, worst first; none if it is fine."""
    if not rules.enabled:
        return ()
    found = words(caption)
    broken: dict[CaptionFlag, bool] = {
        "empty": not found,
        "reasoning": False,  # see `judge`
        "bad_json": False,  # see `structured.judge_answer`
        "loop": _is_loop(caption, found),
        "refusal": is_refusal(caption),
        "prompt_echo": is_echo(found, prompt_text),
        "wrong_script": _is_in_other_script(caption, found, rules.language),
        "preface": has_preface(caption),
        "code_fence": has_fence(caption),
        "punctuation_tail": has_tail(caption),
        "forbidden_opening": opens_with(caption, *rules.forbid_openings),
        "too_long": rules.max_words is not None and len(found) > rules.max_words,
        "cut_off": finish_reason == "length",
    }
    return tuple(flag for flag in CAPTION_FLAGS if broken[flag])


def _is_in_other_script(caption: str, found: list[str], language: str | None) -> bool:
    if language is None:
        return False
    own = without_quotations(caption)
    return in_other_script(found if own == caption else words(own), language)


def verdict(flags: Iterable[CaptionFlag]) -> Verdict:
    """What to do about these flags. `cut_off` alone is accepted. Any other is worth a retry; after
    the last one, an item fails if its caption is empty or a loop, if there is only reasoning, or if
    fields break their schema; otherwise its caption is flagged."""
    broken = set(flags) - {"cut_off"}
    if broken & {"empty", "reasoning", "bad_json", "loop"}:
        return "retry_or_fail"
    return "retry_or_flag" if broken else "accept"


def rank(flags: Iterable[CaptionFlag]) -> int:
    """How bad an attempt is: the worst flag decides, then the second worst. 0 without flags."""
    return sum(1 << (len(CAPTION_FLAGS) - 1 - CAPTION_FLAGS.index(flag)) for flag in set(flags))


def words(text: str) -> list[str]:
    """The words of a text, casefolded and without punctuation."""
    text = text.casefold()
    found = text.split() if text.isascii() else _WORD.findall(text)
    stripped = (word if word.isalnum() else _EDGES.sub("", word) for word in found)
    return [word for word in stripped if word]


def _is_loop(text: str, found: list[str]) -> bool:
    """Whether a block of words is repeated in a row, or the text has hardly any variety."""
    runs = (run for run in text.split() if len(run) >= _MIN_CHARACTER_LOOP)
    if any(map(_CHARACTER_LOOP.search, runs)):
        return True
    found = found[:MAX_LOOP_WORDS]
    num_again = len(found) - len(set(found))
    if not num_again:
        return False
    is_han = _is_han(found)
    longest = min(len(found) // 2, MAX_BLOCK_WORDS, num_again)
    if any(_repeats(found, size, is_han, num_again) for size in range(1, longest + 1)):
        return True
    return _said_twice(found) or _lacks_variety(found, 6 if is_han else 4)


def _is_han(found: Sequence[str]) -> bool:
    if all(map(str.isascii, found)):
        return False
    return sum(bool(_HAN_CHAR.match(word)) for word in found) * 2 > len(found)


def _repeats(found: Sequence[str], size: int, is_han: bool, num_again: int) -> bool:
    """``num_again``: how many words have come before."""
    # A Chinese word has about one and a half characters.
    size_in_words = math.ceil(size / 1.5) if is_han else size
    needed = next(times for at_least, times in LOOP_REPEATS if size_in_words >= at_least)
    if num_again < size * (needed - 1):  # as in nearly all captions
        return False
    num_equal = 0
    for word, earlier in zip(found[size:], found, strict=False):
        num_equal = num_equal + 1 if word == earlier else 0
        if num_equal >= size * (needed - 1):
            return True
    return False


def _said_twice(found: Sequence[str]) -> bool:
    half = len(found) // 2
    return half >= MIN_HALF_WORDS and found[:half] == found[half:]


def _lacks_variety(found: Sequence[str], size: int) -> bool:
    num_runs = len(found) - size + 1
    # Runs that start with different words differ, so nearly all captions need not be cut into runs.
    if len(found) < MIN_WORDS_FOR_VARIETY or len(set(found[:num_runs])) >= MIN_VARIETY * num_runs:
        return False
    return len(_runs(found, size)) < MIN_VARIETY * num_runs


def _runs(found: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(found[i : i + size]) for i in range(len(found) - size + 1)}


@lru_cache(maxsize=64)
def _prompt_runs(prompt: str, size: int) -> set[tuple[str, ...]]:
    return _runs(words(prompt), size)


def is_echo(caption_words: Sequence[str], prompt: str) -> bool:
    """Whether a caption contains a long run of the prompt's words, or is a piece of the prompt."""
    run, whole = ECHO_CHARACTERS if _is_han(caption_words) else ECHO_WORDS
    if len(caption_words) < whole:
        return False
    size = min(run, len(caption_words))
    return not _runs(caption_words, size).isdisjoint(_prompt_runs(prompt, size))


def is_refusal(caption: str) -> bool:
    """Whether the model talks about itself, or asks for the image, instead of describing it.

    Leading quotes are not ignored: "Sorry, I can't" in quotes is lettering on a design.
    """
    text = _comparable(caption).lstrip("*_#> -")
    if _REFUSALS.match(text):
        return True
    return any(map(text.__contains__, _SIGNS_OF_REQUESTS)) and bool(_REQUESTS.search(text))


def opens_with(caption: str, *openings: str) -> bool:
    """Whether a caption starts with an opening, regardless of case, leading quotes and markup.

    An opening that ends in a letter must end a word: "sure" matches "Sure, a dot", not "Surely".
    Chinese has no such limit.
    """
    wanted, text = _comparables(openings), _comparable(caption)
    texts = (text,) if text[:1].isalnum() else (text, _LEADING.sub("", text))
    return any(
        not _runs_on(opening, text[len(opening) :])
        for text in texts
        if text.startswith(wanted)
        for opening in wanted
        if text.startswith(opening)
    )


def _runs_on(opening: str, following: str) -> bool:
    """Whether the word at the end of an opening is longer in the text."""
    pair = opening[-1], following[:1]
    return all(char.isalnum() and not _HAN_CHAR.match(char) for char in pair)


@lru_cache(maxsize=16)
def _comparables(openings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(filter(None, map(_comparable, openings)))


@lru_cache(maxsize=256)
def _comparable(text: str) -> str:
    """The text casefolded, with compatibility forms (full-width letters, ligatures) as plain
    letters, and without invisible characters."""
    if not text.isascii():
        text = INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).replace("’", "'")
    return " ".join(text.casefold().split())
