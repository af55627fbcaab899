"""When an error shared by all items ends the run, and when only its items fail."""

from __future__ import annotations

import pytest

from vllm_caption.captions.rules import CaptionRules, check_caption, clean_caption
from vllm_caption.scheduling.same_errors import (
    AFTER_SUCCESS,
    MAX_DIFFERENT,
    AnswerError,
    Fault,
    SameErrors,
    caption_error,
    engine_error,
)

REFUSED = engine_error("the chat template takes no system message")


def add_many(errors: SameErrors, number: int, error: AnswerError = REFUSED) -> list[Fault]:
    """Answers to this many items."""
    return [errors.add(0, f"{item}.png", error) for item in range(number)]


def error_of(text: str) -> AnswerError | None:
    """The error of a model's text, through the rules for captions."""
    return caption_error(text, check_caption(clean_caption(text), "stop", CaptionRules()))


def test_the_same_error_for_all_items_ends_the_run_once_there_are_enough() -> None:
    assert add_many(SameErrors(64), 64) == ["open"] * 63 + ["run"]


def test_a_good_answer_leaves_earlier_errors_to_their_items() -> None:
    errors = SameErrors(64)
    add_many(errors, 63)
    errors.clear(0)
    assert add_many(errors, 64)[-1] == "open"


def test_after_a_caption_it_takes_many_more_errors_since_neighbours_are_alike() -> None:
    errors = SameErrors(64)
    errors.clear(0)
    assert add_many(errors, 64 * AFTER_SUCCESS) == ["open"] * (64 * AFTER_SUCCESS - 1) + ["run"]


def test_an_engine_that_fails_alone_while_others_caption_is_to_blame() -> None:
    errors = SameErrors(16)
    found: list[Fault] = []
    for number in range(16):
        errors.clear(1)
        found.append(errors.add(0, f"{number}.png", REFUSED))
    assert found == ["open"] * 15 + ["engine"]
    errors.clear(1)
    assert errors.add(0, "next.png", REFUSED) == "open"


def test_an_engine_is_not_to_blame_if_no_other_has_captioned_since() -> None:
    errors = SameErrors(16)
    errors.clear()
    assert set(add_many(errors, 32)) == {"open"}


def test_one_item_that_is_retried_is_not_enough_evidence() -> None:
    errors = SameErrors(64)
    assert {errors.add(0, "a.png", REFUSED) for _ in range(200)} == {"open"}


def test_errors_that_differ_in_numbers_or_quoted_names_are_the_same() -> None:
    errors = SameErrors(16)
    found = [
        errors.add(0, f"{n}.png", engine_error(f"prompt of {n} tokens of '{n}.png' at 0x{n:x}"))
        for n in range(16)
    ]
    assert found[-1] == "run"


def test_two_alternating_errors_end_the_run() -> None:
    errors = SameErrors(16)
    other = AnswerError("a caption without a word", "")
    found = [errors.add(0, f"{n}.png", (REFUSED, other)[n % 2]) for n in range(31)]
    assert found == ["open"] * 30 + ["run"]


def test_errors_that_are_all_different_are_left_to_their_items() -> None:
    errors = SameErrors(16)
    kinds = "abcdefghij"
    found = [errors.add(0, f"{n}.png", engine_error(kinds[n] * 3)) for n in range(len(kinds))]
    assert found[: MAX_DIFFERENT + 1] == ["open"] * MAX_DIFFERENT + ["items"]
    assert "run" not in found


def test_without_a_limit_nothing_waits_and_nothing_ends() -> None:
    assert set(add_many(SameErrors(0), 1000)) == {"items"}


def test_a_limit_below_the_minimum_of_items_applies_as_given() -> None:
    assert add_many(SameErrors(2), 2) == ["open", "run"]


@pytest.mark.parametrize("text", ["", "   ", "\n", "...", "*"])
def test_text_without_a_word_is_an_error(text: str) -> None:
    error = error_of(text)
    assert error is not None
    assert error.said == "a caption without a word"
    assert "instruct model" in error.remedy


@pytest.mark.parametrize("text", ["!!!!!!!!", "! ! ! !", "!" * 400])
def test_text_of_one_repeated_sign_names_overflow_and_dtypes_that_avoid_it(text: str) -> None:
    error = error_of(text)
    assert error is not None
    assert error.said == "a caption of nothing but '!'"
    assert "--dtype bfloat16 or float32" in error.remedy


@pytest.mark.parametrize("text", ["a red dot", "Sorry, I cannot see the image.", "very very large"])
def test_text_that_can_be_a_caption_is_not_an_error(text: str) -> None:
    assert error_of(text) is None


def test_prompt_that_does_not_fit_is_reported_with_flags_that_make_room() -> None:
    error = engine_error(
        "The decoder prompt (length 900) is longer than the maximum model length of 512."
    )
    assert "--max-model-len" in error.remedy


def test_conclusion_names_the_error_once_the_remedy_and_that_no_item_is_charged() -> None:
    errors = SameErrors(16)
    add_many(errors, 16)
    said = errors.conclusion(REFUSED)
    assert said.startswith("the same error for all items, 16 answers without a caption: the chat")
    assert "No item was recorded as failed: fix this and run again" in said
    assert "--max-same-errors 0" in said
