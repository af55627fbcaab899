"""What the job takes from vLLM, in this process: an engine's answer, its flags and their effect.

vLLM is imported by no other test file, and here only once a test runs: it takes 15 s of a core.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock, patch

import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vllm_caption.captions.prompt import RenderedPrompt, RequestOptions, load_prompt
from vllm_caption.captions.question import Question, make_question
from vllm_caption.captions.rules import CaptionRules, judge
from vllm_caption.commands.run import parse_run
from vllm_caption.config import ImageConfig, SamplingConfig
from vllm_caption.demo import MODEL_DIR
from vllm_caption.engine_flags import (
    GPU_FACTORS,
    check_names,
    flags_of_vllm,
    gpus_per_engine,
    named_flags,
)
from vllm_caption.errors import UsageError
from vllm_caption.inputs.documents import longest_item
from vllm_caption.messages import FlagsChecked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from vllm_caption.engines.vllm_engine import AnswerText

pytestmark = pytest.mark.engine

CAPTION = "A red dot."


def tokenizer(*special: str, plain: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One token for each byte, and these."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, additional_special_tokens=list(special), eos_token="<|im_end|>"
    )
    made.add_tokens(list(plain))
    return made


def answer_text(
    known: PreTrainedTokenizerFast, parser: str, options: RequestOptions | None = None
) -> AnswerText:
    from vllm_caption.engines.vllm_engine import AnswerText

    return AnswerText(known, parser, options or RequestOptions())


def check(question: Question, *flags: str) -> FlagsChecked:
    """Have vLLM check its flags, and try the question."""
    from vllm_caption.engines.vllm_engine import check_engine_args

    given = (f"--model={MODEL_DIR}", *flags)
    return check_engine_args(given, ImageConfig(), SamplingConfig(), question, on_cpu=True)


def describe_it() -> Question:
    text = RenderedPrompt(None, "Describe it.")
    return Question("p", text, text)


# --- the answer of an engine ---------------------------------------------------------------------


def read(answers: AnswerText, text: str, prompt: str = "") -> tuple[str, tuple[str, ...]]:
    known = tokenizer("<think>", "</think>")
    return judge(answers.read(known.encode(prompt), text), "stop", CaptionRules())


def test_special_tokens_are_kept_only_if_they_mark_reasoning() -> None:
    answers = answer_text(tokenizer("[THINK]", "[/THINK]", "<|box|>"), "")
    assert answers.keeps_special_tokens
    assert read(answers, f"[THINK]hm[/THINK]<|box|>{CAPTION}<|im_end|>") == (CAPTION, ())
    assert not answer_text(tokenizer("<image>", "<|end|>"), "").keeps_special_tokens
    assert not answer_text(tokenizer(plain=("<think>", "</think>")), "").keeps_special_tokens


def test_reasoning_opened_by_the_chat_template_is_recognised_even_if_cut_off() -> None:
    answers = answer_text(tokenizer("<think>", "</think>"), "")
    prompt = "<|im_start|>assistant\n<think>\n"
    assert read(answers, f"hm</think>{CAPTION}", prompt) == (CAPTION, ())
    assert read(answers, "Okay, the user wants", prompt)[1] == ("reasoning",)
    assert read(answers, CAPTION, prompt + "\n</think>\n\n") == (CAPTION, ())
    assert read(answers, CAPTION, "<|im_start|>assistant\n") == (CAPTION, ())


@pytest.mark.parametrize("parser", ["qwen3", "deepseek_r1", "deepseek_v3", "step3", "glm45"])
def test_vllms_reasoning_parser_decides_what_is_the_answer(parser: str) -> None:
    known = tokenizer(plain=("<think>", "</think>"))
    answers = answer_text(known, parser)
    assert read(answers, f"<think>hm</think>{CAPTION}") == (CAPTION, ())
    assert read(answers, f"hm</think>{CAPTION}", "<think>") == (CAPTION, ())
    assert read(answers, "hm", "<think>")[1] == ("reasoning",)


@pytest.mark.parametrize("parser", ["openai_gptoss", "cohere_command3"])
def test_if_a_parser_cannot_read_a_text_the_marks_decide(parser: str) -> None:
    special = ("<|channel|>", "<|message|>", "<|END_THINKING|>", "<|START_THINKING|>")
    answers = answer_text(tokenizer(*special), parser)
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
def test_unknown_or_unsuitable_parser_is_refused_at_the_start(parser: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check(describe_it(), f"--reasoning-parser={parser}")


def test_json_in_place_of_reasoning_is_not_reasoning() -> None:
    """vLLM forces JSON from the first token on, although the chat template has opened a thought."""
    star = '{"shape":"star"}'
    known = tokenizer("<think>", "</think>")
    prompt = known.encode("<|im_start|>assistant\n<think>\n")
    forced = answer_text(known, "", RequestOptions('{"type":"object"}'))
    assert forced.read(prompt, star + "<|im_end|>") == star
    assert answer_text(known, "").read(prompt, star).startswith("<think>")


# --- its flags ----------------------------------------------------------------------------------


def test_vllm_counts_the_gpus_of_an_engine_as_we_do() -> None:
    from vllm.config import ParallelConfig

    for sizes in itertools.product((1, 2, 3), repeat=len(GPU_FACTORS)):
        given = dict(zip(GPU_FACTORS, sizes, strict=True))
        flags = [f"--{name}={size}" for name, size in given.items()]
        parallel = ParallelConfig(**given, distributed_executor_backend="mp")
        assert parallel.world_size_across_dp == gpus_per_engine(flags)


def test_vllm_has_no_flag_missing_from_its_source_and_no_unknown_parallel_one() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    shared = {"decode_context_parallel_size", "enable_expert_parallel"}
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    options = {option for action in parser._actions for option in action.option_strings}
    opposites = {
        option for option in options if option.replace("--no-", "--", 1) in flags_of_vllm()
    }
    assert options - opposites == flags_of_vllm() - {"-O", "--config"} - opposites
    check_names(sorted(options), ())
    for action in parser._actions:
        name = action.dest
        if not re.search(r"parallel_(size|rank|start)|data_parallel|nnodes|node_rank", name):
            continue
        for option in action.option_strings:
            (read,) = named_flags([option])
            assert read == name or read.startswith("no_") or name == "data_parallel_size"
        if name in {*GPU_FACTORS, *shared, "data_parallel_size"}:
            continue
        with pytest.raises(UsageError):
            parse_run([f"--{name}=2", "-dp=1"])


def test_an_abbreviated_flag_of_vllm_is_refused_before_an_engine_starts() -> None:
    with pytest.raises(UsageError, match=r"unrecognized arguments: --tensor-parallel=2"):
        check(describe_it(), "--tensor-parallel=2")  # argparse would complete it


# --- the bundled model ---------------------------------------------------------------------------


def test_bundled_model_gets_a_small_cache_on_a_gpu_unless_the_user_sizes_it() -> None:
    from vllm_caption.engines.vllm_engine import CPU_DEFAULTS, DEMO_CACHE_BYTES, defaults

    size, demo = "kv_cache_memory_bytes", str(MODEL_DIR)
    assert defaults(demo, set(), on_cpu=False)[size] == DEMO_CACHE_BYTES
    assert size not in defaults(demo, {"num_gpu_blocks_override"}, on_cpu=False)
    assert size not in defaults("Qwen/Qwen2.5-VL-7B-Instruct", set(), on_cpu=False)
    assert defaults(demo, set(), on_cpu=True)[size] == CPU_DEFAULTS[size]


def test_small_cache_of_the_bundled_model_has_enough_blocks_but_not_many() -> None:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from vllm_caption.engines.vllm_engine import DEMO_CACHE_BYTES

    # As in its config.json: 3 layers of 2 heads of 32, at most 2,048 tokens.
    layer = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=32, dtype=torch.bfloat16)
    num_blocks = DEMO_CACHE_BYTES // (3 * layer.page_size_bytes)
    assert num_blocks == 21_845
    assert num_blocks > 128 * (2048 // 16)
    assert 73 * 2**30 // (3 * layer.page_size_bytes) > 6_000_000, "what it replaces"


# --- the check before a run ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "backend"),
    [({"type": "string"}, "xgrammar"), ({"type": "number", "multipleOf": 3}, "guidance")],
)
def test_blanks_between_fields_are_forbidden_whichever_backend_takes_the_schema(
    tmp_path: Path, schema: object, backend: str
) -> None:
    whole = {"type": "object", "properties": {"a": schema}}
    path = tmp_path / "mine.md"
    path.write_text(f"---\njson_schema: {json.dumps(whole)}\n---\nDescribe it.\n")
    question = make_question(load_prompt(str(path)), longest_item())
    settings = pickle.loads(check(question).engine_args).structured_outputs_config
    assert (settings.backend, settings.disable_any_whitespace) == (backend, True)


@pytest.mark.parametrize(("flags", "ours"), [((), True), (("--mm-processor-kwargs={}",), False)])
def test_pixel_bounds_apply_unless_the_user_bounds_the_processor(
    flags: tuple[str, ...], ours: bool
) -> None:
    question = make_question(load_prompt("shape-brief"), longest_item())
    assert check(question, *flags).bounds_pixels is ours


# --- a request -----------------------------------------------------------------------------------


def test_question_is_tokenized_once_and_its_requests_are_those_of_vllms_chat() -> None:
    from vllm.renderers import renderer_from_config

    from vllm_caption.engines.vllm_engine import RequestRenderer, _messages, chat_params

    checked = check(describe_it())
    config = pickle.loads(checked.engine_args).create_engine_config()
    renderer = renderer_from_config(config)
    tokenization = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
    rendering = RequestRenderer(renderer, RequestOptions())
    images = [
        Image.effect_noise(size, 80).convert("RGB") for size in ((60, 40), (40, 60), (7, 300))
    ]
    with patch.object(renderer, "render_messages", wraps=renderer.render_messages) as templated:
        for user, system in (("Describe it.", None), ("描述它。", "You see a <poster>.")):
            made = [rendering.render(user, system, image) for image in images]
            for image, request in zip(images, made, strict=True):
                chat = [_messages(user, system, image)]
                _, (expected,) = renderer.render_chat(
                    chat, chat_params(RequestOptions()), tokenization
                )
                assert comparable(request) == comparable(expected)
    assert templated.call_count == 2 + 2 * len(images), "once a question, and by `render_chat`"


def comparable(request: Any) -> dict[str, Any]:
    """All of a request but when it came, and the name that vLLM gives each image."""
    pixels = request["mm_kwargs"]["image"][0].get_data()
    kept = {key: value for key, value in request.items() if key not in UNIQUE}
    return kept | {name: value.tolist() for name, value in pixels.items()}


UNIQUE = {"arrival_time", "mm_hashes", "mm_kwargs"}


def test_renderer_of_another_kind_sees_the_image_of_each_request() -> None:
    from vllm_caption.engines.vllm_engine import RequestRenderer

    seen = MagicMock()
    seen.render_chat.side_effect = lambda chats, *_: (chats, chats)
    image = Image.new("RGB", (9, 9))
    rendered = RequestRenderer(seen, RequestOptions()).render("Describe it.", None, image)
    assert isinstance(rendered, list)
    assert rendered[0]["content"][0]["image_pil"] is image


# --- scripts beside the package ------------------------------------------------------------------


def test_scripts_beside_the_package_find_what_they_import() -> None:
    """No type checker reads them, and most run by hand alone."""
    root = Path(__file__).parents[1]
    files = [p for folder in ("tools", "benchmarks") for p in (root / folder).rglob("*.py")]
    names = [".".join(p.relative_to(root).with_suffix("").parts) for p in sorted(files)]
    with patch.dict(os.environ), warnings.catch_warnings(action="ignore"):
        for name in names:
            if not name.endswith("__main__"):
                importlib.import_module(name.removesuffix(".__init__"))


@pytest.mark.engine
def test_pydantics_messages_are_cut_to_what_is_wrong() -> None:
    from vllm_caption.engines.vllm_engine import _reason

    field = "1 validation error for ModelConfig\nmax_model_len\n  Input should be 1 [type=x]\n  For"
    assert _reason(ValueError(field)) == "max_model_len: Input should be 1"
    whole = (
        "1 validation error for ModelConfig\n  Value error, Unknown quantization method: nosuch."
        " Must be one of ['awq']. [type=value_error, input_value=ArgsKwargs()]\n  For further"
    )
    said = "Unknown quantization method: nosuch. Must be one of ['awq']."
    assert _reason(ValueError(whole)) == said
