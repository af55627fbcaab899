"""Warns if so many captions are rejected that the user should stop the run. Pure counting.

An answer is rejected if it breaks a rule that is worth a retry (`rules.verdict`); each rejected
answer wastes GPU time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from vllm_caption.captions.rules import verdict
from vllm_caption.errors import CaptionFlag
from vllm_caption.formatting import printable

MIN_ANSWERS: Final = 50
WINDOW: Final = 200
"""Only the most recent answers count, so that problems that start late are noticed, too."""
ALARM_SHARE: Final = 0.20
MAX_SHOWN_CHARS: Final = 120

REMEDIES: Final[dict[CaptionFlag, str]] = {
    "empty": "the model says nothing: is it an instruct model for images? look at the prompt,"
    " --stop and --min-tokens",
    "reasoning": "the model reasons and gives no answer: raise --max-tokens (2000 or more), or use"
    " the instruct version of the model; leave out --reasoning-parser if it never reasons",
    "bad_json": "the answers do not follow the prompt's schema: raise --max-tokens if they are cut"
    " off, leave out --stop, or simplify the schema",
    "loop": "try --repetition-penalty 1.05, a smaller --max-tokens, or a larger model",
    "refusal": "say in the prompt that the image is a graphic element, or use another model",
    "prompt_echo": "is it an instruct model? a base model continues the prompt instead of obeying",
    "wrong_script": "write the whole prompt, its system text too, in the language of the caption",
    "preface": "ask in the prompt for the description alone, without an introduction",
    "code_fence": "ask in the prompt for plain text",
    "punctuation_tail": "try --repetition-penalty 1.05, or a --stop string",
    "forbidden_opening": "say in the prompt how a caption starts, or shorten forbid_openings in its"
    " front matter",
    "too_long": "ask for fewer words in the prompt, or raise max_words in its front matter",
}


class Rejections:
    """Counts the answers of one run, and what followed those that were rejected: ``retried``,
    ``failed`` and ``kept``."""

    def __init__(self) -> None:
        self.answers = 0
        self.rejected = self.retried = self.failed = self.kept = 0
        self.by_flag: Counter[CaptionFlag] = Counter()
        self._recent: deque[CaptionFlag | None] = deque(maxlen=WINDOW)
        self._examples: dict[CaptionFlag, tuple[str, str]] = {}
        self._has_alarmed = False

    def count(self, file: str, caption: str, flags: Iterable[CaptionFlag]) -> None:
        """Count one answer of an engine; ``flags``: worst first."""
        broken = tuple(flags)
        worst = broken[0] if verdict(broken) != "accept" else None
        self.answers += 1
        self._recent.append(worst)
        if worst is None:
            return
        self.rejected += 1
        self.by_flag.update(flag for flag in broken if flag != "cut_off")
        self._examples[worst] = (printable(file), caption)

    def alarm(self) -> str | None:
        """The warning to log now, if any: once per run, as soon as enough answers call for it."""
        rejected = [flag for flag in self._recent if flag is not None]
        num_recent = len(self._recent)
        too_many = num_recent >= MIN_ANSWERS and len(rejected) > ALARM_SHARE * num_recent
        if self._has_alarmed or not too_many:
            return None
        self._has_alarmed = True
        ((flag, number),) = Counter(rejected).most_common(1)
        file, caption = self._examples[flag]
        shown = caption if len(caption) <= MAX_SHOWN_CHARS else caption[:MAX_SHOWN_CHARS] + "…"
        return (
            f"{len(rejected)} of the last {num_recent} answers were rejected, {number} of them as"
            f" {flag}, e.g. {file}: {shown!r}. Consider Ctrl+C now: {REMEDIES[flag]}."
            " --no-checks takes every caption as it is; docs/prompts.md explains the rules."
        )
