"""On a machine on which no engine can start, the user reads one line within a minute.

NVML describes the machine (`PretendGpus`) and CUDA finds no device, so no engine ever starts: the
check of the flags, which sees the first engine's GPUs, is the last that can refuse. What differs
is the cause that the user reads. Nothing is tried twice.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cuda_job import PYTHON, Ended, pretended_environment, run
from support.job import input_flags
from support.pretend_gpus import PretendGpus, needs_compiler

pytestmark = [needs_compiler, pytest.mark.timeout(900)]
TOLD_WITHIN_S = 60.0
BEFORE_ANY_START = 2
"""The exit code of a run that starts nothing."""
V100 = PretendGpus(4, name="Tesla V100-SXM2-32GB", capability="7.0", gib=32)
T4 = PretendGpus(8, name="Tesla T4", capability="7.5", gib=16, used_gib=0.25)
OLD_DRIVER = PretendGpus(8, driver="550.54.15", cuda="12.4")
TAKEN = PretendGpus(8, used_gib=70, processes=[(gpu, 4000 + gpu, 69) for gpu in range(8)])

Job = Callable[..., Ended]


@pytest.fixture
def job(tmp_path: Path, shapes: Path) -> Job:
    """Runs the job on a machine: (GPUs, *flags, **environment)."""

    def run_job(gpus: PretendGpus, *flags: str, **more: str) -> Ended:
        output = f"--output={tmp_path / 'out'}"
        variables = pretended_environment(gpus, **more)
        ended = run(tmp_path, variables, *input_flags(shapes), output, "--quiet", *flags)
        print(f"exit code {ended.exit_code} after {ended.seconds:.0f} s; CUDA: {ended.initialised}")
        print(ended.stderr)
        return ended

    return run_job


def the_line(ended: Ended) -> str:
    """The one line that says why the run did not start."""
    assert len(ended.reasons) == 1
    return ended.reasons[0]


def assert_refused(ended: Ended, *parts: str) -> None:
    """Nothing was started, and one line says why; all these regular expressions match it."""
    line = the_line(ended)
    assert [part for part in parts if not re.search(part, line)] == []
    assert ended.exit_code == BEFORE_ANY_START
    assert ended.initialised == {}
    assert ended.seconds < TOLD_WITHIN_S


def assert_cuda_refused(ended: Ended, first: str) -> None:
    """CUDA was tried once, by a process that saw the first engine's device, and one line says why
    nothing was started."""
    assert "NVIDIA driver" in the_line(ended)
    assert ended.exit_code == BEFORE_ANY_START
    assert ended.devices == [first]
    assert ended.seconds < TOLD_WITHIN_S


ASSIGNED = """
from vllm_caption.commands.run import parse_run
from vllm_caption.engines.executors.choice import local_gpus
print(*local_gpus(parse_run(["--model=demo"]).engine))
"""


def given(gpus: PretendGpus, **more: str) -> list[str]:
    """The device of each engine of a run on this machine."""
    environment = pretended_environment(gpus, **more)
    command = [str(PYTHON), "-c", ASSIGNED]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return told.stdout.split()


def test_cuda_that_finds_no_gpu_is_reported_once(job: Job) -> None:
    gpus = PretendGpus(8)
    ended = job(gpus, "--model=demo")
    assert_cuda_refused(ended, "0")
    assert given(gpus) == ["0", "1", "2", "3", "4", "5", "6", "7"]


def test_gpus_too_small_for_the_weights_are_named_with_what_fits(
    job: Job, seven_billion: Path
) -> None:
    ended = job(T4, f"--model={seven_billion}")
    assert_refused(ended, "15.4 GiB", "Tesla T4", r"16(\.0)? GiB", "quanti", "tensor-parallel")


def test_memory_held_by_others_does_not_count_as_free(job: Job, seven_billion: Path) -> None:
    ended = job(TAKEN, f"--model={seven_billion}")
    assert_refused(ended, "15.4 GiB", r"10(\.0)? GiB")


def test_a_gpu_that_is_too_old_for_vllm_is_named(job: Job) -> None:
    assert_refused(job(V100, "--model=demo"), "V100", r"7\.0", r"7\.5")


def test_a_driver_older_than_cuda_is_named_with_the_required_version(job: Job) -> None:
    assert_refused(job(OLD_DRIVER, "--model=demo"), r"550\.54\.15", r"12\.4", r"13\.0", "580")


def test_a_missing_driver_is_reported(job: Job) -> None:
    assert_refused(job(PretendGpus(init_error=9), "--model=demo"), "(?i)driver|GPU")


def test_a_missing_compiler_is_reported_with_what_to_install(job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "ls", "cat", "uname", "env"):
        (folder / name).symlink_to(Path("/bin") / name)
    assert_refused(job(PretendGpus(8), "--model=demo", PATH=str(folder)), "compiler", "gcc")


def test_devices_named_by_their_uuids_are_given_in_that_order(job: Job) -> None:
    uuids = [f"GPU-{gpu:08}-0000-4000-8000-000000000000" for gpu in (3, 1)]
    gpus = PretendGpus(4)
    ended = job(gpus, "--model=demo", CUDA_VISIBLE_DEVICES=",".join(uuids))
    assert_cuda_refused(ended, uuids[0])
    assert given(gpus, CUDA_VISIBLE_DEVICES=",".join(uuids)) == uuids


def test_short_uuids_are_completed(job: Job) -> None:
    uuids = [f"GPU-{name}-0000-4000-8000-000000000000" for name in ("1a2b3c4d", "1a3b3c4d")]
    gpus = PretendGpus(2, uuids=uuids)
    ended = job(gpus, "--model=demo", CUDA_VISIBLE_DEVICES="GPU-1a3b,GPU-1a2b")
    assert_cuda_refused(ended, uuids[1])
    assert given(gpus, CUDA_VISIBLE_DEVICES="GPU-1a3b,GPU-1a2b") == uuids[::-1]


def test_an_unknown_uuid_is_named(job: Job) -> None:
    ended = job(PretendGpus(2), "--model=demo", CUDA_VISIBLE_DEVICES="GPU-ffff")
    assert_refused(ended, "CUDA_VISIBLE_DEVICES", "GPU-ffff")


@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
def test_every_mig_slice_is_an_engines_device(job: Job, named: bool) -> None:
    slices = [f"MIG-00000000-{number:04}-5000-8000-000000000000" for number in range(2)]
    more = {"CUDA_VISIBLE_DEVICES": ",".join(slices)} if named else {}
    gpus = PretendGpus(1, mig_slices=2)
    assert_cuda_refused(job(gpus, "--model=demo", **more), slices[0])
    assert given(gpus, **more) == slices


def test_more_engines_than_gpus_are_refused(job: Job) -> None:
    ended = job(PretendGpus(2), "--model=demo", "--data-parallel-size=4")
    assert_refused(ended, "--data-parallel-size 4", "2 visible")
