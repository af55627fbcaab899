"""A worker that takes the time of a GPU instead of a core's, for what only several GPUs would show.

`--worker-cls=benchmarks.throughput.sleepy.SleepyWorker` sleeps 20 ms in each step and 10 ms for
each prompt that is prefilled in it, besides what the tiny model takes. `HollowWorker` sleeps the
same and leaves the arithmetic out, since eight models do not fit two cores: all else is real.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm.v1.worker.cpu_worker import CPUWorker


class SleepyWorker(CPUWorker):  # type: ignore[misc]
    """The CPU worker, which sleeps in each step besides. A step over more than ``flat_to``
    sequences takes longer in proportion; with more than ``most_seqs`` it has no memory."""

    step_s = 0.020
    prefill_s = 0.010
    flat_to: int | None = None
    most_seqs: int | None = None

    def compile_or_warm_up_model(self) -> Any:
        """Where a GPU's memory ends, if it is too small."""
        asked = self.scheduler_config.max_num_seqs
        if self.most_seqs is not None and asked > self.most_seqs:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return super().compile_or_warm_up_model()

    def execute_model(self, scheduler_output: Any) -> Any:
        """One step over what is scheduled."""
        if scheduler_output.total_num_scheduled_tokens:
            num_seqs = len(scheduler_output.num_scheduled_tokens)
            step_s = self.step_s * max(1.0, num_seqs / (self.flat_to or num_seqs))
            time.sleep(step_s + self.prefill_s * len(scheduler_output.scheduled_new_reqs))
        return super().execute_model(scheduler_output)


class HollowWorker(SleepyWorker):
    """The same without arithmetic: every hidden state is zero."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load it, then let its layers be."""
        super().load_model(*args, **kwargs)
        config = self.model_config
        hidden = config.get_hidden_size()
        merged = config.hf_config.vision_config.spatial_merge_size**2

        def forward(input_ids: Any, positions: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return torch.zeros(positions.shape[-1], hidden)

        def embed_multimodal(image_grid_thw: Any = None, **_: Any) -> list[torch.Tensor]:
            sizes = [int(torch.as_tensor(grid).prod()) // merged for grid in image_grid_thw]
            return [torch.zeros(size, hidden) for size in sizes]

        model = self.model_runner.get_model()
        model.forward = forward
        model.embed_multimodal = embed_multimodal


class FlatWorker(HollowWorker):
    """A step costs the same up to 32 sequences, and then grows: memory bandwidth, then compute."""

    step_s = 0.1
    prefill_s = 0.002
    flat_to = 32


class PrefillWorker(HollowWorker):
    """Large images and short captions of a small model: nearly all of the time is prefill."""

    step_s = 0.002
    prefill_s = 0.060


class CrampedWorker(HollowWorker):
    """There is memory for 16 sequences."""

    step_s = 0.1
    prefill_s = 0.002
    most_seqs = 16


class H100Worker(HollowWorker):
    """A 7B model on an H100."""

    step_s = 0.007
    prefill_s = 0.011


class FreeWorker(HollowWorker):
    """Kernels that cost nothing: what is left is what feeds them."""

    step_s = 0.0
    prefill_s = 0.0
