"""The GPUs of this machine: how they are named, and what NVML reads of them.

The one module that knows how CUDA names GPUs, and NVML. Never touches CUDA in this process: a
driver that holds a context takes memory from engine 0.

Invariant: without a driver, for a GPU that is lost, or for a value that a GPU does not have (a MIG
slice has no utilisation), that value alone is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
import pynvml

_FAULTS: Final = (pynvml.NVMLError, UnicodeDecodeError)


class GpuReading(msgspec.Struct, frozen=True):
    """The GPUs of one engine at one moment, by the names of `EngineFigures`: mean utilisation,
    fullest memory, hottest chip."""

    gpu_percent: float | None = None
    gpu_memory_percent: float | None = None
    gpu_temperature_c: float | None = None


def visible_gpus() -> list[str]:
    """The names of the GPUs that engines may use, in order: indices, UUIDs or MIG slices, as
    `CUDA_VISIBLE_DEVICES` takes them. Empty without a GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for part in visible.split(",") if (name := part.strip()) not in ("", "-1")]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


class Gpus:
    """The GPUs that were given to the engines."""

    def __init__(self, assigned: Sequence[str | None]) -> None:
        """``assigned``: `CUDA_VISIBLE_DEVICES` of each engine, None for an engine on the CPU."""
        self._handles: list[list[Any]] = [[] for _ in assigned]
        self._initialised = False
        if not any(assigned):
            return
        try:
            pynvml.nvmlInit()
        except _FAULTS:
            return
        self._initialised = True
        for handles, names in zip(self._handles, assigned, strict=True):
            handles.extend(_handles((names or "").split(",")))

    def read(self) -> list[GpuReading]:
        """The present state of each engine's GPUs."""
        return [_read(handles) for handles in self._handles]

    def close(self) -> None:
        """Release NVML."""
        if self._initialised:
            _ask(pynvml.nvmlShutdown)


def _handles(names: Sequence[str]) -> Iterator[Any]:
    for name in filter(None, names):
        handle = _ask(_handle, name)
        if handle is not None:
            yield handle


def _handle(name: str) -> Any:
    """A GPU by its index, or by its UUID, which CUDA also takes abbreviated."""
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        if str(pynvml.nvmlDeviceGetUUID(handle)).startswith(name):
            return handle
    return pynvml.nvmlDeviceGetHandleByUUID(name)  # a MIG slice


def _read(handles: Sequence[Any]) -> GpuReading:
    used = [_ask(_gpu_percent, handle) for handle in handles]
    full = [_ask(_memory_percent, handle) for handle in handles]
    heat = [_ask(_temperature_c, handle) for handle in handles]
    known = [value for value in used if value is not None]
    return GpuReading(
        gpu_percent=sum(known) / len(known) if known else None,
        gpu_memory_percent=max((value for value in full if value is not None), default=None),
        gpu_temperature_c=max((value for value in heat if value is not None), default=None),
    )


def _gpu_percent(handle: Any) -> float:
    return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)


def _memory_percent(handle: Any) -> float:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return float(100 * memory.used / max(memory.total, 1))


def _temperature_c(handle: Any) -> float:
    return float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))


def _ask(question: Callable[..., Any], *arguments: object) -> Any:
    """The answer, or None where there is none."""
    try:
        return question(*arguments)
    except _FAULTS:
        return None
