"""The GPUs of the engines while they run: utilisation, memory, temperature.

Invariant: if there is no driver, a GPU is lost, or a GPU does not report a value (a MIG slice has
no utilisation), only that value is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pynvml

from vllm_caption.monitoring.gpu_devices import ask, handle_of


class GpuReading(msgspec.Struct, frozen=True):
    """The GPUs of one engine at one moment, with the names of `EngineFigures`: mean utilisation,
    fullest memory, highest temperature."""

    gpu_percent: float | None = None
    gpu_memory_percent: float | None = None
    gpu_temperature_c: float | None = None


class Gpus:
    """The GPUs assigned to the engines."""

    def __init__(self, assigned: Sequence[str | None]) -> None:
        """``assigned``: `CUDA_VISIBLE_DEVICES` of each engine; None for an engine on the CPU."""
        self._handles: list[list[Any]] = [[] for _ in assigned]
        self._initialised = False
        if not any(assigned):
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        self._initialised = True
        for handles, names in zip(self._handles, assigned, strict=True):
            handles.extend(_handles((names or "").split(",")))

    def read(self) -> list[GpuReading]:
        """The current state of each engine's GPUs."""
        return [_read(handles) for handles in self._handles]

    def close(self) -> None:
        """Release NVML."""
        if self._initialised:
            ask(pynvml.nvmlShutdown)


def _handles(names: Sequence[str]) -> Iterator[Any]:
    for name in filter(None, names):
        handle = ask(handle_of, name)
        if handle is not None:
            yield handle


def _read(handles: Sequence[Any]) -> GpuReading:
    used = [ask(_gpu_percent, handle) for handle in handles]
    full = [ask(_memory_percent, handle) for handle in handles]
    heat = [ask(_temperature_c, handle) for handle in handles]
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
