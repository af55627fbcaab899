"""A vLLM worker whose model step dies, raises or sleeps for chosen prompts: faults at the real
engine's boundary (`--worker-cls=support.faulty_worker.FaultyWorker`, with tests/ on PYTHONPATH).

A prompt is chosen by the bytes of a word in it, which the bundled model's byte-level tokenizer
leaves as they are.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from transformers import AutoTokenizer
from vllm.v1.worker.cpu_worker import CPUWorker


class FaultyWorker(CPUWorker):  # type: ignore[misc]
    """The CPU worker, with faults in its model step."""

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run one step over the scheduled requests."""
        for request in scheduler_output.scheduled_new_reqs:
            fault(self._text(request.prompt_token_ids))
        return super().execute_model(scheduler_output)

    def _text(self, token_ids: list[int]) -> str:
        if not hasattr(self, "_tokenizer"):
            self._tokenizer = AutoTokenizer.from_pretrained(self.model_config.tokenizer)
        return str(self._tokenizer.decode(token_ids))


class HungryLoader(CPUWorker):  # type: ignore[misc]
    """The CPU worker of a model whose weights do not fit."""

    def load_model(self, **options: Any) -> None:
        """Load nothing."""
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 130.00 GiB")


def fault(prompt: str) -> None:
    """What the word in a prompt asks for."""
    if "killer" in prompt:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hanger" in prompt:
        time.sleep(3600)
    if "raiser" in prompt:
        raise ZeroDivisionError("a step that nobody expected")
    if "hungry" in prompt:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
