"""The only module that knows vLLM: checks its flags, starts one engine, asks it for captions.

`AsyncLLM` and not `LLM`: after the death of an engine core the synchronous loop hangs for ever.
Shapes: one request is one chat turn with one RGB image; one answer is one caption.
"""

from __future__ import annotations

import asyncio
import os
import pickle
from typing import TYPE_CHECKING, Any, NoReturn

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.renderers import ChatParams
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from vllm_caption.config import ImageConfig, SamplingConfig
from vllm_caption.errors import UsageError
from vllm_caption.messages import CaptionRequest
from vllm_caption.worker import EngineLost, Generation, RequestRefused

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
}
"""Every image is seen once, so caches only cost; a caption needs one image and no video."""


_REFUSALS = (ValueError, OSError, ImportError, NotImplementedError, VLLMClientError)
"""What vLLM, pydantic and the hub raise for a setting that cannot be used."""


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]
    """vLLM's own parser, with an error instead of an exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError("vLLM flags", None, message)


def check_engine_args(
    flags: tuple[str, ...], image: ImageConfig, sampling: SamplingConfig, *, on_cpu: bool
) -> bytes:
    """Parse vLLM's flags and resolve the model's configuration, without loading a weight.

    Returns the arguments of `start_engine`. Raises UsageError for an unknown flag, a bad value,
    or a model that is not there or takes no images.
    """
    try:
        sampling_params(sampling)
    except _REFUSALS as error:
        raise UsageError("sampling flags", None, _first_sentence(error)) from None
    parser = AsyncEngineArgs.add_cli_args(_Parser(add_help=False))
    given = {flag.split("=")[0].lstrip("-").replace("-", "_") for flag in flags}
    namespace = parser.parse_args(list(flags))
    args = AsyncEngineArgs.from_cli_args(namespace)
    for name, value in {**DEFAULTS, **(CPU_DEFAULTS if on_cpu else {})}.items():
        if not given & {name, f"no_{name}"}:
            setattr(args, name, value)
    try:
        config = args.create_engine_config(UsageContext.LLM_CLASS)
    except _REFUSALS as error:
        raise UsageError("--model", args.model, _first_sentence(error)) from None
    if not config.model_config.is_multimodal_model:
        remedy = "takes no images; choose a multimodal model such as Qwen/Qwen2.5-VL-7B-Instruct"
        raise UsageError("--model", args.model, remedy)
    if "mm_processor_kwargs" not in given:
        args.mm_processor_kwargs = _pixel_bounds(args.model, config.model_config, image)
    return pickle.dumps(args)


def _first_sentence(error: BaseException) -> str:
    """The part of vLLM's or pydantic's message that a user can act on, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("For further", "1 validation"))]
    return (telling or lines or [type(error).__name__])[0][:500]


def _pixel_bounds(model: str, config: Any, image: ImageConfig) -> dict[str, Any] | None:
    """Bounds for processors that scale by pixel count (Qwen-VL); others keep their own sizes."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(
        model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    if not {"min_pixels", "max_pixels"} <= set(processor.valid_kwargs.__annotations__):
        return None
    # These processors name their bounds on the number of pixels after edges.
    return {"size": {"shortest_edge": image.min_pixels, "longest_edge": image.max_pixels}}


def start_engine(engine_args: bytes, sampling: SamplingConfig, *, on_cpu: bool) -> VllmEngine:
    """Start one engine; returns when it can take requests. Raises RuntimeError if it cannot.

    Must run on the main thread: the engine core dies with the thread that forked it.
    """
    args: AsyncEngineArgs = pickle.loads(engine_args)
    config = args.create_engine_config(UsageContext.LLM_CLASS)
    if on_cpu:  # after the configuration, which sets spawn: an import of vLLM less
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    llm = AsyncLLM.from_vllm_config(config, usage_context=UsageContext.LLM_CLASS)
    return VllmEngine(llm, sampling)


class VllmEngine:
    """One vLLM engine, asked request by request."""

    def __init__(self, llm: AsyncLLM, sampling: SamplingConfig) -> None:
        self._llm = llm
        self._sampling = sampling
        self._chat = ChatParams(chat_template_kwargs={"add_generation_prompt": True})
        self._tokenize = llm.renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)

    async def render(self, request: CaptionRequest, image: Image) -> object:
        """Chat template, tokens and processed pixels of one request."""
        content = [
            {"type": "image_pil", "image_pil": image},
            {"type": "text", "text": request.user},
        ]
        messages: list[dict[str, object]] = [{"role": "user", "content": content}]
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        try:
            _, (rendered,) = await self._llm.renderer.render_chat_async(
                [messages], self._chat, self._tokenize
            )
        except Exception as error:
            raise RequestRefused(_first_sentence(_root(error)), retryable=False) from error
        return rendered

    async def generate(self, request: CaptionRequest, rendered: object) -> Generation:
        """Generate one caption to its end."""
        params = sampling_params(self._sampling, request.temperature, request.seed)
        final = None
        try:
            async for answer in self._llm.generate(rendered, params, str(request.lease)):
                final = answer
        except EngineDeadError as error:
            raise EngineLost(str(error)) from error
        except VLLMClientError as error:
            raise RequestRefused(_first_sentence(error), retryable=False) from error
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except Exception as error:
            if self._llm.errored:
                raise EngineLost(_first_sentence(error)) from error
            raise RequestRefused(_first_sentence(_root(error)), retryable=True) from error
        if final is None or final.outputs[0].finish_reason in (None, "abort", "error"):
            raise RequestRefused("the engine ended the request without an answer", retryable=True)
        output = final.outputs[0]
        return Generation(
            caption=output.text,
            finish_reason=output.finish_reason,
            prompt_tokens=len(final.prompt_token_ids or ()),
            output_tokens=len(output.token_ids),
        )

    def shutdown(self) -> None:
        """Stop the engine core and its workers."""
        self._llm.shutdown(timeout=5)


def sampling_params(
    run: SamplingConfig, temperature: float | None = None, seed: int | None = None
) -> SamplingParams:
    """vLLM's sampling of one request. Raises ValueError for values that vLLM does not take."""
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
    )


def _root(error: BaseException) -> BaseException:
    """The first cause: vLLM wraps what a processor says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
