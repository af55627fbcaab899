"""Faults at the real engine's boundary: who is blamed, what is told, what everyone else gets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from job import Result, captions, input_flags, make_input, rows, run_here, write_document

pytestmark = pytest.mark.engine
FLAGS = ("--model=demo", "--prompt=design-context", "--no-checks", "--max-tokens=12")
FAULTY = "--worker-cls=faulty_worker.FaultyWorker"
NUM_ITEMS = 40


@dataclass(frozen=True)
class Faults:
    """A run over good items and items whose prompt makes the engine fail."""

    folder: Path
    files: list[str]
    culprits: list[str]
    result: Result

    @property
    def deaths(self) -> list[str]:
        """What was told of each death."""
        return [line for line in self.result.stderr.splitlines() if " died " in line]


def run_with(folder: Path, words: Iterable[str], *flags: str) -> Faults:
    """One run; each word makes an item whose prompt holds it."""
    files = make_input(folder, NUM_ITEMS)
    culprits = []
    for number, word in enumerate(words):
        file = f"culprit_{number}.png"
        (folder / "raw" / file).write_bytes((folder / "raw" / files[number]).read_bytes())
        name = f"design_{number:03}_{word}"  # among the others, in the order of documents
        write_document(folder, name, [file], ["SvgElement"], title=f"A {word}")
        culprits.append(file)
    arguments = (*FLAGS, FAULTY, "-dp=2", *input_flags(folder), f"--output={folder / 'out'}")
    result = run_here(*arguments, *flags)
    return Faults(folder, files, culprits, result)


def assert_only_culprits_failed(faults: Faults) -> None:
    assert faults.result.exit_code == 1, faults.result.stderr
    found = rows(faults.folder / "out")
    failed = {file: row["error_kind"] for file, row in found.items() if row["status"] == "failed"}
    assert failed == dict.fromkeys(faults.culprits, "poison")
    innocent = {file: row["attempts"] for file, row in found.items() if file not in failed}
    assert innocent == dict.fromkeys(faults.files, 1)  # nobody else was charged anything
    assert captions(faults.folder / "out").keys() == innocent.keys()


def test_item_that_kills_the_engine_core_is_poison_and_costs_nobody_else_anything(
    tmp_path: Path,
) -> None:
    faults = run_with(tmp_path, ["killer", "killer"])
    assert_only_culprits_failed(faults)
    assert len(faults.deaths) <= 2 * 2 + 2  # two each, and those that made them suspects
    assert "without an error of its own" in faults.deaths[0]


def test_exception_in_a_model_step_is_told_with_its_words_and_its_item_found(
    tmp_path: Path,
) -> None:
    faults = run_with(tmp_path, ["hungry"])
    assert_only_culprits_failed(faults)
    assert len(faults.deaths) <= 3
    assert "torch.OutOfMemoryError: CUDA out of memory" in faults.deaths[0]
    assert "Traceback" not in faults.result.stderr


def test_item_that_stops_the_model_is_seen_after_the_stall_timeout_and_found(
    tmp_path: Path,
) -> None:
    faults = run_with(tmp_path, ["hanger"], "--stall-timeout=4")
    assert_only_culprits_failed(faults)
    told = [line for line in faults.result.stderr.splitlines() if "made no progress for" in line]
    assert 2 <= len(told) <= 3
