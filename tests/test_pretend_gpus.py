"""The pretended NVML answers as the real one does, in this process and in one that is started."""

from __future__ import annotations

import os
import subprocess
import sys

import pynvml
import pytest
from support.pretend_gpus import PretendGpus, needs_compiler

from vllm_caption.monitoring.gpu_devices import visible_gpus
from vllm_caption.monitoring.gpus import GpuReading, Gpus

pytestmark = needs_compiler
GIB = 2**30


def device(index: int) -> object:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def test_eight_gpus_are_counted_and_described(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(8).install(monkeypatch)
    assert visible_gpus() == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert pynvml.nvmlDeviceGetName(device(7)) == "NVIDIA H100 80GB HBM3"
    assert pynvml.nvmlDeviceGetCudaComputeCapability(device(7)) == (9, 0)
    assert pynvml.nvmlSystemGetDriverVersion() == "580.65.06"
    assert pynvml.nvmlSystemGetCudaDriverVersion() == 13000
    assert pynvml.nvmlDeviceGetPciInfo(device(7)).busId == "00000000:08:00.0"


def test_a_machine_may_hold_different_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = PretendGpus(
        3, name=["Tesla V100", "L4"], capability=["7.0", "8.9"], gib=[16, 24], used_gib=[0.5, 8]
    )
    machine.install(monkeypatch)
    names = [pynvml.nvmlDeviceGetName(device(index)) for index in range(3)]
    assert names == ["Tesla V100", "L4", "L4"]
    memory = pynvml.nvmlDeviceGetMemoryInfo(device(0))
    assert (memory.total, memory.used, memory.free) == (16 * GIB, GIB // 2, 31 * GIB // 2)
    assert pynvml.nvmlDeviceGetMemoryInfo(device(2)).free == 16 * GIB


def test_holders_of_memory_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(2, processes=[(1, 4711, 70), (1, 4712, 0.5)]).install(monkeypatch)
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(device(0)) == []
    holders = pynvml.nvmlDeviceGetComputeRunningProcesses(device(1))
    assert [(holder.pid, holder.usedGpuMemory) for holder in holders] == [
        (4711, 70 * GIB),
        (4712, GIB // 2),
    ]


def test_only_a_complete_uuid_names_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = "GPU-1a2b3c4d-0000-4000-8000-000000000000"
    PretendGpus(2, uuids=["GPU-ffffffff-0000-4000-8000-000000000000", uuid]).install(monkeypatch)
    device(0)
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    assert pynvml.nvmlDeviceGetIndex(handle) == 1
    with pytest.raises(pynvml.NVMLError, match="Not Found"):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-1a2b")


def test_mig_slices_are_devices_with_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(2, mig_slices=[0, 2]).install(monkeypatch)
    assert pynvml.nvmlDeviceGetMigMode(device(0)) == [0, 0]
    assert pynvml.nvmlDeviceGetMigMode(device(1)) == [1, 1]
    piece = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device(1), 1)
    assert pynvml.nvmlDeviceGetMemoryInfo(piece).total == 40 * GIB
    uuid = pynvml.nvmlDeviceGetUUID(piece)
    assert uuid == "MIG-00000001-0001-5000-8000-000000000000"
    assert pynvml.nvmlDeviceIsMigDeviceHandle(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    with pytest.raises(pynvml.NVMLError, match="Not Found"):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device(1), 2)
    assert Gpus([uuid]).read() == [GpuReading(None, pytest.approx(1.25), 45)]


def test_a_lost_gpu_costs_its_own_values(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(2, lost=[1]).install(monkeypatch)
    assert Gpus(["0", "1"]).read() == [GpuReading(50, pytest.approx(1.25), 45), GpuReading()]


def test_no_driver_and_a_driver_without_gpus_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PretendGpus(init_error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED).install(monkeypatch)
    with pytest.raises(pynvml.NVMLError, match="Driver Not Loaded"):
        pynvml.nvmlInit()
    assert visible_gpus() == []
    PretendGpus(0).install(monkeypatch)
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 0


def test_a_child_process_sees_them() -> None:
    code = "from vllm_caption.monitoring.gpu_devices import visible_gpus; print(visible_gpus())"
    environment = {name: os.environ[name] for name in os.environ if name != "CUDA_VISIBLE_DEVICES"}
    environment |= PretendGpus(2).environment()
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "['0', '1']\n"
