"""The job under vLLM's CUDA build, to its end, through deaths, stalls and reruns.

Each test exists twice: on the stand-in GPU, which computes nothing, and on this machine's own
(marked `gpu`, for `make test-gpu`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.cuda_job import (
    Ended,
    end,
    real_environment,
    run,
    stand_in_environment,
    start,
)
from support.job import captions, input_flags, rows, status
from support.pretend_gpus import PretendGpus

pytestmark = pytest.mark.timeout(900)
CORPUS = Path(__file__).parents[1] / "data" / "crello_like"
OUTCOMES = {
    file: item["outcome"]
    for file, item in json.loads((CORPUS / "expected.json").read_bytes())["items"].items()
}
SOME_FAILED = 1
"""The exit code of a run over the corpus: seven of its files are broken."""
FIXED = ("--model=demo", "--max-tokens=40", "--ignore-eos", "--no-checks", "--no-dedup")
WAIT_S = 300.0

needs_cxx = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@dataclass(frozen=True)
class Machine:
    """Where a test's job runs."""

    folder: Path
    environment: dict[str, str]
    one_gpu: tuple[str, ...]
    """The flags for one engine."""

    @property
    def output(self) -> Path:
        """The output folder of every run of one test."""
        return self.folder / "out"

    def flags(self, *more: str) -> tuple[str, ...]:
        """The flags of a run over the corpus."""
        return (*input_flags(CORPUS), f"--output={self.output}", *FIXED, *self.one_gpu, *more)

    def run(self, *more: str) -> Ended:
        """Run over the corpus to the end."""
        return run(self.folder, self.environment, *self.flags(*more))

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """A run over the corpus."""
        return start(self.folder, self.environment, *self.flags(*more))


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What vLLM compiles for the stand-in GPU, which all tests share."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(
    params=[
        pytest.param("stand-in", marks=needs_cxx),
        pytest.param("real", marks=pytest.mark.gpu),
    ]
)
def machine(request: pytest.FixtureRequest, tmp_path: Path, caches: Path) -> Machine:
    """A machine with one GPU."""
    one = ("--data-parallel-size=1",)
    if request.param == "real":
        return Machine(tmp_path, real_environment(), one)
    return Machine(tmp_path, stand_in_environment(PretendGpus(1), caches), one)


def assert_complete(machine: Machine, ended: Ended) -> None:
    """Every item of the corpus has the row and the caption that it should have."""
    assert ended.exit_code == SOME_FAILED, ended.stderr
    found = rows(machine.output)
    assert {file: row["status"] for file, row in found.items()} == OUTCOMES
    captioned = {file for file, outcome in OUTCOMES.items() if outcome == "captioned"}
    assert {file for file, text in captions(machine.output).items() if text} == captioned


def restarts(machine: Machine) -> int:
    """How many times engines were replaced."""
    return sum(engine["restarts"] for engine in status(machine.output)["engines"])


def engine_core(process: subprocess.Popen[bytes]) -> int:
    """The process of vLLM's engine core below a run."""
    family = psutil.Process(process.pid).children(recursive=True)
    cores = [child.pid for child in family if "EngineCore" in f"{child.name()} {child.cmdline()}"]
    assert cores, "no engine core found"
    return cores[0]


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], Any]) -> Any:
    """The first true value; fails if the run ends first or takes too long."""
    deadline_s = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < deadline_s, "took too long"
        time.sleep(0.05)
    return value


@pytest.fixture
def interrupted(machine: Machine) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has written some captions."""
    process = machine.start("--max-num-seqs=8", "--stall-timeout=20")
    try:
        wait_for(process, lambda: len(captions(machine.output)) >= 60)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("max_num_seqs", [8, 64])
def test_every_item_of_the_corpus_is_captioned_or_failed(
    machine: Machine, max_num_seqs: int
) -> None:
    ended = machine.run(f"--max-num-seqs={max_num_seqs}")
    assert_complete(machine, ended)
    assert restarts(machine) == 0


def test_a_killed_engine_core_is_replaced_and_nothing_is_lost(
    machine: Machine, interrupted: subprocess.Popen[bytes]
) -> None:
    os.kill(engine_core(interrupted), signal.SIGKILL)
    ended = end(interrupted, machine.folder)
    assert_complete(machine, ended)
    assert restarts(machine) == 1


def test_a_stopped_engine_core_is_replaced_and_nothing_is_lost(
    machine: Machine, interrupted: subprocess.Popen[bytes]
) -> None:
    os.kill(engine_core(interrupted), signal.SIGSTOP)
    ended = end(interrupted, machine.folder)
    assert_complete(machine, ended)
    assert restarts(machine) == 1


def test_a_killed_job_leaves_no_process_and_resumes(
    machine: Machine, interrupted: subprocess.Popen[bytes]
) -> None:
    family = psutil.Process(interrupted.pid).children(recursive=True)
    interrupted.kill()
    interrupted.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    made = {path: path.stat().st_mtime_ns for path in machine.output.rglob("*.txt")}
    ended = machine.run("--max-num-seqs=8")
    assert_complete(machine, ended)
    assert {path: path.stat().st_mtime_ns for path in made} == made


@needs_cxx
def test_two_engines_have_one_gpu_each_and_share_the_work(tmp_path: Path, caches: Path) -> None:
    uuids = [f"GPU-{name}-0000-4000-8000-000000000000" for name in ("1a2b3c4d", "1a3b3c4d")]
    environment = stand_in_environment(
        PretendGpus(2, uuids=uuids), caches, CUDA_VISIBLE_DEVICES=",".join(uuids)
    )
    machine = Machine(tmp_path, environment, ("--data-parallel-size=2",))
    # Slow enough to leave work for the second engine, which is up a minute after the first.
    ended = machine.run("--max-num-seqs=1", "--max-tokens=240")
    assert_complete(machine, ended)
    assert ended.devices == [uuids[0], *uuids]  # the flag check sees the first GPU
    made = [engine["captioned"] for engine in status(machine.output)["engines"]]
    assert min(made) > 0


@pytest.mark.gpu
def test_captions_of_drawn_shapes_are_true(tmp_path: Path) -> None:
    """The bundled model names every drawn shape correctly on a CPU, so it must on a GPU."""
    flags = ("demo", f"--output={tmp_path / 'out'}", "--data-parallel-size=1")
    ended = run(tmp_path, real_environment(), *flags)
    assert ended.exit_code == 0, ended.stderr
    assert "(30 of 30 match)" in ended.stdout
