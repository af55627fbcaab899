"""Whose fault is an error: its item's, its engine's, the run's? The answers since the last good one
tell.

A mistake in the settings (a prompt that is too long, a chat template that takes no system text, a
model that overflows in 16 bit) gives every item the same error. Failing a million items one by one
helps nobody: the run stops, names the error once, and charges no item.

Pure counting. Invariants:
- a good answer clears everything: an engine that captions one image can caption others;
- an engine that gives as many errors alone, while others caption, is at fault, and not its items;
- items that failed in an earlier run are never counted (the caller leaves them out), so a rerun
  over the few that are left never stops for what is wrong with these few;
- once something has been captioned it takes many more answers: neighbours in the input are alike.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from vllm_caption.captions.rejection_alarm import REMEDIES
from vllm_caption.captions.rules import verdict
from vllm_caption.errors import CaptionFlag

Fault = Literal["items", "engine", "run", "open"]
"""Who is to blame for an error; open: later answers will show it."""

MIN_ITEMS: Final = 8
"""Errors of at least this many items: one item alone is tried several times."""
AFTER_SUCCESS: Final = 16
"""The limit is this many times higher once something has been captioned."""
MAX_DIFFERENT: Final = 4
"""How many different errors are counted; beyond these, each is its item's own fault."""
MIN_REPEATS: Final = 4
_VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?|'[^']*'|\"[^\"]*\"")
"""Sizes, counts, addresses and quoted values: two errors that differ in these are the same."""
_SAID: Final[dict[CaptionFlag, str]] = {
    "empty": "a caption without a word",
    "reasoning": "reasoning without an answer",
    "bad_json": "an answer that is no JSON of the prompt's schema",
}
_TOO_LONG: Final = ("longer than the maximum model length", "maximum context length")


class AnswerError(NamedTuple):
    """What is wrong with an answer that is no caption, and what helps if all answers are so."""

    said: str
    remedy: str


def caption_error(text: str, flags: tuple[CaptionFlag, ...]) -> AnswerError | None:
    """The error of an answer; None if it can be a caption. ``flags``: worst first."""
    if verdict(flags) != "retry_or_fail":
        return None
    if flags[0] == "bad_json" and "cut_off" in flags:
        return AnswerError("JSON that is cut off at --max-tokens", "raise --max-tokens")
    shown = "".join(text.split())
    if len(shown) >= MIN_REPEATS and len(set(shown)) == 1 and not shown[0].isalnum():
        remedy = "numbers that overflow in 16 bit look like this: add --dtype bfloat16 or float32"
        return AnswerError(f"a caption of nothing but {shown[0]!r}", remedy)
    return AnswerError(_SAID.get(flags[0], "a caption that repeats itself"), REMEDIES[flags[0]])


def engine_error(reason: str) -> AnswerError:
    """The error of a request that the engine, or the prompt's template, refused."""
    remedy = "it names what to change; logs/ has the engine's own words"
    if any(sign in reason for sign in _TOO_LONG):
        remedy = "raise --max-model-len, shorten the prompt, or lower --max-pixels"
    return AnswerError(reason, remedy)


@dataclass(slots=True)
class _Streak:
    """The errors of a run, or of one of its engines, since its last good answer. ``others_good``:
    good answers of the run when it began."""

    answers: Counter[str] = field(default_factory=Counter)
    items: dict[str, set[str]] = field(default_factory=dict)
    any_success: bool = False
    others_good: int = 0

    def succeed(self, num_good: int) -> None:
        self.any_success, self.others_good = True, num_good
        self.forget()

    def forget(self) -> None:
        self.answers.clear()
        self.items.clear()

    def add(self, item: str, same: str, limit: int) -> bool:
        """Whether one error has reached the limit."""
        self.answers[same] += 1
        items = self.items.setdefault(same, set())
        if len(items) < MIN_ITEMS:
            items.add(item)
        needed = limit * (AFTER_SUCCESS if self.any_success else 1)
        return self.answers[same] >= needed and len(items) >= min(MIN_ITEMS, needed)


class SameErrors:
    """The errors of one run since its last good answer, and of each engine since its own."""

    def __init__(self, max_same_errors: int) -> None:
        """``max_same_errors``: answers with one error that end a run; 0: none ever does."""
        self._limit = max_same_errors
        self._run = _Streak()
        self._engines: dict[int, _Streak] = {}
        self._num_good = 0

    def clear(self, engine: int | None = None) -> None:
        """A good answer, or (None) a caption of an earlier run that was made in the same way."""
        if engine is not None:
            self._num_good += 1
            self._of(engine).succeed(self._num_good)
        self._run.succeed(self._num_good)

    def add(self, engine: int, item: str, error: AnswerError) -> Fault:
        """One answer was an error. "items": the open ones before it are their items' fault, too."""
        if not self._limit:
            return "items"
        same = _VARYING.sub("#", error.said)
        each_its_own = same not in self._run.answers and len(self._run.answers) >= MAX_DIFFERENT
        if each_its_own:
            self._run.forget()
        if self._run.add(item, same, self._limit):
            return "run"
        streak = self._of(engine)
        if streak.add(item, same, self._limit) and streak.others_good < self._num_good:
            del self._engines[engine]  # its successor starts with none
            return "engine"
        return "items" if each_its_own else "open"

    def _of(self, engine: int) -> _Streak:
        if (streak := self._engines.get(engine)) is None:
            streak = self._engines[engine] = _Streak(others_good=self._num_good)
        return streak

    def conclusion(self, error: AnswerError) -> str:
        """The sentence to stop with, after `add` has said "run"."""
        number = self._run.answers[_VARYING.sub("#", error.said)]
        since = "since the last caption" if self._run.any_success else "and none is a caption"
        return (
            f"the same error for everyone, {number} answers {since}: {error.said}; {error.remedy}."
            " No item is charged: run again. --max-same-errors 0 fails such items one by one"
        )
