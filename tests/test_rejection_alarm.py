"""The warning that many captions of a run are rejected: early, once, and with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from support.job import FAKE, input_flags, make_input, run

from vllm_caption.captions.rejection_alarm import MIN_ANSWERS, REMEDIES, WINDOW, Rejections
from vllm_caption.captions.rules import verdict
from vllm_caption.errors import CaptionFlag


def answers(*runs: tuple[int, tuple[CaptionFlag, ...]]) -> Rejections:
    made = Rejections()
    for number, flags in runs:
        for index in range(number):
            made.count(f"{index}.png", f"caption {index}", flags)
    return made


def test_many_rejected_answers_cause_a_warning_with_rule_example_and_remedy() -> None:
    text = answers((35, ()), (12, ("too_long",)), (3, ("loop", "too_long"))).alarm()
    assert text is not None
    assert text.startswith("15 of the last 50 answers were rejected, 12 of them as too_long, e.g.")
    assert "11.png: 'caption 11'" in text
    assert REMEDIES["too_long"] in text


def test_warning_comes_once() -> None:
    made = answers((100, ("empty",)))
    assert made.alarm() is not None
    made.count("a.png", "", ("empty",))
    assert made.alarm() is None


def test_warning_waits_for_enough_answers() -> None:
    made = answers((MIN_ANSWERS - 1, ("loop",)))
    assert made.alarm() is None
    made.count("a.png", "a a a", ("loop",))
    assert made.alarm() is not None


@pytest.mark.parametrize(("rejected", "warned"), [(20, False), (21, True)])
def test_a_fifth_of_the_answers_may_be_rejected_without_a_warning(
    rejected: int, warned: bool
) -> None:
    made = answers((100 - rejected, ()), (rejected, ("refusal",)))
    assert (made.alarm() is not None) is warned


def test_answers_that_are_only_cut_off_are_not_rejected() -> None:
    made = answers((100, ("cut_off",)))
    assert (made.alarm(), made.rejected, dict(made.by_flag)) == (None, 0, {})


def test_problems_that_start_late_are_noticed() -> None:
    made = answers((100_000, ()), (WINDOW // 2, ("empty",)))
    assert made.alarm() is not None


def test_each_rule_is_counted() -> None:
    made = answers((2, ("loop", "too_long", "cut_off")), (3, ("too_long",)), (5, ()))
    assert (made.answers, made.rejected) == (10, 5)
    assert dict(made.by_flag) == {"loop": 2, "too_long": 5}


def test_long_or_hostile_example_stays_one_line() -> None:
    made = Rejections()
    for _ in range(60):
        made.count("a.png", "line\n\x1b[2J" * 500, ("loop",))
    text = made.alarm()
    assert text is not None
    assert len(text) < 800
    assert text.isprintable()


def test_every_rule_that_rejects_has_a_remedy() -> None:
    rejecting = {flag for flag in get_args(CaptionFlag) if verdict((flag,)) != "accept"}
    assert set(REMEDIES) == rejecting


def test_run_whose_captions_break_a_rule_says_so_while_it_runs(tmp_path: Path) -> None:
    make_input(tmp_path, 60)
    (tmp_path / "terse.md").write_text("---\nmax_words: 2\n---\nDescribe the shape in two words.")
    flags = (f"--output={tmp_path / 'out'}", f"--prompt={tmp_path / 'terse.md'}", "--quiet")
    result = run(*input_flags(tmp_path), *flags, command=FAKE)
    (line,) = (line for line in result.stderr.splitlines() if "were rejected" in line)
    assert "as too_long, e.g. d" in line
    assert "raise max_words in its front matter" in line
    assert (
        "Rejected answers: 240 of 240 (too_long 240):"
        " 180 queued for a retry, 60 captions kept with flags\n"
    ) in result.stdout
    assert "Flags: too_long 60" in result.stdout
    assert "ended with an error" not in result.stdout
