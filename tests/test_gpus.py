"""The figures of GPUs, through a fake NVML: this machine has no GPU."""

from __future__ import annotations

import pynvml
import pytest
from support.fake_nvml import FakeNvml
from support.pretend_gpus import PretendGpus, needs_compiler

from vllm_caption.monitoring.gpus import GpuReading, Gpus

NOTHING = GpuReading(None, None, None)


def read(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, *assigned: str | None
) -> list[GpuReading]:
    nvml.install(monkeypatch)
    gpus = Gpus(assigned)
    found = gpus.read()
    gpus.close()
    assert nvml.running == 0
    return found


def test_each_engine_has_the_figures_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml((97, 91, 64), (12, 40, 51))
    assert read(nvml, monkeypatch, "1", "0") == [GpuReading(12, 40, 51), GpuReading(97, 91, 64)]


def test_engine_on_two_gpus_has_their_mean_use_and_worst_memory_and_temperature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = FakeNvml((100, 91, 64), (50, 95, 51))
    assert read(nvml, monkeypatch, "0,1") == [GpuReading(75, 95, 64)]


@needs_compiler
def test_gpu_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(2, used_gib=[8, 40]).install(monkeypatch)
    gpus = Gpus(["GPU-00000001-0000-4000-8000-000000000000"])
    assert [reading.gpu_memory_percent for reading in gpus.read()] == [50]
    gpus.close()


def test_mig_slice_is_found_and_has_no_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml((1, 30, 40))
    nvml.refused = {"use"}
    assert read(nvml, monkeypatch, "MIG-17") == [GpuReading(None, 30, 40)]


def test_lost_gpu_costs_only_its_own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml((1, 1, 1), (2, 2, 2))
    nvml.lost = {0}
    assert read(nvml, monkeypatch, "0", "1") == [NOTHING, GpuReading(2, 2, 2)]


@pytest.mark.parametrize("name", ["7", "GPU-unknown", "not a gpu"])
def test_figures_of_a_missing_gpu_are_unknown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert read(FakeNvml((1, 1, 1)), monkeypatch, name) == [NOTHING]


def test_without_a_driver_all_figures_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(FakeNvml(), monkeypatch, "0", "1") == [NOTHING, NOTHING]


def test_engine_on_the_cpu_never_queries_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: pytest.fail("asked"))
    assert Gpus([None, None]).read() == [NOTHING, NOTHING]
