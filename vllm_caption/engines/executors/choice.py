"""Everything that depends on `--executor`. An executor is imported only if it is chosen.

Each `match` covers every `ExecutorName`: mypy reports the places that a new name must be added to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_caption.config import EngineConfig, ExecutorName
from vllm_caption.engines import hardware

if TYPE_CHECKING:
    from vllm_caption.engines.executors.base import Executor


def default_data_parallel_size(
    executor: ExecutorName, ray_address: str, gpus_per_engine: int
) -> int:
    """An engine for every available group of GPUs. Raises UsageError."""
    match executor:
        case "local":
            return hardware.default_data_parallel_size(gpus_per_engine)
        case "ray":
            from vllm_caption.engines.executors import ray

            return ray.default_data_parallel_size(ray_address, gpus_per_engine)


def local_gpus(config: EngineConfig) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` for each engine; None on CPU, and for engines on other machines.

    Raises UsageError when fewer GPUs are visible than the engines need.
    """
    match config.executor:
        case "local":
            return hardware.assign_gpus(config.data_parallel_size, config.gpus_per_engine)
        case "ray":
            return [None] * config.data_parallel_size


def first_starts_alone() -> bool:
    """Whether the other engines start only once the first one is up, wherever they run: on GPUs it
    compiles, and they find the result in the cache."""
    return not hardware.runs_on_cpu()


def make_executor(
    config: EngineConfig, gpus: list[str | None], logs: Path, tell: Callable[[str], None]
) -> Executor:
    """``gpus``: as returned by `local_gpus`. Raises UsageError."""
    match config.executor:
        case "local":
            from vllm_caption.engines.executors.local import LocalExecutor

            return LocalExecutor(gpus, logs, check_timeout_s=config.start_timeout_s)
        case "ray":
            from vllm_caption.engines.executors.ray import RayExecutor

            return RayExecutor(config, logs, tell, on_cpu=hardware.runs_on_cpu())
