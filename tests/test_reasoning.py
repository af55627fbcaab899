"""Reasoning never becomes a caption: the marks of every model, cut off or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_caption.captions.reasoning import (
    answer_of,
    is_mark,
    is_part_of_mark,
    opened_by,
    reasoning_alone,
)
from vllm_caption.captions.rules import CaptionRules, judge, verdict

CAPTION = "A solid red circle in the centre."
THOUGHT = "Okay, so the user wants a caption. Let me look.\nIt is a circle.\n"
HARMONY = "<|end|><|start|>assistant<|channel|>final<|message|>"

MARKS = {
    "Qwen3-VL, DeepSeek, MiMo, Step3, Ernie": ("<think>", "</think>"),
    "R1 of other makers": ("<thinking>", "</thinking>"),
    "LLaVA-CoT": ("<SUMMARY>I look.</SUMMARY><REASONING>", "</REASONING>"),
    "Seed": ("<seed:think>", "</seed:think>"),
    "MiniMax": ("<mm:think>", "</mm:think>"),
    "K2": ("<ifm|think_fast>", "</ifm|think_fast>"),
    "Hunyuan": ("<think:opensource>", "</think:opensource>"),
    "Kimi-VL": ("◁think▷", "◁/think▷"),
    "Kimi-K3": ("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>"),
    "Magistral": ("[THINK]", "[/THINK]"),
    "Command A": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    "Skywork": ("<|begin_of_thought|>", "<|end_of_thought|>"),
    "Gemma": ("<|channel>thought\n", "<channel|>"),
    "gpt-oss": ("<|channel|>analysis<|message|>", HARMONY),
    "gpt-oss, without its special tokens": ("analysis", "assistantfinal"),
    "Granite": ("Here is my thought process: ", "Here is my response: "),
}


@pytest.mark.parametrize(("opens", "closes"), MARKS.values(), ids=MARKS)
def test_answer_starts_after_the_reasoning_of_every_model(opens: str, closes: str) -> None:
    for blank in ("", "\n\n"):
        text = f"{blank}{opens}{THOUGHT}{closes}{blank}{CAPTION}"
        assert judge(text, "stop", CaptionRules()) == (CAPTION, ())


@pytest.mark.parametrize(("opens", "closes"), MARKS.values(), ids=MARKS)
def test_reasoning_that_is_cut_off_or_ends_the_text_is_not_an_answer(
    opens: str, closes: str
) -> None:
    assert answer_of(f"{opens}{THOUGHT}") is None
    assert answer_of(f"{opens}{THOUGHT}{closes}\n ") is None
    assert answer_of(f"{opens}{THOUGHT}{closes}\n{opens}{THOUGHT}") is None


@pytest.mark.parametrize("name", [name for name in MARKS if "without" not in name])
def test_closing_mark_alone_is_removed(name: str) -> None:
    """The chat template has put the opening mark into the prompt."""
    answer = answer_of(f"{THOUGHT}{MARKS[name][1]}{CAPTION}")
    assert answer is not None and answer.strip() == CAPTION


@pytest.mark.parametrize(
    "text",
    [
        f"<answer>{CAPTION}</answer>",
        f"<think>{THOUGHT}</think><answer>{CAPTION}</answer>",
        f"<think>{THOUGHT}</think>\n<answer>\n{CAPTION}",
        f"<think>{THOUGHT}</think><answer><|begin_of_box|>{CAPTION}<|end_of_box|></answer>",
        f"<REASONING>{THOUGHT}</REASONING>\n\n<CONCLUSION> {CAPTION} </CONCLUSION>",
        f"<think>\n\n</think>\n\n{CAPTION}",
        f"<think>one</think> no, wait <think>two</think>{CAPTION}",
    ],
)
def test_wrapper_of_an_answer_is_removed(text: str) -> None:
    assert judge(text, "stop", CaptionRules()) == (CAPTION, ())


@pytest.mark.parametrize(
    "text",
    [
        CAPTION,
        "",
        "A thinking man in brown, analysis of a chart behind him.",
        "Analysis: a chart with three bars.",
        "analysis chart icon",
        "Black lettering “<think>” in a monospaced font.",
        'The word "</think>" in white on black.',
        "Lettering that reads THINK in capital letters, in square brackets.",
        "An answer sheet with the final channel marked.",
        "Left arrow <- and right arrow ->.",
    ],
)
def test_text_without_marks_is_unchanged(text: str) -> None:
    assert answer_of(text) == text


@given(st.text(max_size=80))
def test_caption_of_an_answer_contains_no_further_reasoning(text: str) -> None:
    for whole in (text, f"<think>{text}</think>{text}"):
        answer = answer_of(whole)
        assert answer is None or answer_of(answer) == answer


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    ("finish_reason", "flags"),
    [("length", ("reasoning", "cut_off")), ("stop", ("reasoning",))],
)
def test_reasoning_without_an_answer_is_retried_and_never_kept(
    enabled: bool, finish_reason: str, flags: tuple[str, ...]
) -> None:
    text = reasoning_alone(THOUGHT)
    shown, found = judge(text, finish_reason, CaptionRules(enabled=enabled))
    assert found == flags
    assert verdict(found) == "retry_or_fail"
    assert THOUGHT.strip() in shown, "messages show what the model said"


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>assistant\n", ""),
        ("[/INST][THINK]", "[THINK]"),
        ("<|assistant|>\n◁think▷", "◁think▷"),
        ("<think>a</think><think>", "<think>"),
    ],
)
def test_mark_that_a_chat_template_leaves_open_is_recognised(prompt: str, mark: str) -> None:
    assert opened_by(prompt) == mark
    if mark:
        assert answer_of(mark + THOUGHT) is None


@pytest.mark.parametrize(
    ("token", "marks", "part"),
    [
        *((mark, True, True) for mark in ("<think>", "</think>", "[THINK]", "◁/think▷")),
        *((mark, True, True) for mark in ("<|channel|>", "<|channel>", "<channel|>", "<|open|>")),
        *((part, False, True) for part in ("<|start|>", "<|message|>", "<|end|>")),
        *((token, False, False) for token in ("<|im_end|>", "</s>", "<image>", "[INST]", "<pad>")),
    ],
)
def test_special_tokens_that_mark_reasoning_are_distinguished_from_others(
    token: str, marks: bool, part: bool
) -> None:
    assert (is_mark(token), is_part_of_mark(token)) == (marks, part)
