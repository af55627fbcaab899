"""NVML with imaginary GPUs, in place of the driver's library."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest


class FakeNvml:
    """Some GPUs; handles are their indices."""

    def __init__(self, *gpus: tuple[int, int, int]) -> None:
        """For each GPU: utilisation, memory used of 100, temperature."""
        self.gpus = list(gpus)
        self.lost: set[int] = set()
        self.refused: set[str] = set()
        self.running = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer pynvml's questions from now on."""
        for name, answer in (
            ("nvmlInit", self.start),
            ("nvmlShutdown", self.stop),
            ("nvmlDeviceGetCount", lambda: len(self.gpus)),
            ("nvmlDeviceGetHandleByIndex", self.by_index),
            ("nvmlDeviceGetHandleByUUID", self.by_uuid),
            ("nvmlDeviceGetUUID", lambda handle: f"GPU-{handle}a-beef"),
            ("nvmlDeviceGetUtilizationRates", lambda h: SimpleNamespace(gpu=self.ask("use", h))),
            (
                "nvmlDeviceGetMemoryInfo",
                lambda h: SimpleNamespace(used=self.ask("memory", h), total=100),
            ),
            ("nvmlDeviceGetTemperature", lambda h, _: self.ask("heat", h)),
        ):
            monkeypatch.setattr(pynvml, name, answer)

    def start(self) -> None:
        if not self.gpus:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.running += 1

    def stop(self) -> None:
        self.running -= 1

    def by_index(self, index: int) -> int:
        if index >= len(self.gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def by_uuid(self, uuid: str) -> int:
        if not uuid.startswith("MIG-"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return 0

    def ask(self, what: str, handle: int) -> int:
        if handle in self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if what in self.refused:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.gpus[handle][("use", "memory", "heat").index(what)]
