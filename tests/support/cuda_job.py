"""The job under vLLM's CUDA build, as a user starts it, on GPUs that NVML describes.

`CUDA_PYTHON` names the interpreter of an environment with the CUDA build and this project. vLLM is
imported there alone, never in the test process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support.pretend_gpus import CUDA, NVML, SOURCES, PretendGpus, build_libraries, library_folder

PYTHON = Path(os.environ.get("CUDA_PYTHON", "python")).absolute()
LIMIT_S = 600.0
"""A longer run is killed, and its exit code is None."""
_OURS = ("vllm-caption: ", "Stopped: ")
"""Start of a line that says why a run did not start."""


@dataclass(frozen=True)
class Ended:
    """What a user saw of a run, and what its processes did."""

    exit_code: int | None
    seconds: float
    stdout: str
    stderr: str
    initialised: dict[int, str]
    """Process → its `CUDA_VISIBLE_DEVICES`, for each that initialised CUDA, in that order."""

    @property
    def reasons(self) -> list[str]:
        """The lines that say why the run did not start."""
        return [line for line in self.stderr.splitlines() if line.startswith(_OURS)]

    @property
    def devices(self) -> list[str]:
        """The devices of the processes that initialised CUDA."""
        return list(self.initialised.values())


STAND_IN = SOURCES.parent / "stand_in"
_NOT_THE_USERS = ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")
_PLAIN = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def real_environment() -> dict[str, str]:
    """The environment of a user of this machine and its GPUs."""
    return {name: os.environ[name] for name in os.environ if name not in _NOT_THE_USERS} | _PLAIN


def pretended_environment(gpus: PretendGpus, **more: str) -> dict[str, str]:
    """The environment of a user of these GPUs, of which CUDA finds none."""
    return real_environment() | gpus.environment(library_folder(NVML, CUDA)) | more


def stand_in_environment(gpus: PretendGpus, caches: Path, **more: str) -> dict[str, str]:
    """The environment of a user of these GPUs, on which everything works and nothing is computed.

    ``caches``: where vLLM and its compilers keep what they made; it is of no use for a real GPU.
    """
    libraries = _stand_in_libraries()
    return (
        real_environment()
        | gpus.environment(libraries)
        | {
            "LD_PRELOAD": str(libraries / CUDA),
            "PATH": "/usr/bin:/bin",  # without nvcc, and without the environment's own ninja
            "PYTHONPATH": str(STAND_IN),
            "VLLM_CACHE_ROOT": str(caches / "vllm"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "FLASHINFER_WORKSPACE_BASE": str(caches / "flashinfer"),
        }
        | more
    )


@cache
def _stand_in_libraries() -> Path:
    """A folder with the stand-in for CUDA and the pretended NVML."""
    folder = build_libraries(NVML)
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    asked = subprocess.run([PYTHON, "-c", where], capture_output=True, text=True, check=True)
    headers = Path(asked.stdout.strip()) / "nvidia" / "cu13" / "include"
    target = ["-o", str(folder / CUDA), f"-Wl,-soname,{CUDA}", str(STAND_IN / "gpu.cc")]
    includes = ["-I", str(SOURCES), "-I", str(headers)]
    compile_ = ["g++", "-O1", "-shared", "-fPIC", "-w", *includes, *target, "-ldl", "-lpthread"]
    subprocess.run(compile_, check=True)
    return folder


def start(folder: Path, environment: Mapping[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    """A command of this project, started in ``folder``; its output goes into files there."""
    with (folder / "stdout.txt").open("ab") as out, (folder / "stderr.txt").open("ab") as err:
        return subprocess.Popen(
            [str(PYTHON), "-m", "vllm_caption", *arguments],
            cwd=folder,
            env=dict(environment) | {"PRETEND_TRACE": str(folder / "trace.txt")},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def run(folder: Path, environment: Mapping[str, str], *arguments: str) -> Ended:
    """Run a command of this project to its end."""
    return end(start(folder, environment, *arguments), folder)


def end(process: subprocess.Popen[bytes], folder: Path) -> Ended:
    """Wait for a command that was started in ``folder``."""
    started_s = time.monotonic()
    try:
        process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        seconds = time.monotonic() - started_s
        if process.poll() is None:
            process.kill()
            process.wait()
    return Ended(
        process.returncode if seconds < LIMIT_S else None,
        seconds,
        (folder / "stdout.txt").read_text(),
        (folder / "stderr.txt").read_text(),
        _traced(folder / "trace.txt"),
    )


def _traced(path: Path) -> dict[int, str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {int(line.split(" ", 1)[0]): line.split(" ", 1)[1] for line in lines}
