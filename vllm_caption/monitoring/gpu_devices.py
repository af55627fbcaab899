"""The GPUs of this machine before engines use them: their names, and what NVML reports of each.

A GPU has the name that `CUDA_VISIBLE_DEVICES` uses: its index (in PCI order, like NVML's), its UUID
or, for a MIG slice, the UUID of the slice. Never touches CUDA in this process: a CUDA context here
would take memory from engine 0.

Invariant: if NVML does not know a value, only that value is None.
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
"""Errors of NVML if it does not know one value of a working GPU."""


class Holder(msgspec.Struct, frozen=True):
    """A process that holds GPU memory. ``num_bytes``: None if the driver does not report it."""

    pid: int
    name: str
    num_bytes: int | None


class Gpu(msgspec.Struct, frozen=True):
    """One GPU or MIG slice. ``fault``: why it does not respond; empty if it does."""

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
    """NVIDIA's driver. ``cuda``: the newest CUDA that it supports, such as (13, 0). ``fault``: why
    no driver responds; empty if one does."""

    version: str | None = None
    cuda: tuple[int, int] | None = None
    fault: str = ""


def visible_gpus() -> list[str]:
    """The names of the GPUs that engines may use, in order, with complete UUIDs; may be empty.

    Raises UsageError if `CUDA_VISIBLE_DEVICES` names an unknown GPU, or one twice.
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
    """What NVML reports of the driver."""
    with _nvml() as driver:
        return driver


def describe_gpus(names: Sequence[str]) -> list[Gpu]:
    """What NVML reports of these GPUs, named as by `visible_gpus`; only names without NVML."""
    with _nvml() as driver:
        return [Gpu(name) if driver.fault else _describe(name) for name in names]


def handle_of(name: str) -> Any:
    """NVML's handle of a GPU; NVML must be initialised. Raises `pynvml.NVMLError`."""
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)


def ask(question: Callable[..., Any], *arguments: object) -> Any:
    """NVML's answer, or None if it has none."""
    try:
        return question(*arguments)
    except _FAULTS:
        return None


@contextmanager
def _nvml() -> Iterator[GpuDriver]:
    """Initialise NVML and yield what it reports of the driver."""
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
    """The CUDA versions of the driver and of the libcuda loaded here: in a container with NVIDIA's
    compatibility package, the second is newer and the one that counts."""
    questions = (pynvml.nvmlSystemGetCudaDriverVersion, pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return [version for version in map(ask, questions) if version is not None]


def _all_names() -> Iterator[str]:
    """Every GPU, or its MIG slices if it has any, since CUDA can use nothing else of it."""
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
    """The same GPUs with complete UUIDs, since CUDA accepts abbreviations but vLLM does not; a GPU
    with MIG slices becomes its first slice, as for CUDA."""
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
    """The UUID of a GPU; None if it does not respond."""
    gpu = ask(pynvml.nvmlDeviceGetHandleByIndex, index)
    return None if gpu is None else ask(pynvml.nvmlDeviceGetUUID, gpu)


def _matching(name: str, known: Sequence[str]) -> str:
    """The complete UUID that starts with ``name``. Raises UsageError."""
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
    except _FAULTS as error:
        return Gpu(name, fault=str(error))
    try:
        product = pynvml.nvmlDeviceGetName(gpu)
    except _UNKNOWN:
        product = None
    except pynvml.NVMLError as error:
        return Gpu(name, fault=str(error))
    total_bytes, free_bytes = _memory(gpu)
    # NVML reports the capability of the whole GPU only, not of a slice.
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
    """Total and free bytes, as CUDA counts them: without the driver's reserve."""
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, gpu, pynvml.nvmlMemory_v2)
    if memory is not None:
        return memory.total - memory.reserved, memory.free
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, gpu)
    return (None, None) if memory is None else (memory.total, memory.free)


def _holders(gpu: Any) -> Iterator[Holder]:
    """The processes that hold memory, largest first."""
    found = ask(pynvml.nvmlDeviceGetComputeRunningProcesses, gpu) or []
    for process in sorted(found, key=lambda each: -(each.usedGpuMemory or 0)):
        yield Holder(process.pid, _process_name(process.pid), process.usedGpuMemory)


def _process_name(pid: int) -> str:
    """The name of a process; empty if it is not visible from here, as from inside a container."""
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return ""
