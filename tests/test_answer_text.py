"""What of an engine's output is its answer, with vLLM's own parsers and a tokenizer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vllm_caption.captions.prompt import RenderedPrompt
from vllm_caption.captions.question import Question
from vllm_caption.captions.rules import CaptionRules, judge
from vllm_caption.config import ImageConfig, SamplingConfig
from vllm_caption.demo import MODEL_DIR
from vllm_caption.engines.vllm_engine import AnswerText, check_engine_args
from vllm_caption.errors import UsageError

pytestmark = pytest.mark.engine

CAPTION = "A red dot."


def tokenizer(*special: str, plain: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One token for each byte, and these."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, additional_special_tokens=list(special), eos_token="<|im_end|>"
    )
    made.add_tokens(list(plain))
    return made


def read(answers: AnswerText, text: str, prompt: str = "") -> tuple[str, tuple[str, ...]]:
    known = tokenizer("<think>", "</think>")
    return judge(answers.read(known.encode(prompt), text), "stop", CaptionRules())


def test_special_tokens_stay_where_they_mark_reasoning_and_only_these() -> None:
    answers = AnswerText(tokenizer("[THINK]", "[/THINK]", "<|box|>"), "")
    assert answers.keeps_special_tokens
    assert read(answers, f"[THINK]hm[/THINK]<|box|>{CAPTION}<|im_end|>") == (CAPTION, ())
    assert not AnswerText(tokenizer("<image>", "<|end|>"), "").keeps_special_tokens
    assert not AnswerText(tokenizer(plain=("<think>", "</think>")), "").keeps_special_tokens


def test_reasoning_that_the_chat_template_opens_is_known_even_if_cut_off() -> None:
    answers = AnswerText(tokenizer("<think>", "</think>"), "")
    prompt = "<|im_start|>assistant\n<think>\n"
    assert read(answers, f"hm</think>{CAPTION}", prompt) == (CAPTION, ())
    assert read(answers, "Okay, the user wants", prompt)[1] == ("reasoning",)
    assert read(answers, CAPTION, prompt + "\n</think>\n\n") == (CAPTION, ())
    assert read(answers, CAPTION, "<|im_start|>assistant\n") == (CAPTION, ())


@pytest.mark.parametrize("parser", ["qwen3", "deepseek_r1", "deepseek_v3", "step3", "glm45"])
def test_parser_of_vllm_says_what_is_the_answer(parser: str) -> None:
    known = tokenizer(plain=("<think>", "</think>"))
    answers = AnswerText(known, parser)
    assert read(answers, f"<think>hm</think>{CAPTION}") == (CAPTION, ())
    assert read(answers, f"hm</think>{CAPTION}", "<think>") == (CAPTION, ())
    assert read(answers, "hm", "<think>")[1] == ("reasoning",)


@pytest.mark.parametrize("parser", ["openai_gptoss", "cohere_command3"])
def test_parser_that_cannot_read_a_whole_text_leaves_it_to_the_marks(parser: str) -> None:
    special = ("<|channel|>", "<|message|>", "<|END_THINKING|>", "<|START_THINKING|>")
    answers = AnswerText(tokenizer(*special), parser)
    text = f"<|channel|>analysis<|message|>hm<|channel|>final<|message|>{CAPTION}"
    assert read(answers, text) == (CAPTION, ())
    assert read(answers, f"<|START_THINKING|>hm<|END_THINKING|>{CAPTION}") == (CAPTION, ())


@pytest.mark.parametrize(
    ("parser", "why"),
    [
        ("nonsense", "--reasoning-parser nonsense: is not one of .*deepseek_r1"),
        ("poolside_v1", "<assistant>"),
        ("step3", "could not locate think"),
    ],
)
def test_parser_that_is_unknown_or_does_not_suit_the_model_is_refused_at_the_start(
    parser: str, why: str
) -> None:
    flags = (f"--model={MODEL_DIR}", f"--reasoning-parser={parser}")
    text = RenderedPrompt(None, "Describe it.")
    question = Question("p", text, text)
    with pytest.raises(UsageError, match=why):
        check_engine_args(flags, ImageConfig(), SamplingConfig(), question, on_cpu=True)
