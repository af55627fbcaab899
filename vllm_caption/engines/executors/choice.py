"""The executor of a run, as `--executor` says. Ray is imported only if it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vllm_caption.config import EngineConfig
from vllm_caption.engines import hardware
from vllm_caption.engines.executors.base import Executor
from vllm_caption.engines.executors.local import LocalExecutor


def local_gpus(config: EngineConfig) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` for each engine; None on CPU, and for engines on other machines.

    Raises UsageError when fewer GPUs are visible than the engines need.
    """
    if config.executor == "ray":
        return [None] * config.data_parallel_size
    return hardware.assign_gpus(config.data_parallel_size, config.gpus_per_engine)


def make_executor(
    config: EngineConfig, gpus: list[str | None], logs: Path, tell: Callable[[str], None]
) -> Executor:
    """``gpus``: as `local_gpus` gives them. Raises UsageError."""
    if config.executor == "local":
        return LocalExecutor(gpus, logs, check_timeout_s=config.start_timeout_s)
    from vllm_caption.engines.executors.ray import RayExecutor

    return RayExecutor(config, logs, tell, on_cpu=hardware.runs_on_cpu())
