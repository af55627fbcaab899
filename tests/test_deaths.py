"""What is reported about the death of a process: who killed it, why, and what helps."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_caption.engines import deaths
from vllm_caption.engines.deaths import OomKills, describe_end
from vllm_caption.engines.executors.engine_log import with_limit
from vllm_caption.engines.memory_errors import with_advice

NONE = OomKills(0, 0)


@pytest.mark.parametrize(
    ("exit_code", "now", "said"),
    [
        (3, NONE, "exit code 3"),
        (-9, NONE, "killed from outside by SIGKILL"),
        (
            -9,
            OomKills(1, 1),
            "killed by the kernel: the memory limit of its control group; use few",
        ),
        (
            -9,
            OomKills(0, 1),
            "killed by the kernel: no memory was left on the machine; use fewer en",
        ),
        (-9, OomKills(None, None), "killed from outside by SIGKILL"),
        (-15, OomKills(1, 1), "killed from outside by SIGTERM"),
        (-signal.SIGBUS, NONE, "SIGBUS: a full /dev/shm"),
        (-signal.SIGXCPU, NONE, "SIGXCPU: the limit on its CPU time (ulimit -t)"),
        (-signal.SIGSEGV, NONE, "SIGSEGV: a bug in a library"),
        (-signal.SIGTRAP, NONE, "SIGTRAP"),
        (-200, NONE, "signal 200"),
    ],
)
def test_death_of_a_process_is_reported_with_its_cause(
    exit_code: int, now: OomKills, said: str
) -> None:
    assert describe_end(exit_code, NONE, now).startswith(said)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            "OSError: [Errno 24] Too many open files",
            "; raise the limit of open files (`ulimit -n`)",
        ),
        (
            "RuntimeError: [enforce fail at socket.cc:24] -1 vs -1. socket: Too many open files",
            "; raise the limit of open files (`ulimit -n`)",
        ),
        (
            "RuntimeError: can't start new thread",
            "; raise the limit of processes and threads (`ulimit -u`, or --pids-limit of Docker)",
        ),
        ("RuntimeError: CUDA error: the GPU is lost", ""),
    ],
)
def test_error_at_a_limit_of_the_system_names_the_limit(error: str, remedy: str) -> None:
    assert with_limit(error) == f"{error}{remedy}"


def test_out_of_memory_kill_gives_no_advice_about_gpu_memory() -> None:
    for now in (OomKills(1, 1), OomKills(0, 1)):
        said = describe_end(-9, NONE, now)
        assert with_advice(said) == said


@pytest.mark.parametrize(
    ("cgroup", "counter", "content"),
    [
        ("0::/job/step", "job/step/memory.events", "low 0\noom 2\noom_kill 2\n"),
        ("0::/job/step", "memory.events", "oom_kill 2\n"),  # a container sees only its own
        ("4:memory:/job\n0::/", "memory/job/memory.oom_control", "under_oom 0\noom_kill 2\n"),
        ("4:memory:/job", "memory/memory.oom_control", "oom_kill 2\n"),
        ("", "none", ""),
    ],
)
def test_kills_are_counted_in_the_control_group_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, counter: str, content: str
) -> None:
    for path, text in (
        (tmp_path / "proc/self/cgroup", cgroup),
        (tmp_path / "proc/vmstat", "pgfault 100\noom_kill 7\n"),
        (tmp_path / "cgroup" / counter, content),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(deaths, "PROC", tmp_path / "proc")
    monkeypatch.setattr(deaths, "CGROUPS", tmp_path / "cgroup")
    assert OomKills.now() == OomKills(2 if content else None, 7)


@contextlib.contextmanager
def small_group(limit: int) -> Iterator[Path]:
    """A control group with a memory limit, if this process may create one."""
    version_2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    name = f"vllm-caption-test-{os.getpid()}"
    group = deaths.CGROUPS / ("" if version_2 else "memory") / name
    try:
        group.mkdir()
    except OSError:
        pytest.skip("only root can make a control group; the counters are tested besides")
    try:
        limits = ("memory.max",) if version_2 else ("memory.limit_in_bytes",)
        for file in limits:
            (group / file).write_text(str(limit))
        yield group
    except OSError:
        pytest.skip("there is no memory controller here")
    finally:
        group.rmdir()


def test_process_over_the_memory_limit_of_its_group_is_recognised() -> None:
    eat = "import sys; sys.stdin.readline(); bytearray(400 << 20)"
    with small_group(100 << 20) as group:
        process = subprocess.Popen([sys.executable, "-c", eat], stdin=subprocess.PIPE)
        (group / "cgroup.procs").write_text(str(process.pid))
        before = OomKills.now()
        process.communicate(b"go\n", timeout=30)
        said = describe_end(process.returncode, before, OomKills.now())
    assert said.startswith("killed by the kernel: ")
