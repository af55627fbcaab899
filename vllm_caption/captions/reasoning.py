"""Which part of an answer is the caption: the reasoning before it is removed.

Models mark their reasoning in different ways; all their marks are listed here, so that no flag is
needed. A chat template may already open the reasoning in the prompt; the engine then puts that mark
before the answer (`opened_by`), so that the reasoning is recognised even if `max_tokens` cut it
off.

Pure functions of text. Invariants: reasoning is never part of a caption; text without marks is
returned unchanged; a mark after a quotation mark is lettering.
"""

from __future__ import annotations

import re
from typing import Final

_NAMES: Final = r"(?:\w+[:|])?(?:think|thinking|thought|thoughts|reasoning)(?:[_:]\w+)?"
"""Matches <think>, <seed:think>, <mm:think>, <ifm|think_fast>, <think:opensource>."""
_OPENS: Final = rf"""
    <{_NAMES}> | <summary> | ◁think▷ | \[THINK\] | <\|START_THINKING\|> | <\|begin_of_thought\|>
    | <\|channel\|>(?:analysis|commentary) | <\|channel>thought
    | <\|open\|>\s*think\s*<\|sep\|> | Here(?:'s|\ is)\ my\ thought\ process:
"""
_CLOSES: Final = rf"""
    </{_NAMES}> | ◁/think▷ | \[/THINK\] | <\|END_THINKING\|> | <\|end_of_thought\|>
    | <\|channel\|>final(?:\s*<\|constrain\|>\w+)?<\|message\|> | <channel\|>
    | <\|close\|>\s*think\s*<\|sep\|> | Here(?:'s|\ is)\ my\ response:
"""
_FLAGS: Final = re.IGNORECASE | re.VERBOSE
_OPEN: Final = re.compile(rf"(?:^|(?<=\n))\s*(?:{_OPENS})", _FLAGS)
_ANY_OPEN: Final = re.compile(_OPENS, _FLAGS)
_CLOSE: Final = re.compile(rf"(?<![\"'“‘«「『`])(?:{_CLOSES})", _FLAGS)
_BARE_CHANNELS: Final = re.compile(
    r"\A\s*analysis(?=[A-Z]).*?assistantfinal|\A\s*assistantfinal", re.S
)
_BARE_ANALYSIS: Final = re.compile(r"\A\s*analysis(?=[A-Z])")
"""The channels of a model whose special tokens were stripped from the text."""
_WRAPPER: Final = re.compile(
    r"\A\s*<(answer|response|conclusion)>(.*?)(?:</\1>\s*|\Z)", re.IGNORECASE | re.DOTALL
)
_LEFT_OVER: Final = re.compile(
    r"<\|(?:begin_of_box|end_of_box|begin_of_solution|end_of_solution|START_RESPONSE|END_RESPONSE"
    r"|start|end|message|eom|return)\|>|<\|(?:open|close)\|>\s*\w+\s*<\|sep\|>"
)
_MARK_TOKENS: Final = re.compile(rf"{_OPENS}|{_CLOSES}|<\|channel\|?>|<\|(?:open|close)\|>", _FLAGS)
_SIGNS: Final = ("<", "◁", "[", "here", "analysis", "assistantfinal")
"""Every mark contains one of these."""
_PARTS_OF_MARKS: Final = re.compile(r"<\|(?:start|end|message|constrain|sep)\|>")


def answer_of(text: str) -> str | None:
    """The text after the reasoning; None if nothing follows the reasoning."""
    folded = text.casefold()
    if not any(map(folded.__contains__, _SIGNS)):  # nearly all captions
        return text
    answer, reasoned = _BARE_CHANNELS.subn("", text)
    if closed := [*_CLOSE.finditer(answer)]:
        answer, reasoned = answer[closed[-1].end() :], True
    if _OPEN.search(answer) or _BARE_ANALYSIS.match(answer):
        return None
    if wrapper := _WRAPPER.match(answer):
        answer = wrapper[2]
    if reasoned:
        answer = _LEFT_OVER.sub("", answer)
        return answer if answer.strip() else None
    return answer


def reasoning_alone(reasoning: str) -> str:
    """Mark an answer that is nothing but reasoning, so that `answer_of` recognises it."""
    return f"<think>{reasoning}"


def opened_by(prompt: str) -> str:
    """The mark that the end of a prompt leaves open; "" if the model starts with its answer."""
    opens = [*_ANY_OPEN.finditer(prompt)]
    if not opens or _CLOSE.search(prompt, opens[-1].end()):
        return ""
    return opens[-1].group()


def is_mark(token: str) -> bool:
    """Whether a special token of a tokenizer marks reasoning."""
    return _MARK_TOKENS.fullmatch(token) is not None


def is_part_of_mark(token: str) -> bool:
    """Whether a special token can be part of a mark of reasoning."""
    return is_mark(token) or _PARTS_OF_MARKS.fullmatch(token) is not None
