"""vLLM's flags that our decisions depend on: how many GPUs an engine uses, and which ones."""

from __future__ import annotations

import pytest
from support.job import run_here

from vllm_caption.commands.run import parse_run
from vllm_caption.engine_flags import (
    gpus_per_engine,
    named_flags,
)
from vllm_caption.engines import hardware
from vllm_caption.errors import UsageError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The GPUs that a machine has."""
    found = [str(number) for number in range(8)]
    monkeypatch.setattr(hardware, "platform", lambda: "cuda")
    monkeypatch.setattr(hardware, "visible_gpus", lambda: found)
    return found


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", 1),
        ("-tp 2", 2),
        ("-tp=2 -pp=2", 4),
        ("--prefill-context-parallel-size 2", 2),
        ("--prefill_context_parallel_size=2 --tensor-parallel-size 4", 8),
        ("-pcp 2 -tp 2", 4),
        ("-pcp=2", 2),
        ("-dcp 2 -tp 2", 2),  # these ranks are those of -tp
        ("--enable-expert-parallel -tp 4", 4),
        ("-pcp nonsense", 1),  # vLLM reports what is wrong with it
        ("-pcp 0", 1),
    ],
)
def test_every_parallel_size_that_multiplies_the_gpus_of_an_engine_counts(
    flags: str, expected: int
) -> None:
    assert gpus_per_engine(flags.split()) == expected
    assert parse_run([*flags.split(), "-dp=1"]).engine.gpus_per_engine == expected


def test_other_spellings_of_a_flag_are_the_same_flag() -> None:
    for words in ("-q fp8", "-q=fp8", "-qfp8", "--quantization=fp8"):
        assert named_flags(words.split()) == {"quantization": "fp8"}
    share = {"gpu_memory_utilization": "0.5"}
    assert named_flags(["--device-memory-utilization=0.5"]) == share
    assert named_flags(["--gpu_memory_utilization", "0.5"]) == share
    assert named_flags(["-O3"]) == {"O3": ""}


def test_default_number_of_engines_and_their_gpus_follow_from_all_sizes(gpus: list[str]) -> None:
    engine = parse_run(["-tp=2", "-pcp", "2"]).engine
    assert engine.data_parallel_size == 2
    assert hardware.assign_gpus(2, engine.gpus_per_engine) == ["0,1,2,3", "4,5,6,7"]
    with pytest.raises(UsageError, match=r"needs 12 GPUs \(4 per engine\), 8 visible"):
        hardware.assign_gpus(3, engine.gpus_per_engine)


@pytest.mark.parametrize(
    ("flags", "named", "remedy"),
    [
        (
            "--data-parallel-size-local 2",
            "--data-parallel-size-local 2",
            "independent: set their number",
        ),
        ("-dpl=2", "--data-parallel-size-local 2", "independent: set their number"),
        ("-dpn 1", "--data-parallel-rank 1", "independent: set their number"),
        (
            "--data_parallel_start_rank=4",
            "--data-parallel-start-rank 4",
            "independent: set their number",
        ),
        (
            "--data-parallel-backend ray",
            "--data-parallel-backend ray",
            "independent: set their number",
        ),
        (
            "--data-parallel-hybrid-lb",
            "--data-parallel-hybrid-lb:",
            "independent: set their number",
        ),
        (
            "--enable-elastic-ep",
            "--enable-elastic-ep:",
            "independent: set their number",
        ),
        ("--nnodes 2", "--nnodes 2", "--executor ray"),
        ("-n 2 -r 1", "--nnodes 2", "--executor ray"),
        ("--device-ids 2,3", "--device-ids 2,3", "CUDA_VISIBLE_DEVICES"),
        (
            "--distributed-executor-backend=external_launcher",
            "--distributed-executor-backend external_launcher",
            "this job starts its engines",
        ),
    ],
)
def test_flag_that_would_make_engines_share_gpus_is_refused_by_name(
    flags: str, named: str, remedy: str
) -> None:
    for command in ((), ("plan",)):
        result = run_here(*command, "--model=demo", "-dp=1", *flags.split())
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"vllm-caption: error: {named}")
        assert remedy in line
