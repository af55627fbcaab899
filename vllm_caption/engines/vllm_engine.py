"""The only module that knows vLLM: checks its flags, starts one engine, asks it for captions.

`AsyncLLM` and not `LLM`: after the death of an engine core the synchronous loop hangs forever.
Shapes: one request is one chat turn with one RGB image; one answer is one caption.
"""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.reasoning import ReasoningParserManager
from vllm.renderers import ChatParams, renderer_from_config
from vllm.renderers.hf import HfRenderer, resolve_chat_template, resolve_chat_template_kwargs
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.tokenizers.registry import cached_tokenizer_from_config
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor

from vllm_caption.captions.prompt import NO_OPTIONS, RenderedPrompt, RequestOptions
from vllm_caption.captions.question import Question
from vllm_caption.captions.reasoning import is_mark, is_part_of_mark, opened_by, reasoning_alone
from vllm_caption.config import ImageConfig, SamplingConfig
from vllm_caption.demo import MODEL_DIR
from vllm_caption.engine_flags import given_flags, gpus_per_engine
from vllm_caption.engines.worker import EngineLost, Generation, RequestRefused
from vllm_caption.errors import UsageError
from vllm_caption.formatting import first_line
from vllm_caption.messages import CaptionRequest, FlagsChecked

if TYPE_CHECKING:
    from PIL.Image import Image

CPU_DEFAULTS = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
}
DEFAULTS = {
    "limit_mm_per_prompt": {"image": 1, "video": 0},
    "mm_processor_cache_gb": 0,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
}
"""Every image is seen once, so caches would only cost time and memory; a caption needs one image
and no video; statistics, which nobody reads, take 4 % of the front end. A flag that the user gives
takes precedence, as everywhere."""
COMPACT_BACKENDS = (("xgrammar", True), ("guidance", True))
"""Structured output backends that can forbid blanks between the fields, fastest first."""
DEATH_S = 1.0
PROMPT_END_TOKENS = 24
"""Tokens at the end of a prompt, where a chat template may open the model's reasoning."""
MAX_QUESTIONS = 256
"""Tokenized questions that are kept. A prompt without columns asks only one."""
_PLAIN_KEYS: Final = {"prompt", "prompt_token_ids", "multi_modal_data", "multi_modal_uuids"}
"""Of a prompt of vLLM that holds nothing but text and images."""
ASKED = "Describe this design element: a red circle on white."
MIN_DISTINCT_TOKENS = 5
TOO_LONG = "maximum context length"
"""Part of vLLM's error for a text that exceeds the model's context."""
MIN_TOKENS = 16
"""A smaller --max-tokens is not suggested."""
DEMO_CACHE_BYTES = 256 << 20
"""KV cache of the bundled model on a GPU. One block (16 tokens × 768 bytes) is so small that an 80
GB GPU would have six million, each a Python object. This limit gives 21,845 blocks, enough for 170
sequences of the model's full length."""
ADVICE = (
    "choose a model that vLLM runs with images, such as HuggingFaceTB/SmolVLM-Instruct,"
    " Qwen/Qwen2.5-VL-3B-Instruct or HuggingFaceM4/Idefics3-8B-Llama3"
)


_REFUSALS = (ValueError, OSError, ImportError, NotImplementedError, VLLMClientError)
"""What vLLM, pydantic and the Hub raise for an unusable setting."""
_MODEL_REFUSALS = (*_REFUSALS, AttributeError, LookupError, RuntimeError, TypeError)
"""What processors and chat templates also raise, for a model that vLLM cannot caption with."""


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]
    """vLLM's own parser, which raises an error instead of exiting. Like ours, it accepts only the
    full names of flags, since some of our decisions depend on them."""

    def error(self, message: str) -> NoReturn:
        raise UsageError("vLLM flags", None, message)


def check_engine_args(
    flags: tuple[str, ...],
    image: ImageConfig,
    sampling: SamplingConfig,
    question: Question,
    *,
    on_cpu: bool,
) -> FlagsChecked:
    """Parse vLLM's flags, resolve the model's configuration and try the run's question, without
    loading a weight.

    The answer holds the arguments of `start_engine`. Raises UsageError for an unknown flag or a bad
    value; for a model that does not exist, takes no images or cannot be asked about one; and for a
    question that does not fit its template or its context, or whose schema vLLM cannot enforce.
    """
    try:
        sampling_params(sampling)
    except _REFUSALS as error:
        raise UsageError("sampling flags", None, _reason(error)) from None
    parser = AsyncEngineArgs.add_cli_args(_Parser(add_help=False, allow_abbrev=False))
    given = given_flags(flags)
    namespace = parser.parse_args(list(flags))
    for name, value in defaults(namespace.model, given, on_cpu=on_cpu).items():
        if not given & {name, f"no_{name}"}:
            setattr(namespace, name, value)
    try:
        args = AsyncEngineArgs.from_cli_args(namespace)
        _check_parser_name(args)
        config = args.create_engine_config(UsageContext.LLM_CLASS)
    except _REFUSALS as error:
        raise UsageError("--model", namespace.model, _reason(error)) from None
    except RuntimeError as error:
        if not namespace.reasoning_parser:
            raise
        raise UsageError("--reasoning-parser", namespace.reasoning_parser, _reason(error)) from None
    _check_gpus(config.parallel_config, flags)
    if not config.model_config.is_multimodal_model:
        raise UsageError("--model", args.model, f"takes no images; {ADVICE}")
    _check_reasoning_parser(config, question.options)
    renderer = _try_request(args.model, config, question.options)
    _check_template_arguments(question, config.model_config, renderer)
    if question.options.schema is not None:
        params = sampling_params(sampling, schema=question.options.schema)
        _choose_backend(question.prompt_name, params, args, config, renderer.get_tokenizer())
    processor = renderer.get_mm_processor().info.get_hf_processor()
    bounds = None if "mm_processor_kwargs" in given else _pixel_bounds(processor, image)
    if bounds:
        args.mm_processor_kwargs = bounds
        config.model_config.multimodal_config.mm_processor_kwargs = bounds
    trial = _Trial(renderer, args.model, config.model_config.max_model_len)
    note = trial.ask(question, image if bounds else image.unbounded(), sampling.max_tokens)
    return FlagsChecked(pickle.dumps(args), bounds is not None, note)


def check_cuda() -> None:
    """Initialise CUDA, which no earlier check has tried, without allocating GPU memory.

    For a process of its own. Raises UsageError with the reason: every engine would fail alike.
    """
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        remedy = f"cannot be initialised ({first_line(error)}); in a container, give it the GPUs"
        raise UsageError("CUDA", None, f"{remedy} (--gpus all)") from None


def defaults(model: str, given: set[str], *, on_cpu: bool) -> dict[str, object]:
    """Values that replace vLLM's own defaults, by the names of its flags; ``given``: flags that the
    user gives."""
    values: dict[str, object] = dict(DEFAULTS)
    if on_cpu:
        values |= CPU_DEFAULTS
    elif model == str(MODEL_DIR) and "num_gpu_blocks_override" not in given:
        values["kv_cache_memory_bytes"] = DEMO_CACHE_BYTES
    return values


def _check_gpus(parallel: Any, flags: tuple[str, ...]) -> None:
    """Raise UsageError if vLLM would use other GPUs for an engine than those we assign."""
    used, given = parallel.world_size_across_dp, gpus_per_engine(flags)
    if used != given:
        remedy = (
            f"make an engine use {used} GPUs, but it gets {given}; give every parallel size as a"
            " flag with its whole name, and set no VLLM_DP_SIZE"
        )
        raise UsageError("vLLM flags", None, remedy)


_FIELD_ERROR: Final = re.compile(r"\d+ validation errors? for .*\n(\S+)\n +(.+?)(?: \[type=.*)?\n")
"""pydantic's message about a field: its name, and on the next line what is wrong with it."""
_MODEL_ERROR: Final = re.compile(r"\d+ validation errors? for .*\n +(?:\w+ error, )?(.+?) \[type=")
"""Its message about values that do not go together."""


def _reason(error: BaseException) -> str:
    """The line of vLLM's or pydantic's message that a user can act on."""
    if found := _FIELD_ERROR.match(str(error)):
        return f"{found[1]}: {found[2]}"
    if found := _MODEL_ERROR.match(str(error)):
        return found[1]
    return first_line(error, skip=("For further", "1 validation"))


def _try_request(model: str, config: Any, options: RequestOptions) -> Any:
    """Render a request as an engine would: what fails here would fail for every image.

    Returns vLLM's renderer for this model.
    """
    from PIL import Image

    try:
        renderer = renderer_from_config(config)
        InputProcessor(config, renderer)  # counts the tokens of an image, like each start
    except _MODEL_REFUSALS as error:
        architecture = config.model_config.hf_config.architectures[0]
        why = f"vLLM cannot prepare images for {architecture} ({_reason(_root(error))})"
        raise UsageError("--model", model, f"{why}; {ADVICE}") from None
    if len(set(renderer.get_tokenizer().encode(ASKED))) < MIN_DISTINCT_TOKENS:
        why = "its tokenizer knows no words (a tokenizer.json that is missing or empty)"
        raise UsageError("--model", model, f"{why}; complete the folder")
    try:
        RequestRenderer(renderer, options).render(ASKED, None, Image.new("RGB", (224, 224)))
    except _MODEL_REFUSALS as error:
        reason = _reason(_root(error))
        remedy = f"give its folder the chat_template.jinja it was trained with, or {ADVICE}"
        if TOO_LONG in reason:
            remedy = "raise --max-model-len"
        why = f"cannot be asked about an image ({reason})"
        raise UsageError("--model", model, f"{why}; {remedy}") from None
    return renderer


class _Trial:
    """The run's question, rendered as its engines will render it."""

    def __init__(self, renderer: Any, model: str, max_model_len: int) -> None:
        self._renderer = renderer
        self._model = model
        self._max_model_len = max_model_len

    def ask(self, question: Question, image: ImageConfig, max_tokens: int) -> str:
        """A warning for the user, or an empty text. Raises UsageError if the question cannot be
        asked about any item."""
        name, plain = question.prompt_name, question.plain
        self._requests = RequestRenderer(self._renderer, question.options)
        asked = self._tokens(name, plain)
        if plain.system and asked == self._tokens(name, replace(plain, system=None)):
            remedy = "leaves the prompt's `system` text out; move it below the front matter"
            raise UsageError("--prompt", name, f"the chat template of {self._model} {remedy}")
        if asked == self._tokens(name, replace(plain, user=f"{plain.user} (?)")):
            remedy = "leaves the prompt's text out; put the chat_template.jinja that the model was"
            remedy += " trained with into its folder"
            raise UsageError("--prompt", name, f"the chat template of {self._model} {remedy}")
        side = min(image.max_side, math.isqrt(image.max_image_pixels))
        needed = len(self._tokens(name, plain, side))
        if needed + max_tokens > self._max_model_len:
            raise UsageError("--max-tokens", max_tokens, self._no_room(needed, max_tokens))
        try:
            longest = len(self._tokens(name, question.longest, side))
        except UsageError:  # too long for vLLM to tokenise
            longest = self._max_model_len
        if longest + max_tokens <= self._max_model_len:
            return ""
        return (
            f"An element with very long metadata may not fit: the prompt {name} can take"
            f" {longest} tokens or more, --max-tokens {max_tokens}, and the model has room for"
            f" {self._max_model_len}. Such elements fail, or their captions are cut off."
        )

    def _no_room(self, needed: int, max_tokens: int) -> str:
        left = self._max_model_len - needed
        remedy = f"lower it to {left}, " if left >= MIN_TOKENS else ""
        return (
            f"the prompt and the largest image take {needed} tokens; with {max_tokens} more for the"
            f" caption, that exceeds the model's {self._max_model_len}; {remedy}raise"
            " --max-model-len, shorten the prompt, or lower --max-pixels or --max-side"
        )

    def _tokens(self, name: str, text: RenderedPrompt, side: int = 224) -> list[int]:
        """Tokens of the whole request with a square image. Raises UsageError."""
        from PIL import Image

        image = Image.new("RGB", (side, side))
        try:
            rendered = self._requests.render(text.user, text.system, image)
        except _MODEL_REFUSALS as error:
            remedy = "change the prompt, or give the model's folder another chat_template.jinja"
            reason = _reason(_root(error))
            if TOO_LONG in reason:
                remedy = "shorten the prompt, or raise --max-model-len"
            why = f"{self._model} cannot be asked this ({reason}); {remedy}"
            raise UsageError("--prompt", name, why) from None
        return list(rendered["prompt_token_ids"])


def _check_parser_name(args: AsyncEngineArgs) -> None:
    known = ReasoningParserManager.list_registered()
    name, plugin = args.reasoning_parser, args.reasoning_parser_plugin
    if name and not plugin and name not in known:
        raise UsageError("--reasoning-parser", name, f"is not one of {', '.join(known)}")


def _check_reasoning_parser(config: Any, options: RequestOptions) -> None:
    if not (name := config.structured_outputs_config.reasoning_parser):
        return
    try:
        _answer_text(config, cached_tokenizer_from_config(config.model_config), options)
    except (*_MODEL_REFUSALS, KeyError) as error:
        raise UsageError("--reasoning-parser", name, _reason(error)) from None


def _choose_backend(
    prompt_name: str, params: SamplingParams, args: AsyncEngineArgs, config: Any, tokenizer: Any
) -> None:
    """Choose how JSON is forced on every answer. Raises UsageError for a schema that cannot be
    enforced.

    Unless the user chooses, blanks between the fields are forbidden if possible: a model that may
    write blanks may write nothing else until it is cut off.
    """
    settings = config.structured_outputs_config
    is_ours = settings.backend == "auto" and not settings.disable_any_whitespace
    own = (settings.backend, settings.disable_any_whitespace)
    refusal: BaseException | None = None
    for backend, no_blanks in (*(COMPACT_BACKENDS if is_ours else ()), own):
        for chosen in (settings, args.structured_outputs_config):
            chosen.backend, chosen.disable_any_whitespace = backend, no_blanks
        try:
            params.clone().verify(
                config.model_config, config.speculative_config, settings, tokenizer
            )
        except _MODEL_REFUSALS as error:
            refusal = error
        else:
            return
    assert refusal is not None
    remedy = "simplify it, or name another --structured-outputs-config.backend"
    why = f"vLLM cannot force its schema on a model ({_reason(_root(refusal))})"
    raise UsageError("--prompt", prompt_name, f"{why}; {remedy}") from None


def _check_template_arguments(question: Question, model_config: Any, renderer: Any) -> None:
    """Raise UsageError for variables that the chat template does not have: vLLM would drop them."""
    given = dict(question.options.chat_template_kwargs)
    template = _template_of(renderer, model_config) if given else None
    if template is None:
        return
    taken = resolve_chat_template_kwargs(renderer.get_tokenizer(), template, given)
    if unknown := [variable for variable in given if variable not in taken]:
        why = f"the chat template of {model_config.model} has no variable `{unknown[0]}`"
        remedy = "take it out of `chat_template_kwargs`, or correct its name"
        raise UsageError("--prompt", question.prompt_name, f"{why}; {remedy}")


def _template_of(renderer: Any, model_config: Any) -> str | None:
    """A model's chat template; None if it is code in vLLM."""
    if not isinstance(renderer, HfRenderer):
        return None
    tokenizer = renderer.get_tokenizer()
    template: str | None = resolve_chat_template(tokenizer, None, None, model_config=model_config)
    return template


def chat_params(options: RequestOptions) -> ChatParams:
    """How vLLM renders the chat of a prompt."""
    arguments = {**options.chat_template_kwargs, "add_generation_prompt": True}
    return ChatParams(chat_template_kwargs=arguments)


def _messages(user: str, system: str | None, image: Image) -> list[dict[str, object]]:
    content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": user}]
    messages: list[dict[str, object]] = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _tokenization(renderer: Any) -> Any:
    """The chat template writes the special tokens itself."""
    return renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)


def _pixel_bounds(processor: Any, image: ImageConfig) -> dict[str, Any] | None:
    """Bounds for processors that scale by pixel count (Qwen-VL); others keep their own sizes."""
    takes = getattr(getattr(processor, "image_processor", None), "valid_kwargs", None)
    if not {"min_pixels", "max_pixels"} <= set(getattr(takes, "__annotations__", ())):
        return None
    # These processors name their pixel bounds after edges.
    return {"size": {"shortest_edge": image.min_pixels, "longest_edge": image.max_pixels}}


def start_engine(
    engine_args: bytes, sampling: SamplingConfig, options: RequestOptions, *, on_cpu: bool
) -> VllmEngine:
    """Start one engine; returns when it can take requests. Raises RuntimeError if it cannot.

    Must run on the main thread: the engine core dies with the thread that forked it.
    """
    args: AsyncEngineArgs = pickle.loads(engine_args)
    config = args.create_engine_config(UsageContext.LLM_CLASS)
    if on_cpu:  # after the configuration, which sets spawn: saves an import of vLLM
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    llm = AsyncLLM.from_vllm_config(
        config,
        usage_context=UsageContext.LLM_CLASS,
        enable_log_requests=args.enable_log_requests,
        disable_log_stats=args.disable_log_stats,
    )
    return VllmEngine(llm, sampling, options, _answer_text(config, llm.get_tokenizer(), options))


def _answer_text(config: Any, tokenizer: Any, options: RequestOptions) -> AnswerText:
    settings = config.structured_outputs_config
    if settings.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(settings.reasoning_parser_plugin)
    return AnswerText(tokenizer, settings.reasoning_parser, options)


def _reasoning_parser(name: str, tokenizer: Any, options: RequestOptions) -> Any:
    """None for a parser that can only follow an answer while it is generated."""
    make = ReasoningParserManager.get_reasoning_parser(name)
    parser = make(tokenizer, chat_template_kwargs=dict(options.chat_template_kwargs))
    try:
        return None if parser.extract_reasoning("", None) is None else parser
    except NotImplementedError:
        return None


class AnswerText:
    """Output of an engine → the text of its answer, in which `captions.reasoning` recognises
    reasoning.

    vLLM drops special tokens from a text. If marks of reasoning are among them, or a parser of
    vLLM's needs them, they are kept, and all others are removed here.
    """

    def __init__(self, tokenizer: Any, parser: str, options: RequestOptions = NO_OPTIONS) -> None:
        """``parser``: as in ``--reasoning-parser``; if empty, the marks of all models are looked
        for. Raises what vLLM raises for a parser that does not suit the tokenizer."""
        self._tokenizer = tokenizer
        self._parser = _reasoning_parser(parser, tokenizer, options) if parser else None
        # Without a parser, vLLM forces JSON from the first token on, so there is no reasoning.
        self._is_json = options.schema is not None and not parser
        special = set(getattr(tokenizer, "all_special_tokens", ()))
        self.keeps_special_tokens = bool(self._parser) or any(map(is_mark, special))
        # The longest first: one may be a prefix of another.
        dropped = sorted((t for t in special if not is_part_of_mark(t)), key=len, reverse=True)
        self._dropped = re.compile("|".join(map(re.escape, dropped)) or r"(?!)")
        self._opened = lru_cache(maxsize=64)(self._opened_by)

    def read(self, prompt_token_ids: Sequence[int], text: str) -> str:
        """The answer to a prompt."""
        reasoning, answer = None, text
        if self._parser is not None:
            reasoning, answer = self._parser.extract_reasoning(text, None)
        if answer == text:
            end = tuple(prompt_token_ids[-PROMPT_END_TOKENS:])
            text = text if self._is_json else self._opened(end) + text
        else:
            text = answer if answer and answer.strip() else reasoning_alone(reasoning or text)
        return self._dropped.sub("", text) if self.keeps_special_tokens else text

    def _opened_by(self, prompt_end: tuple[int, ...]) -> str:
        return opened_by(self._tokenizer.decode(list(prompt_end), skip_special_tokens=False))


class RequestRenderer:
    """A question and an image → the engine's own input."""

    def __init__(self, renderer: Any, options: RequestOptions) -> None:
        """``renderer``: of the engine."""
        self._renderer = renderer
        self._chat = chat_params(options)
        self._tokenize = _tokenization(renderer)
        self._asked = lru_cache(maxsize=MAX_QUESTIONS)(self._question_tokens)

    def render(self, user: str, system: str | None, image: Image) -> Any:
        """Tokens and processed pixels. Raises what vLLM raises."""
        tokens = self._asked(user, system)
        if tokens is None:
            messages = _messages(user, system, image)
            _, (rendered,) = self._renderer.render_chat([messages], self._chat, self._tokenize)
        else:
            prompt = {"prompt_token_ids": [*tokens], "multi_modal_data": {"image": [image]}}
            (rendered,) = self._renderer.render_cmpl([prompt], self._tokenize)
        return rendered

    def _question_tokens(self, user: str, system: str | None) -> tuple[int, ...] | None:
        """The tokens of a question, with a placeholder for its image: the chat template is applied
        and tokenized once, not for every image, which took a quarter of the rendering thread's
        time. None for a renderer that may look at the image, or adds more to a request."""
        from PIL import Image

        if not isinstance(self._renderer, HfRenderer):
            return None
        image = Image.new("RGB", (28, 28))
        _, prompt = self._renderer.render_messages(_messages(user, system, image), self._chat)
        (tokenized,) = self._renderer.tokenize_prompts([prompt], self._tokenize)
        if tokenized.get("multi_modal_data") != {"image": [image]} or set(tokenized) - _PLAIN_KEYS:
            return None
        return tuple(tokenized["prompt_token_ids"])


class VllmEngine:
    """One vLLM engine, asked request by request."""

    def __init__(
        self, llm: AsyncLLM, sampling: SamplingConfig, options: RequestOptions, answers: AnswerText
    ) -> None:
        self._llm = llm
        self._answers = answers
        self._sampling = sampling
        self._schema = options.schema
        self._renderer = RequestRenderer(llm.renderer, options)
        arguments = {"chat_template_kwargs": dict(options.chat_template_kwargs)}
        self._parser_arguments = arguments if options.chat_template_kwargs else None
        manager = getattr(getattr(llm.engine_core, "resources", None), "engine_manager", None)
        self._processes = tuple(getattr(manager, "processes", ()))
        # vLLM warms up its processor in another thread, during which nothing may be rendered.
        # This waits for it: there is no other public way to know when it ends.
        self._warm = asyncio.run_coroutine_threadsafe(
            llm.renderer.clear_mm_cache_async(), asyncio.get_running_loop()
        )

    def render(self, request: CaptionRequest, image: Image) -> object:
        """Chat template, tokens and processed pixels of one request."""
        with self._told(retryable=False):
            self._warm.result()
            return self._renderer.render(request.user, request.system, image)

    async def generate(self, request: CaptionRequest, rendered: object) -> Generation:
        """Generate one caption to its end."""
        params = sampling_params(self._sampling, request.temperature, request.seed, self._schema)
        params.skip_special_tokens = not self._answers.keeps_special_tokens
        params.skip_clone = True  # nobody else has them; a copy takes a tenth of the loop's time
        final = None
        with self._told(retryable=True):
            answers = self._llm.generate(
                *(rendered, params, str(request.lease)),
                reasoning_parser_kwargs=self._parser_arguments,
            )
            async for answer in answers:
                final = answer
        if final is None or final.outputs[0].finish_reason in (None, "abort", "error"):
            raise RequestRefused("the engine ended the request without an answer", retryable=True)
        output = final.outputs[0]
        return Generation(
            caption=self._answers.read(final.prompt_token_ids or (), output.text),
            finish_reason=output.finish_reason,
            prompt_tokens=len(final.prompt_token_ids or ()),
            output_tokens=len(output.token_ids),
        )

    @contextmanager
    def _told(self, *, retryable: bool) -> Iterator[None]:
        """Turn what vLLM raises into what a worker understands; what vLLM refuses once, it always
        refuses."""
        try:
            yield
        except EngineDeadError as error:
            raise EngineLost(str(error)) from error
        except VLLMClientError as error:
            raise RequestRefused(_reason(_root(error)), retryable=False) from error
        except Exception as error:  # whatever vLLM or a model's processor raises goes into a row
            if self._llm.errored:
                raise EngineLost(_reason(error)) from error
            raise RequestRefused(_reason(_root(error)), retryable=retryable) from error

    def progress(self) -> object:
        """The requests that the core works on, with the number of generated tokens of each."""
        states = self._llm.output_processor.request_states.items()
        return [
            (request_id, state.detokenizer and state.detokenizer.num_output_tokens())
            for request_id, state in states
        ]

    def exit_codes(self) -> tuple[int, ...]:
        """The exit codes of its cores that have ended."""
        for process in self._processes:  # a death is noticed before the process can be reaped
            process.join(DEATH_S)
        return tuple(p.exitcode for p in self._processes if p.exitcode is not None)

    def shutdown(self) -> None:
        """Stop the engine core and its workers."""
        self._llm.shutdown(timeout=5)


def sampling_params(
    run: SamplingConfig,
    temperature: float | None = None,
    seed: int | None = None,
    schema: str | None = None,
) -> SamplingParams:
    """vLLM's sampling of one request; ``schema``: that of the JSON to answer with.

    Raises ValueError for values that vLLM does not accept.
    """
    return SamplingParams(
        max_tokens=run.max_tokens,
        temperature=run.temperature if temperature is None else temperature,
        top_p=run.top_p,
        top_k=run.top_k,
        seed=run.seed if seed is None else seed,
        repetition_penalty=run.repetition_penalty,
        presence_penalty=run.presence_penalty,
        frequency_penalty=run.frequency_penalty,
        min_tokens=run.min_tokens,
        stop=list(run.stop),
        ignore_eos=run.ignore_eos,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
    )


def _root(error: BaseException) -> BaseException:
    """The first cause: vLLM wraps the errors of processors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
