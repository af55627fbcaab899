"""A file system with faults for a process that a test starts: `faulty_disk.c`, built once.

`faulty_disk(Fault("rename", errno.EINVAL, part=":"))` is the environment of such a process.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support import temporary
from support.pretend_gpus import compiler, needs_compiler

__all__ = ["Fault", "compiler", "faulty_disk", "folding_disk", "needs_compiler", "set_faults"]

SOURCE = Path(__file__).with_name("faulty_disk.c")


@dataclass(frozen=True, slots=True)
class Fault:
    """Of the calls whose path contains ``part``, number ``first`` to ``last`` (None: all from
    there on), and of those each ``every``-th, fail with ``number``."""

    call: str
    number: int
    part: str = "/"
    first: int = 1
    last: int | None = None
    every: int = 1

    def __str__(self) -> str:
        last = self.last or 0
        return f"{self.call} {self.number} {self.first} {last} {self.every} {self.part}"


@cache
def _library() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="faulty-disk-", dir=temporary.base))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "faulty_disk.so"
    target = ["-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run([compiler() or "cc", "-O1", "-w", "-shared", "-fPIC", *target], check=True)
    return library


def faulty_disk(*faults: Fault) -> dict[str, str]:
    """The environment of a process that meets these faults."""
    return {"LD_PRELOAD": str(_library()), "FAULTY_DISK": ";".join(map(str, faults))}


def set_faults(*faults: Fault) -> None:
    """These faults, from now on, in this process, which must have been started with `faulty_disk()`
    as its environment, and in what it forks."""
    ctypes.CDLL(None).set_faults(";".join(map(str, faults)).encode())


def folding_disk(folder: Path, *, composes: bool = False) -> dict[str, str]:
    """The environment of a process for which upper and lower case below ``folder`` are one name;
    with ``composes`` also two spellings of é."""
    variables = {"LD_PRELOAD": str(_library()), "FAULTY_DISK_FOLD": os.fspath(folder)}
    return variables | ({"FAULTY_DISK_COMPOSE": "1"} if composes else {})
