"""Decides from the answers since the last good one whether an item, an engine or the run is to
blame for an error.

A mistake in the settings (a prompt that is too long, a chat template without system text, a model
that overflows in 16-bit precision) causes the same error for all items. Failing a million items one
by one helps nobody: the run stops, reports the error once, and records no item as failed.

Pure counting. Invariants:
- a good answer clears everything: an engine that captions one image can caption others;
- if one engine alone returns that many errors while others caption, it is to blame, not its items;
- items that failed in an earlier run are never counted (the caller leaves them out), so a rerun
  over the few that are left never stops because of them;
- after the first caption it takes many more answers: neighbours in the input are alike.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from vllm_caption.captions.rejection_alarm import REMEDIES
from vllm_caption.captions.rules import verdict
from vllm_caption.errors import CaptionFlag
from vllm_caption.formatting import counted

Fault = Literal["items", "engine", "run", "open"]
"""Who is to blame for an error; open: later answers decide."""

MIN_ITEMS: Final = 8
"""The errors must be those of at least this many items, since one item is tried several times."""
AFTER_SUCCESS: Final = 16
"""The limit is this many times higher once something has been captioned."""
MAX_DIFFERENT: Final = 4
"""How many different errors are counted; with more, the items are to blame."""
MIN_REPEATS: Final = 4
_VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?|'[^']*'|\"[^\"]*\"")
"""Sizes, counts, addresses and quoted values: errors that differ only in these are the same."""
_SAID: Final[dict[CaptionFlag, str]] = {
    "empty": "a caption without a word",
    "reasoning": "reasoning without an answer",
    "bad_json": "an answer that does not follow the prompt's schema",
}
_TOO_LONG: Final = ("longer than the maximum model length", "maximum context length")


class AnswerError(NamedTuple):
    """What is wrong with an answer, and the remedy if all answers are like it."""

    said: str
    remedy: str


def caption_error(text: str, flags: tuple[CaptionFlag, ...]) -> AnswerError | None:
    """What is wrong with an answer; None if it can be a caption. ``flags``: worst first."""
    if verdict(flags) != "retry_or_fail":
        return None
    if flags[0] == "bad_json" and "cut_off" in flags:
        return AnswerError("JSON that is cut off at --max-tokens", "raise --max-tokens")
    shown = "".join(text.split())
    if len(shown) >= MIN_REPEATS and len(set(shown)) == 1 and not shown[0].isalnum():
        remedy = "numbers that overflow in 16 bits look like this: add --dtype bfloat16 or float32"
        return AnswerError(f"a caption of nothing but {shown[0]!r}", remedy)
    return AnswerError(_SAID.get(flags[0], "a caption that repeats itself"), REMEDIES[flags[0]])


def engine_error(reason: str) -> AnswerError:
    """The error of a request that the engine, or the prompt's template, refused."""
    remedy = "it names what to change; logs/ has the engine's log"
    if any(sign in reason for sign in _TOO_LONG):
        remedy = "raise --max-model-len, shorten the prompt, or lower --max-pixels"
    return AnswerError(reason, remedy)


@dataclass(slots=True)
class _Streak:
    """The errors of a run, or of one of its engines, since its last good answer. ``others_good``:
    how many good answers the run had when the streak began."""

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
        """Count an error; returns whether it has reached the limit."""
        self.answers[same] += 1
        items = self.items.setdefault(same, set())
        if len(items) < MIN_ITEMS:
            items.add(item)
        needed = limit * (AFTER_SUCCESS if self.any_success else 1)
        return self.answers[same] >= needed and len(items) >= min(MIN_ITEMS, needed)


class SameErrors:
    """Counts the errors of a run, and of each of its engines, since their last good answer."""

    def __init__(self, max_same_errors: int) -> None:
        """``max_same_errors``: how many answers with the same error end a run; 0 for no limit."""
        self._limit = max_same_errors
        self._run = _Streak()
        self._engines: dict[int, _Streak] = {}
        self._num_good = 0

    def clear(self, engine: int | None = None) -> None:
        """Record a good answer, or (None) a caption that an earlier run made in the same way."""
        if engine is not None:
            self._num_good += 1
            self._of(engine).succeed(self._num_good)
        self._run.succeed(self._num_good)

    def add(self, engine: int, item: str, error: AnswerError) -> Fault:
        """Record an error; returns who is to blame. "items": for earlier open errors, too."""
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
            del self._engines[engine]  # its successor starts without errors
            return "engine"
        return "items" if each_its_own else "open"

    def _of(self, engine: int) -> _Streak:
        if (streak := self._engines.get(engine)) is None:
            streak = self._engines[engine] = _Streak(others_good=self._num_good)
        return streak

    def conclusion(self, error: AnswerError) -> str:
        """The sentence to stop with, after `add` has said "run"."""
        number = self._run.answers[_VARYING.sub("#", error.said)]
        since = "since the last caption" if self._run.any_success else "without a caption"
        return (
            f"the same error for all items, {counted(number, 'answer')} {since}: {error.said};"
            f" {error.remedy}. No item was recorded as failed: fix this and run again."
            " --max-same-errors 0 fails such items one by one"
        )
