"""What the GPUs of each engine do, as NVML says: utilisation, memory, temperature.

Never touches CUDA. Invariant: no driver, a GPU that is lost, or a value that a GPU does not give
(a MIG slice has no utilisation) costs that value, which is None, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

_FAULTS = (pynvml.NVMLError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class GpuReading:
    """The GPUs of one engine at one moment: mean utilisation, fullest memory, hottest chip."""

    gpu_percent: float | None = None
    memory_percent: float | None = None
    temperature_c: float | None = None


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
        """Let the driver's library go."""
        if self._initialised:
            _ask(pynvml.nvmlShutdown)


def _handles(names: Sequence[str]) -> Iterator[Any]:
    for name in filter(None, names):
        handle = _ask(_handle, name)
        if handle is not None:
            yield handle


def _handle(name: str) -> Any:
    """A GPU by its index, or by its UUID, of which CUDA takes the beginning."""
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
        memory_percent=max((value for value in full if value is not None), default=None),
        temperature_c=max((value for value in heat if value is not None), default=None),
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
