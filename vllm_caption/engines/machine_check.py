"""Checks whether engines can start on this machine, before one does.

`read_machine` reads the facts; the verdicts are pure functions of them. A verdict is a problem only
if no start could succeed; whatever is uncertain is left to the engine. Each sentence says what is
wrong, where, and what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import math
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from vllm_caption.config import EngineConfig
from vllm_caption.demo import MODEL_NAME
from vllm_caption.engine_flags import (
    CONFIG_FILE,
    GPU_MEMORY_UTILIZATION,
    given_flags,
    named_flags,
)
from vllm_caption.engines.hardware import explain_fault, platform
from vllm_caption.engines.model_folder import (
    ask_hub,
    cached_folder,
    check_model_folder,
    is_offline,
    is_on_hub,
    needs_weights,
    resolve_model,
)
from vllm_caption.engines.weights import Weights, read_weights
from vllm_caption.errors import UsageError
from vllm_caption.formatting import byte_size, did_you_mean, duration
from vllm_caption.monitoring.gpu_devices import (
    VISIBLE,
    Gpu,
    GpuDriver,
    Holder,
    describe_gpus,
    read_driver,
    visible_gpus,
)

State = Literal["ok", "warning", "problem"]
GIB: Final = 2**30
LEAST_CAPABILITIES: Final = {12: (7, 0), 13: (7, 5)}
"""CUDA's major version → the oldest GPUs that torch and vLLM are compiled for with it."""
LEAST_DRIVERS: Final = {12: "525", 13: "580"}
"""CUDA's major version → the first driver branch that runs all its minor versions (NVIDIA's table
"CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version Compatibility")."""
WORKING_BYTES: Final = GIB // 2
"""The least that an engine needs besides its weights: about what CUDA's context takes."""
UNCOUNTED: Final = frozenset(
    {CONFIG_FILE, "offload_backend", "offload_group_size", "cpu_offload_params", "offload_params"}
    | {"hf_overrides", "quantization_config", "additional_config", "model_class_overrides"}
    | {"language_model_only", "mm_encoder_only", "limit_mm_per_prompt", "worker_cls"}
)
"""Flags that may shrink the weights, or move them out of GPU memory, by an unknown amount."""
EIGHT_BITS: Final = ("fp8", "mxfp8", "int8", "experts_int8")
"""Prefixes of quantisations to 8 bits; all others use at least 4 bits."""
OUTSIDE: Final = "ipc_cache"
"""A load format whose weights another process may already hold on the same GPU."""
MIB: Final = 2**20
QUEUE_CHUNKS: Final = 10
QUEUE_CHUNK_MIB: Final = 24
"""Size of a chunk in the queue of answers, in an engine with several workers. vLLM requires room
for the largest queue when it makes one, although a queue takes up memory only as it fills."""
QUEUE_VARIABLE: Final = "VLLM_MQ_MAX_CHUNK_BYTES_MB"
"""vLLM's variable for the size of a chunk in the queue of requests."""
PATIENCE_S: Final = 20.0
"""How long to wait: the memory of a killed process is free again within seconds."""
SHM: Final = Path("/dev/shm")
MOST_UUIDS: Final = 8
_LEAVE_OUT: Final = f"leave this GPU out with {VISIBLE}"


class Check(msgspec.Struct, frozen=True):
    """One line of the result. ``transient``: the problem may be gone in a moment."""

    subject: str
    state: State
    text: str
    transient: bool = False

    def as_error(self) -> UsageError:
        """The problem, as a run reports it."""
        return UsageError(self.subject, None, self.text)


@dataclass(frozen=True, slots=True)
class Machine:
    """What engines of the CUDA build would find here.

    ``gpus``: those of each engine; ``visible``: how many GPUs an engine could have; ``compiler``
    and ``headers``: None if there is none; ``kernels``: whether Triton's own helper was compiled
    here before; ``shm_bytes``: free in /dev/shm, None if unknown.
    """

    driver: GpuDriver
    gpus: tuple[tuple[Gpu, ...], ...]
    visible: int
    cuda: tuple[int, int] | None
    compiler: str | None
    headers: Path | None
    kernels: bool
    shm_bytes: int | None


def check_machine(
    config: EngineConfig, gpus: Sequence[str | None], weights: Weights | None
) -> list[Check]:
    """Every check of the machine that engines will start on; empty with vLLM's CPU build.

    ``gpus``: `CUDA_VISIBLE_DEVICES` of each engine, as `hardware.assign_gpus` gives them.
    """
    if not any(gpus) or platform() == "cpu":
        return []
    return grouped(judge(read_machine([name or "" for name in gpus]), config, weights))


async def await_machine(
    config: EngineConfig, gpus: Sequence[str | None], tell: Callable[[str], None]
) -> None:
    """Return when engines can start, after waiting for memory that an ended process still holds.

    Raises UsageError with the reason if none can start, and for a model that is nowhere.
    """
    if not any(gpus):  # engines on the CPU, or on other machines
        await asyncio.to_thread(check_model_exists, config)
        return
    weights = await asyncio.to_thread(find_weights, config)
    give_up_s = time.monotonic() + PATIENCE_S
    waits = False
    while True:
        checks = await asyncio.to_thread(check_machine, config, gpus, weights)
        problem = problem_among(checks)
        if problem is None:
            break
        if not problem.transient or time.monotonic() >= give_up_s:
            raise problem.as_error()
        if not waits:
            told = f"{problem.subject}: {problem.text}"
            tell(f"{told}. Waiting up to {duration(PATIENCE_S)} for it.")
        waits = True
        await asyncio.sleep(1)
    for check in checks:
        if check.state == "warning":
            tell(f"{check.subject}: {check.text}")


def check_model_exists(config: EngineConfig) -> None:
    """Raise UsageError for a model that is nowhere. The Hub is asked only about one that is not on
    this machine."""
    model, flags = resolve_model(config.model), config.engine_args
    is_here = os.path.exists(model)  # noqa: PTH110 (never raises)
    if config.executor == "local" and not is_here and cached_folder(model, flags) is None:
        find_weights(config)


def find_weights(config: EngineConfig) -> Weights | None:
    """The model's weights, from its folder, the Hub's cache or the Hub itself; None if that is not
    known. Raises UsageError for a folder that cannot be loaded, and for a model that is nowhere."""
    model, flags = resolve_model(config.model), config.engine_args
    if os.path.exists(model) or model.startswith(("/", ".", "~")):  # noqa: PTH110 (never raises)
        return check_model_folder(model, flags)
    if not is_on_hub(model) or not needs_weights(flags):
        return None
    cached = cached_folder(model, flags)
    if is_offline():
        if cached is None:
            raise _absent(
                config, "HF_HUB_OFFLINE is set", "unset it, or download the model elsewhere"
            )
        return check_model_folder(str(cached), flags)
    with contextlib.suppress(UsageError, OSError):  # incomplete: vLLM downloads the rest
        if cached is not None and (found := read_weights(cached)):
            return found
    try:
        return ask_hub(model, flags)
    except FileNotFoundError:
        if cached is None:
            problem, remedy = "the Hub does not offer it", "check the name and HF_TOKEN"
            raise _absent(config, problem, remedy) from None
    except ConnectionError:
        if cached is None:
            problem, remedy = "the Hub cannot be reached", "check the name and the network"
            raise _absent(config, problem, remedy) from None
    except (OSError, ImportError):
        pass
    return None


def _absent(config: EngineConfig, problem: str, remedy: str) -> UsageError:
    """The error for a name that is neither a folder nor in the Hub's cache."""
    if "download_dir" in given_flags(config.engine_args) and is_offline():
        problem += " (offline, vLLM does not look in --download-dir)"
    if "/" not in config.model:
        remedy = did_you_mean(config.model, [MODEL_NAME]) or remedy
    text = f"is neither a folder nor in the Hub's cache, and {problem}; {remedy}"
    return UsageError("--model", config.model, text)


def grouped(checks: Iterable[Check]) -> list[Check]:
    """The same checks, in order, with those that several GPUs share merged into one."""
    subjects: dict[tuple[State, str, bool], list[str]] = {}
    for check in checks:
        listed = subjects.setdefault((check.state, check.text, check.transient), [])
        if check.subject not in listed:
            listed.append(check.subject)
    return [
        Check(_joined(listed), state, text, transient)
        for (state, text, transient), listed in subjects.items()
    ]


def _joined(subjects: Sequence[str]) -> str:
    """Such as `GPU 0, 1, 2`; of UUIDs, only the first few."""
    first, *more = subjects
    if len(more) >= MOST_UUIDS and not first.startswith("GPU "):
        more[MOST_UUIDS - 1 :] = [f"{len(subjects) - MOST_UUIDS} more"]
    return ", ".join((first, *(subject.removeprefix("GPU ") for subject in more)))


def problem_among(checks: Sequence[Check]) -> Check | None:
    """The first problem that will not go away by itself, or else the first of the others."""
    problems = [check for check in checks if check.state == "problem"]
    return min(problems, key=lambda check: check.transient, default=None)


# --- the facts --------------------------------------------------------------------------------


def read_machine(gpus: Sequence[str]) -> Machine:
    """Inspect this machine; takes milliseconds and starts nothing."""
    described = iter(describe_gpus([name for names in gpus for name in names.split(",")]))
    headers = _python_header()
    return Machine(
        driver=read_driver(),
        gpus=tuple(tuple(next(described) for _ in names.split(",")) for names in gpus),
        visible=len(visible_gpus()),
        cuda=torch_cuda(),
        compiler=find_compiler(),
        headers=headers if os.path.isfile(headers) else None,  # noqa: PTH113 (never raises)
        kernels=_has_compiled_before(),
        shm_bytes=_free_bytes(SHM),
    )


def torch_cuda() -> tuple[int, int] | None:
    """The CUDA that torch is built for, without importing it; None if unknown."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    try:
        text = (Path(found.submodule_search_locations[0]) / "version.py").read_text("utf-8")
    except OSError:
        return None
    version = re.search(r"""^cuda\b[^=]*= *['"](\d+)\.(\d+)""", text, re.MULTILINE)
    return version and (int(version[1]), int(version[2]))


def find_compiler() -> str | None:
    """The C compiler that Triton would call: `CC`, else gcc, else clang."""
    if named := os.environ.get("CC"):
        return shutil.which(named)
    return shutil.which("gcc") or shutil.which("clang")


def _python_header() -> Path:
    """`Python.h` of this Python: where Triton looks for it, or else where the compiler does."""
    scheme = sysconfig.get_default_scheme()
    if scheme == "posix_local":  # Debian's: the headers are where its packages put them
        scheme = "posix_prefix"
    included = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
    if not os.path.exists(included):  # noqa: PTH110 (never raises)
        named = (os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH"))
        for folder in filter(None, os.pathsep.join(named).split(os.pathsep)):
            if os.path.exists(found := Path(folder, "Python.h")):  # noqa: PTH110
                return found
    return included


def _has_compiled_before() -> bool:
    """Whether Triton's cache holds the helper that it compiles first."""
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")  # noqa: PTH111 (never raises)
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path(home, ".triton", "cache"))
    try:
        return next(cache.glob("*/cuda_utils*.so"), None) is not None
    except OSError:
        return False


def _free_bytes(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


# --- the verdicts -----------------------------------------------------------------------------


def judge(machine: Machine, config: EngineConfig, weights: Weights | None) -> Iterator[Check]:
    """What these facts mean for these engines."""
    yield judge_driver(machine.driver, machine.cuda)
    if machine.driver.fault:
        return  # nothing else is known
    per_engine = [list(_judge_gpus(gpus, machine, config, weights)) for gpus in machine.gpus]
    some_can = any(problem_among(checks) is None for checks in per_engine)
    for checks in per_engine:
        for check in checks:
            if check.state == "problem" and some_can:
                text = f"{check.text}; meanwhile the other engines run without it"
                yield Check(check.subject, "warning", text)
            else:
                yield check
    yield from _judge_compiler(machine)
    if config.gpus_per_engine > 1:
        yield _judge_shm(machine, config)


def judge_driver(driver: GpuDriver, cuda: tuple[int, int] | None) -> Check:
    """Whether there is a driver that is new enough for the CUDA that torch is built for."""
    if driver.fault and is_jetson():
        return Check("NVIDIA driver", "ok", "not asked, since a Jetson may have no NVML")
    if driver.fault:
        return Check("NVIDIA driver", "problem", explain_fault(driver.fault))
    supports = f", for CUDA up to {_version(driver.cuda)}" if driver.cuda else ""
    if cuda and driver.cuda and driver.cuda[0] < cuda[0] and not _has_compatibility():
        least = LEAST_DRIVERS.get(cuda[0])
        text = (
            f"{driver.version} supports CUDA up to {_version(driver.cuda)}, and the installed torch"
            f" needs CUDA {_version(cuda)}; update the driver"
            + (f" to {least} or newer" if least else "")
        )
        return Check("NVIDIA driver", "problem", text)
    return Check("NVIDIA driver", "ok", f"{driver.version}{supports}")


def is_jetson() -> bool:
    """Whether vLLM takes this machine for a Jetson, which may have a driver without NVML."""
    signs = ("/etc/nv_tegra_release", "/sys/class/tegra-firmware")
    return any(map(os.path.exists, signs))  # never raises


def _has_compatibility() -> bool:
    """Whether vLLM is told to load NVIDIA's compatibility package, which serves older drivers."""
    said = os.environ.get("VLLM_ENABLE_CUDA_COMPATIBILITY", "")
    return said.strip().lower() in ("1", "true")


def _judge_gpus(
    gpus: Sequence[Gpu], machine: Machine, config: EngineConfig, weights: Weights | None
) -> Iterator[Check]:
    """The GPUs of one engine: each one's state, then whether the model fits."""
    for gpu in gpus:
        yield _judge_gpu(gpu, machine)
    if len(gpus) > 1 and any(gpu.is_slice for gpu in gpus):
        text = "a MIG slice works alone; use --tensor-parallel-size 1 --pipeline-parallel-size 1"
        yield Check(_name(gpus[0]), "problem", text)
    if not any(gpu.fault for gpu in gpus):
        budget = Budget.of(gpus, config)
        if budget is not None:
            most = 1 if any(gpu.is_slice for gpu in gpus) else machine.visible
            yield from _judge_memory(gpus, budget, config, weights, most)


def _judge_gpu(gpu: Gpu, machine: Machine) -> Check:
    if gpu.fault:
        text = f"does not answer (NVML: {gpu.fault}); leave it out with {VISIBLE}, or reset it"
        return Check(_name(gpu), "problem", text)
    least = LEAST_CAPABILITIES.get(machine.cuda[0]) if machine.cuda else None
    if machine.cuda and least and gpu.capability and gpu.capability < least:
        name, version = gpu.product or "the GPU", _version(gpu.capability)
        text = (
            f"{name} has compute capability {version}, and vLLM's build for"
            f" CUDA {_version(machine.cuda)} needs {_version(least)} or higher; use a newer GPU, or"
            f" leave this one out with {VISIBLE}"
        )
        return Check(_name(gpu), "problem", text)
    words = [gpu.product or "unknown GPU"]
    if gpu.capability:
        words.append(f"compute capability {_version(gpu.capability)}")
    if gpu.total_bytes is not None and gpu.free_bytes is not None:
        words.append(f"{byte_size(gpu.free_bytes)} of {byte_size(gpu.total_bytes)} free")
    if gpu.holders:
        words.append(f"held by {_holders(gpu.holders)}")
    return Check(_name(gpu), "ok", ", ".join(words))


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory of the smallest GPU of an engine, in bytes: ``total`` and ``free`` of the GPU, how
    much must be free before vLLM starts, and the most that vLLM then takes for everything."""

    total: int
    free: int
    asked: int
    wanted: int

    @staticmethod
    def of(gpus: Sequence[Gpu], config: EngineConfig) -> Budget | None:
        """None if NVML does not know a GPU's memory."""
        known = [(gpu.total_bytes, gpu.free_bytes) for gpu in gpus]
        sizes = [(total, free) for total, free in known if total is not None and free is not None]
        if len(sizes) < len(known):
            return None
        total = min(total for total, _ in sizes)
        flags = named_flags(config.engine_args)
        share = _number(flags.get("gpu_memory_utilization")) or GPU_MEMORY_UTILIZATION
        asked = int(share * total)
        wanted = total if "kv_cache_memory_bytes" in flags else asked
        return Budget(total, min(free for _, free in sizes), asked, wanted)


def _judge_memory(
    gpus: Sequence[Gpu], budget: Budget, config: EngineConfig, weights: Weights | None, most: int
) -> Iterator[Check]:
    """Whether the weights fit, and whether other processes leave the memory that vLLM requires.

    ``most``: how many GPUs one engine could have.
    """
    flags = named_flags(config.engine_args)
    known = weights is not None and UNCOUNTED.isdisjoint(given_flags(config.engine_args))
    all_here = flags.get("load_format") != OUTSIDE and CONFIG_FILE not in flags
    needed = weight_bytes(weights, config) if weights is not None and known else None
    where = "" if config.gpus_per_engine == 1 else f" on each of an engine's {len(gpus)} GPUs"
    if needed is not None and needed + WORKING_BYTES > budget.wanted:
        has = f"{gpus[0].product or 'the GPU'} has: {byte_size(budget.total)}"
        if budget.wanted < budget.total:
            has += f" ({byte_size(budget.wanted)} of them for an engine)"
        text = (
            f"its weights take {byte_size(needed)}{_precision(config, weights)}{where}, more than"
            f" {has};"
            f" {_what_would_fit(needed, budget, config, most)}"
        )
        yield Check(f"--model {config.model}", "problem", text)
    elif needed is not None and needed + WORKING_BYTES > budget.free:
        subject, held = _in_use(gpus, needed + WORKING_BYTES)
        text = (
            f"{byte_size(budget.free)} of {byte_size(budget.total)} are free{held}, and the weights"
            f" of --model {config.model} take {byte_size(needed)}{where}; end what holds the"
            f" memory, or {_LEAVE_OUT}"
        )
        yield Check(subject, "problem", text, transient=True)
    elif budget.free < budget.asked and all_here:
        fits = int(100 * (budget.free - WORKING_BYTES) / budget.total) / 100
        is_enough = (needed or 0) + WORKING_BYTES <= fits * budget.total
        subject, held = _in_use(gpus, budget.asked)
        text = (
            f"{byte_size(budget.free)} of {byte_size(budget.total)} are free{held}, and an engine"
            f" asks for {byte_size(budget.asked)}; end what holds the memory, or "
            + (f"use --gpu-memory-utilization {fits:.2f}" if is_enough else _LEAVE_OUT)
        )
        yield Check(subject, "problem", text, transient=True)


def _in_use(gpus: Sequence[Gpu], wanted: int) -> tuple[str, str]:
    """The GPUs of an engine with less free memory than ``wanted``, and the processes that hold it,
    as text."""
    short = [gpu for gpu in gpus if gpu.free_bytes is not None and gpu.free_bytes < wanted]
    holders = [holder for gpu in short for holder in gpu.holders]
    return _joined([*map(_name, short)]), f", held by {_holders(holders)}" if holders else ""


def weight_bytes(weights: Weights, config: EngineConfig) -> int:
    """The least that the weights take on each GPU of an engine."""
    flags = named_flags(config.engine_args)
    per_weight = 4.0 if flags.get("dtype") in ("float32", "float") else 2.0
    quantization = flags.get("quantization", "")
    if quantization or weights.packed_on_load:  # while loading; stored ones stay as they are
        per_weight = 1.0 if quantization.startswith(EIGHT_BITS) else 0.5
    offloaded = int((_number(flags.get("cpu_offload_gb")) or 0) * GIB)
    return max(weights.loaded_bytes(per_weight) // config.gpus_per_engine - offloaded, 0)


def _precision(config: EngineConfig, weights: Weights | None) -> str:
    given = given_flags(config.engine_args) & {"quantization", "dtype"}
    is_16_bit = weights and weights.are_floats and not weights.packed_on_load and not given
    return " in 16 bit" if is_16_bit else ""


def _what_would_fit(needed: int, budget: Budget, config: EngineConfig, most: int) -> str:
    whole = needed * config.gpus_per_engine
    sizes = [size for size in (2, 4, 8, 16) if size <= most]
    more = next((n for n in sizes if whole // n + WORKING_BYTES <= budget.wanted), None)
    spread = f", or {more} GPUs per engine with --tensor-parallel-size {more}" if more else ""
    return (
        "use a quantised model (such as Qwen/Qwen2.5-VL-7B-Instruct-AWQ)"
        f"{',' if more else ' or'} a smaller one (Qwen/Qwen2.5-VL-3B-Instruct){spread}"
    )


def _judge_compiler(machine: Machine) -> Iterator[Check]:
    """Triton compiles a helper with the C compiler when an engine starts for the first time."""
    if machine.compiler is None and not machine.kernels:
        named = os.environ.get("CC")
        absent = f"CC names {named}, which is" if named else "gcc and clang are"
        text = (
            f"{absent} not there, and Triton needs a compiler when an engine starts; install one"
            " (apt install gcc, dnf install gcc), or name one with CC"
        )
        yield Check("C compiler", "problem", text)
    elif machine.compiler is not None:
        yield Check("C compiler", "ok", machine.compiler)
    if machine.headers is None and not machine.kernels:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        text = (
            f"{_python_header()} is not there, and Triton needs it when an engine starts; install"
            f" python{version}-dev (Debian, Ubuntu) or python{version}-devel (Fedora, Red Hat)"
        )
        yield Check("Python.h", "problem", text)
    elif machine.headers is not None:
        yield Check("Python.h", "ok", str(machine.headers))


def _judge_shm(machine: Machine, config: EngineConfig) -> Check:
    if machine.shm_bytes is None:
        return Check(str(SHM), "problem", "is not there; engines with several GPUs need it")
    chunk_mib = max(_number(os.environ.get(QUEUE_VARIABLE)) or 0, QUEUE_CHUNK_MIB)
    needed = int(chunk_mib * MIB) * QUEUE_CHUNKS
    free = f"{byte_size(machine.shm_bytes)} free"
    if machine.shm_bytes < needed:
        text = (
            f"{free}, and engines with {config.gpus_per_engine} GPUs each need {byte_size(needed)};"
            " start the container with --ipc=host or --shm-size=8g"
        )
        return Check(str(SHM), "problem", text)
    return Check(str(SHM), "ok", free)


def _name(gpu: Gpu) -> str:
    return f"GPU {gpu.name}" if gpu.name.isdecimal() else gpu.name


def _holders(holders: Sequence[Holder]) -> str:
    """Such as `process 4000 (python, 69.0 GiB)`; only the first two."""
    more = [f"{len(holders) - 2} more"] if len(holders) > 2 else []
    return " and ".join([*map(_in_words, holders[:2]), *more])


def _in_words(holder: Holder) -> str:
    size = "" if holder.num_bytes is None else byte_size(holder.num_bytes)
    about = ", ".join(filter(None, (holder.name, size)))
    return f"process {holder.pid} ({about})" if about else f"process {holder.pid}"


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _number(text: str | None) -> float | None:
    """None if there is none; vLLM reports what is wrong with it."""
    try:
        number = math.nan if text is None else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
