"""The GPUs of this machine before an engine has them: their names, and what NVML says of each.

A GPU is named as `CUDA_VISIBLE_DEVICES` names it: by its index (in PCI order, which is NVML's), by
its UUID or, for a MIG slice, by the slice's UUID. Never touches CUDA in this process: a driver that
holds a context takes memory from engine 0.

Invariant: where NVML does not know a value, that value alone is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, Final

import msgspec
import psutil
import pynvml

from vllm_caption.errors import UsageError

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_FAULTS: Final = (pynvml.NVMLError, UnicodeDecodeError)
_UNKNOWN: Final = (
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_FunctionNotFound,
    UnicodeDecodeError,
)
"""NVML does not know one value of a GPU that answers."""


class Holder(msgspec.Struct, frozen=True):
    """A process that holds memory of a GPU. ``num_bytes``: None where the driver does not say."""

    pid: int
    name: str
    num_bytes: int | None


class Gpu(msgspec.Struct, frozen=True):
    """One GPU or MIG slice. ``fault``: why it does not answer, empty when it does."""

    name: str
    product: str | None = None
    capability: tuple[int, int] | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    holders: tuple[Holder, ...] = ()
    fault: str = ""

    @property
    def is_slice(self) -> bool:
        """Whether this is a MIG slice."""
        return self.name.startswith("MIG-")


class GpuDriver(msgspec.Struct, frozen=True):
    """NVIDIA's driver. ``cuda``: the newest CUDA that it supports, as (13, 0). ``fault``: why there
    is none that answers, empty when there is."""

    version: str | None = None
    cuda: tuple[int, int] | None = None
    fault: str = ""


def visible_gpus() -> list[str]:
    """The names of the GPUs that engines may use, in order, every UUID complete. Empty without one.

    Raises UsageError for a name in `CUDA_VISIBLE_DEVICES` that no GPU has, or that one has twice.
    """
    visible = os.environ.get(VISIBLE)
    with _nvml() as driver:
        if visible is None:
            return [] if driver.fault else list(_all_names())
        words = (word.strip() for word in visible.split(","))
        words = (str(int(word)) if word.isdecimal() else word for word in words)  # 01 is 1
        names = list(takewhile(lambda word: word != "-1", filter(None, words)))  # as CUDA reads it
        return names if driver.fault else _completed(names)


def read_driver() -> GpuDriver:
    """What NVML says of the driver."""
    with _nvml() as driver:
        return driver


def describe_gpus(names: Sequence[str]) -> list[Gpu]:
    """What NVML says of these GPUs, as `visible_gpus` names them; names alone without NVML."""
    with _nvml() as driver:
        return [Gpu(name) if driver.fault else _describe(name) for name in names]


def handle_of(name: str) -> Any:
    """NVML's handle of a GPU; NVML must be initialised. Raises `pynvml.NVMLError`."""
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)


def ask(question: Callable[..., Any], *arguments: object) -> Any:
    """NVML's answer, or None where it has none."""
    try:
        return question(*arguments)
    except _FAULTS:
        return None


@contextmanager
def _nvml() -> Iterator[GpuDriver]:
    """NVML, and what it says of the driver."""
    try:
        pynvml.nvmlInit()
    except _FAULTS as error:
        yield GpuDriver(fault=str(error))
        return
    try:
        try:
            pynvml.nvmlDeviceGetCount()
        except _FAULTS as error:
            yield GpuDriver(fault=str(error))
            return
        cuda = max(_cuda_versions(), default=None)
        yield GpuDriver(
            ask(pynvml.nvmlSystemGetDriverVersion),
            None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
        )
    finally:
        ask(pynvml.nvmlShutdown)


def _cuda_versions() -> list[int]:
    """The CUDA of the driver, and that of the libcuda which is loaded here: in a container that
    brings NVIDIA's compatibility package, the second is newer and the one that counts."""
    questions = (pynvml.nvmlSystemGetCudaDriverVersion, pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return [version for version in map(ask, questions) if version is not None]


def _all_names() -> Iterator[str]:
    """Every GPU; of one that is cut into MIG slices its slices, since CUDA uses nothing else."""
    for index in range(pynvml.nvmlDeviceGetCount()):
        slices = list(_slices(index))
        yield from slices or [str(index)]


def _slices(index: int) -> Iterator[str]:
    """The UUIDs of a GPU's MIG slices."""
    gpu = ask(pynvml.nvmlDeviceGetHandleByIndex, index)
    if gpu is None or (ask(pynvml.nvmlDeviceGetMigMode, gpu) or [0])[0] == 0:
        return
    for number in range(ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, gpu) or 0):
        piece = ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, number)
        uuid = None if piece is None else ask(pynvml.nvmlDeviceGetUUID, piece)
        if uuid is not None:
            yield str(uuid)


def _completed(names: list[str]) -> list[str]:
    """The same GPUs: abbreviated UUIDs, which CUDA takes and vLLM does not, are completed; a GPU
    with MIG slices stands for the first of them, as it does for CUDA."""
    count = pynvml.nvmlDeviceGetCount()
    uuids = {str(index): _uuid(index) for index in range(count)}
    slices = {str(index): list(_slices(index)) for index in range(count)}
    indices = {uuid: index for index, uuid in uuids.items() if uuid}
    known = [*filter(None, uuids.values()), *(name for found in slices.values() for name in found)]
    completed: list[str] = []
    seen: set[str | None] = set()
    for name in names:
        full = name if name.isdecimal() else _matching(name, known)
        full = next(iter(slices.get(full) or slices.get(indices.get(full, "")) or []), full)
        if name.isdecimal() and name not in uuids:
            there = f"indices from 0 to {count - 1}" if count else "none"
            raise UsageError(VISIBLE, name, f"there is no such GPU; this machine has {there}")
        identity = uuids.get(full, full)
        if identity in seen:
            raise UsageError(VISIBLE, ",".join(names), f"names the same GPU twice ({name})")
        seen.add(identity)
        completed.append(full)
    return completed


def _uuid(index: int) -> str | None:
    """None for a GPU that does not answer."""
    gpu = ask(pynvml.nvmlDeviceGetHandleByIndex, index)
    return None if gpu is None else ask(pynvml.nvmlDeviceGetUUID, gpu)


def _matching(name: str, known: Sequence[str]) -> str:
    """The complete UUID that begins so. Raises UsageError."""
    found = [uuid for uuid in known if uuid.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(VISIBLE, name, f"fits {len(found)} GPUs ({', '.join(found)}); name one")
    if ask(pynvml.nvmlDeviceGetHandleByUUID, name) is not None:
        return name  # an older spelling of a slice, MIG-GPU-<UUID>/1/0
    there = ", ".join(known) or "no GPU that has a UUID"
    raise UsageError(VISIBLE, name, f"no GPU has this name; this machine has {there}")


def _describe(name: str) -> Gpu:
    try:
        gpu = handle_of(name)
        product = pynvml.nvmlDeviceGetName(gpu)
    except _UNKNOWN:
        product = None
    except pynvml.NVMLError as error:
        return Gpu(name, fault=str(error))
    total_bytes, free_bytes = _memory(gpu)
    # Capability is a property of the chip, which a slice does not repeat.
    chip = ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, gpu) or gpu
    capability = ask(pynvml.nvmlDeviceGetCudaComputeCapability, chip)
    return Gpu(
        name,
        product,
        None if capability is None else (capability[0], capability[1]),
        total_bytes,
        free_bytes,
        tuple(_holders(gpu)),
    )


def _memory(gpu: Any) -> tuple[int | None, int | None]:
    """Bytes in all and free ones, as CUDA counts them: without what the driver keeps to itself."""
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, gpu, pynvml.nvmlMemory_v2)
    if memory is not None:
        return memory.total - memory.reserved, memory.free
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, gpu)
    return (None, None) if memory is None else (memory.total, memory.free)


def _holders(gpu: Any) -> Iterator[Holder]:
    """The processes that hold memory, most first."""
    found = ask(pynvml.nvmlDeviceGetComputeRunningProcesses, gpu) or []
    for process in sorted(found, key=lambda each: -(each.usedGpuMemory or 0)):
        yield Holder(process.pid, _process_name(process.pid), process.usedGpuMemory)


def _process_name(pid: int) -> str:
    """Empty for a process that is not seen from here, as from inside a container."""
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return ""
