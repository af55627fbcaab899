"""GPUs that NVML describes on a machine without any.

The driver's library is built from `tests/cuda/pretend` once per test process, with the machine's C
compiler. `PretendGpus.install` puts it in place of pynvml's for one test, `PretendGpus.environment`
shows the GPUs to a process that a test starts.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pynvml
import pytest

from support import temporary

SOURCES = Path(__file__).parents[1] / "cuda" / "pretend"
NVML = "libnvidia-ml.so.1"
CUDA = "libcuda.so.1"
UNDER_ANOTHER_NAME = "libpretended-nvml.so"
"""For the test process: torch would find a loaded library with the driver's name."""
LIBRARIES = {NVML: "nvml.c", CUDA: "cuda.c", UNDER_ANOTHER_NAME: "nvml.c"}


def compiler() -> str | None:
    """The C compiler of this machine."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C compiler")


def build_libraries(*names: str) -> Path:
    """A new folder with these of `LIBRARIES`, which is removed when the test process ends."""
    folder = Path(tempfile.mkdtemp(prefix="pretend-gpus-", dir=temporary.base))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in names:
        target = ["-o", str(folder / name), f"-Wl,-soname,{name}", str(SOURCES / LIBRARIES[name])]
        subprocess.run([compiler() or "cc", "-O1", "-shared", "-fPIC", *target], check=True)
    return folder


library_folder = cache(build_libraries)
"""The same library, built once."""


@dataclass(frozen=True, slots=True)
class PretendGpus:
    """A machine's GPUs and its driver.

    A sequence holds one value for each GPU (its last one repeats); anything else counts for all.
    """

    number: int = 8
    name: str | Sequence[str] = "NVIDIA H100 80GB HBM3"
    capability: str | Sequence[str] = "9.0"
    gib: float | Sequence[float] = 80
    used_gib: float | Sequence[float] = 1
    mig_slices: int | Sequence[int] = 0
    uuids: Sequence[str] = ()
    """Default: `GPU-0000000N-0000-4000-8000-000000000000`; a slice is always
    `MIG-0000000N-000S-5000-8000-000000000000`."""
    processes: Sequence[tuple[int, int, float]] = ()
    """Processes that hold memory: GPU, process id, GiB."""
    lost: Sequence[int] = ()
    """GPUs that have fallen off the bus."""
    driver: str = "580.65.06"
    cuda: str = "13.0"
    """The newest CUDA that the driver supports."""
    init_error: int | None = None
    """Every initialisation of NVML fails with this `pynvml.NVML_ERROR_…`."""

    def variables(self) -> dict[str, str]:
        """The variables that the library reads."""
        return {
            "PRETEND_GPUS": str(self.number),
            "PRETEND_NAME": _list(self.name),
            "PRETEND_CAPABILITY": _list(self.capability),
            "PRETEND_GIB": _list(self.gib),
            "PRETEND_USED_GIB": _list(self.used_gib),
            "PRETEND_MIG": _list(self.mig_slices),
            "PRETEND_UUIDS": _list(self.uuids),
            "PRETEND_PROCESSES": _list([f"{gpu}:{pid}:{gib}" for gpu, pid, gib in self.processes]),
            "PRETEND_LOST": _list(self.lost),
            "PRETEND_DRIVER": self.driver,
            "PRETEND_CUDA": self.cuda,
            "PRETEND_INIT_ERROR": "" if self.init_error is None else str(self.init_error),
        }

    def environment(self, libraries: Path | None = None) -> dict[str, str]:
        """What a process needs to see these GPUs, `LD_LIBRARY_PATH` included.

        ``libraries``: a folder that holds `NVML`; by default one is built.
        """
        folder = str(libraries or library_folder(NVML))
        paths = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return self.variables() | {"LD_LIBRARY_PATH": os.pathsep.join(paths)}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let pynvml in this process see these GPUs until the test ends."""
        library = library_folder(UNDER_ANOTHER_NAME) / UNDER_ANOTHER_NAME
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in self.variables().items():
            monkeypatch.setenv(name, value)


def _list(values: object) -> str:
    if isinstance(values, str) or not isinstance(values, Sequence):
        return str(values)
    return ",".join(map(str, values))
