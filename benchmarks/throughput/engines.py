"""vLLM engines for the contestants, with the settings that `vllm_caption.engines.vllm_engine` uses.

The processes are those of a GPU machine: one that renders, and one with the engine core and the
model. vLLM's default on CPU is a third process, which is slower; forking the core saves an import.
"""

from __future__ import annotations

import os
from typing import Any

import vllm.entrypoints.llm
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.abstract import Executor

from benchmarks.throughput.outcome import Task
from benchmarks.throughput.questions import messages
from vllm_caption.config import ImageConfig
from vllm_caption.engines.vllm_engine import CPU_DEFAULTS, DEFAULTS


def engine_kwargs(task: Task) -> dict[str, Any]:
    """The arguments of one engine, as the job gives them."""
    image = ImageConfig()
    size = {"shortest_edge": image.min_pixels, "longest_edge": image.max_pixels}
    return {
        **CPU_DEFAULTS,
        **DEFAULTS,
        "model": task.model,
        "max_num_seqs": task.max_num_seqs,
        "max_model_len": -1,
        "mm_processor_kwargs": {"size": size},
        **task.engine_kwargs,
    }


class _Engine(LLMEngine):  # type: ignore[misc]
    """vLLM's, with its core in a forked process of its own."""

    @classmethod
    def from_engine_args(
        cls, engine_args: EngineArgs, usage_context: Any = UsageContext.LLM_CLASS, **_: Any
    ) -> LLMEngine:
        config = engine_args.create_engine_config(usage_context)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # after the configuration sets spawn
        return cls(
            vllm_config=config,
            executor_class=Executor.get_class(config),
            log_stats=False,
            usage_context=usage_context,
            multiprocess_mode=True,
        )


def start_engine(task: Task) -> LLMEngine:
    """The engine alone."""
    return _Engine.from_engine_args(EngineArgs(**engine_kwargs(task)))


def start_llm(task: Task) -> LLM:
    """vLLM's offline front end, `LLM`."""
    vllm.entrypoints.llm.LLMEngine = _Engine
    return LLM(**engine_kwargs(task))


def sampling_params(task: Task) -> SamplingParams:
    """Greedy, as the job."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=task.max_tokens,
        ignore_eos=task.ignore_eos,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def conversation(task: Task, file: str, image: object) -> list[dict[str, object]]:
    """The messages of one request."""
    return messages(task.prompt, file, {"type": "image_pil", "image_pil": image})
