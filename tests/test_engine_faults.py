"""Faults at the real engine's boundary: who is blamed, what is reported, what all others get."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters

import pytest
from support.job import Result, captions, input_flags, make_input, rows, run_here, write_document

pytestmark = pytest.mark.engine
FLAGS = ("--model=demo", "--prompt=design-context", "--no-checks", "--max-tokens=12")
FAULTY = "--worker-cls=support.faulty_worker.FaultyWorker"
NUM_ITEMS = 40


@dataclass(frozen=True)
class Faults:
    """One run over good items and three that make the engine fail, each in a different way."""

    files: list[str]
    culprits: list[str]
    result: Result
    output: Path

    @property
    def deaths(self) -> list[str]:
        """What was reported about each death."""
        return [line for line in self.result.stderr.splitlines() if " died " in line]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    folder = tmp_path_factory.mktemp("faults")
    files = make_input(folder, NUM_ITEMS)
    culprits = []
    for number, word in enumerate(["killer", "hungry", "hanger"]):
        file = f"culprit_{number}.png"
        (folder / "raw" / file).write_bytes((folder / "raw" / files[number]).read_bytes())
        name = f"design_{number:03}_{word}"  # among the others, in document order
        write_document(folder, name, [file], ["SvgElement"], title=f"A {word}")
        culprits.append(file)
    arguments = (*FLAGS, FAULTY, "-dp=2", *input_flags(folder), f"--output={folder / 'out'}")
    result = run_here(*arguments, "--stall-timeout=6")
    return Faults(files, culprits, result, folder / "out")


def test_only_the_culprits_fail_and_no_other_item_is_charged_an_attempt(faults: Faults) -> None:
    assert faults.result.exit_code == 1, faults.result.stderr
    found = rows(faults.output)
    failed = {file: row["error_kind"] for file, row in found.items() if row["status"] == "failed"}
    assert failed == dict.fromkeys(faults.culprits, "poison")
    innocent = {file: row["attempts"] for file, row in found.items() if file not in failed}
    assert innocent == dict.fromkeys(faults.files, 1)
    assert captions(faults.output).keys() == innocent.keys()


def test_each_culprit_costs_two_deaths_alone_and_at_most_one_before(faults: Faults) -> None:
    assert 2 * len(faults.culprits) <= len(faults.deaths) <= 3 * len(faults.culprits)
    assert "Traceback" not in faults.result.stderr


def test_killed_engine_core_is_reported_as_one_without_an_error(faults: Faults) -> None:
    words = "without an error of its own (killed from outside by SIGKILL"
    assert any(words in line for line in faults.deaths)


def test_exception_in_a_model_step_is_reported_with_its_text(faults: Faults) -> None:
    assert any("torch.OutOfMemoryError: CUDA out of memory" in line for line in faults.deaths)


def test_stalled_model_is_detected_after_the_stall_timeout(faults: Faults) -> None:
    told = faults.result.stderr.splitlines()
    assert 2 <= sum("made no progress for" in line for line in told) <= 3


def test_weights_that_do_not_fit_are_reported_with_a_remedy(tmp_path: Path) -> None:
    make_input(tmp_path, 2)
    arguments = (*FLAGS, "--max-engine-restarts=0", *input_flags(tmp_path))
    loader = "--worker-cls=support.faulty_worker.HungryLoader"
    result = run_here(*arguments, loader, f"--output={tmp_path / 'out'}")
    assert result.exit_code == 3
    last = result.stderr.splitlines()[-1]
    assert "Tried to allocate 130.00 GiB while the weights were loaded" in last
    assert "take a smaller or quantised model" in last
    assert "--gpu-memory-utilization" not in last


def test_model_that_answers_nothing_stops_the_run_and_leaves_every_item_pending(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 24)
    arguments = ("--model=demo", *input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    result = run_here(*arguments, "--stop", *ascii_letters, "--max-same-errors=32")
    assert result.exit_code == 3
    (said,) = (
        line for line in result.stderr.splitlines() if "the same error for all items" in line
    )
    assert "a caption without a word; the model says nothing: is it an instruct model" in said
    assert rows(tmp_path / "out") == captions(tmp_path / "out") == {}
    assert run_here(*arguments).exit_code == 0
    assert {row["attempts"] for row in rows(tmp_path / "out").values()} == {1}
    assert captions(tmp_path / "out").keys() == set(files)


def test_captions_that_take_longer_than_the_stall_timeout_are_not_a_stall(tmp_path: Path) -> None:
    make_input(tmp_path, 2)
    arguments = ("--model=demo", *input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=1")
    sleepy = "--worker-cls=benchmarks.throughput.sleepy.SleepyWorker"  # a step takes 20 ms
    long = (sleepy, "--ignore-eos", "--max-tokens=300", "--no-checks", "--stall-timeout=5")
    result = run_here(*arguments, *long)
    assert result.exit_code == 0, result.stderr
    assert min(row["generate_s"] for row in rows(tmp_path / "out").values()) > 5
    assert "made no progress" not in result.stderr
