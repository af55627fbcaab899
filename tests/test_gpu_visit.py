"""The parts of `make gpu` that decide: which step is next, and what the results say."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support.pretend_gpus import PretendGpus, needs_compiler

from tools.gpu.commands import Command, used_mib
from tools.gpu.demo_captions import CpuCaption, CpuCaptions, compared, read_cpu_captions
from tools.gpu.inputs import copies, corpus, model_flags
from tools.gpu.rates import rates
from tools.gpu.steps import Steps
from tools.gpu.verdicts import outcome_problems, run_problems
from tools.gpu.visit import Finding, Result, Step, left_out, ratios, visit
from vllm_caption.demo import SAMPLE_DIR

GOOD = Finding(True, "went well", {"images_per_s": 4.0})


class Clock:
    """A clock that advances only when a step says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def step(self, name: str, takes_s: float, least_s: float = 5, limit_s: float = 60) -> Step:
        """A good step that takes this long, but no longer than it is allowed."""

        def act(limit_s: float) -> Finding:
            self.now_s += min(takes_s, limit_s)
            return GOOD

        return Step(name, "it", least_s, limit_s, act)


def visited(
    steps: list[Step],
    clock: Callable[[], float],
    budget_s: float = 500,
    results: dict[str, Result] | None = None,
    patience: float = 1,
) -> tuple[dict[str, Result], dict[str, float]]:
    """The results, and the time limit that each tried step was given."""
    found = {} if results is None else results
    limits: dict[str, float] = {}
    ended: list[str] = []
    visit(
        steps,
        found,
        clock,
        budget_s,
        patience,
        lambda step, limit_s: limits.update({step.name: limit_s}),
        lambda step: ended.append(step.name),
    )
    assert ended == list(limits)
    return found, limits


def test_steps_are_tried_in_their_order_each_within_its_own_limit() -> None:
    clock = Clock()
    results, limits = visited([clock.step("one", 10), clock.step("two", 10, limit_s=20)], clock)
    assert limits == {"one": 60, "two": 20}
    assert results["one"] == {"good": True, "says": "went well", "took_s": 10, "images_per_s": 4.0}


def test_a_step_that_raises_has_a_result_and_the_others_still_run() -> None:
    clock = Clock()

    def act(_: float) -> Finding:
        raise OSError("no room")

    results, _ = visited([Step("bad", "it", 5, 60, act), clock.step("good", 10)], clock)
    assert not results["bad"]["good"]
    assert results["bad"]["says"] == "OSError: no room"
    assert "act" in "".join(results["bad"]["traceback"])
    assert results["good"]["good"]


def test_a_step_that_no_longer_fits_is_skipped_for_one_that_does() -> None:
    clock = Clock()
    steps = [clock.step("one", 60), clock.step("long", 60, least_s=60), clock.step("short", 5)]
    results, _ = visited(steps, clock, budget_s=100)
    assert list(results) == ["one", "short"]
    assert left_out(steps, results) == {"long": "too little time was left: 60 s needed"}


def test_the_whole_visit_never_exceeds_its_budget() -> None:
    clock = Clock()
    steps = [clock.step(str(number), 1000) for number in range(20)]
    visited(steps, clock, budget_s=200, patience=3)
    assert clock.now_s <= 300


def test_a_second_visit_continues_where_the_first_ended() -> None:
    clock = Clock()
    steps = [clock.step("one", 60), clock.step("two", 60, least_s=60)]
    results, _ = visited(steps, clock, budget_s=80)
    _, limits = visited(steps, clock, results=results)
    assert list(limits) == ["two"]
    assert list(results) == ["one", "two"]


def test_patience_stretches_the_limit_of_a_step_but_not_of_the_whole() -> None:
    clock = Clock()
    _, limits = visited([clock.step("one", 1)], clock, patience=2)
    assert limits == {"one": 120}
    _, limits = visited([clock.step("one", 1)], clock, budget_s=80, patience=2)
    assert limits == {"one": 70}


def test_speeds_are_compared_only_if_both_sides_succeeded() -> None:
    def result(speed: float, good: bool = True) -> Result:
        return {"good": good, "images_per_s": speed}

    results = {"job8": result(45), "ceiling8": result(50), "job64": result(90, good=False)}
    results["fp8"] = result(100)
    assert ratios(results) == {"the job at 8 sequences, of vLLM alone": 0.9}


@pytest.mark.parametrize(
    ("exit_code", "says"), [(1, []), (3, ["exit code 3 instead of 1"]), (None, ["took too long"])]
)
def test_an_exit_code_is_compared_with_what_the_input_should_cause(
    exit_code: int | None, says: list[str]
) -> None:
    problems = run_problems(exit_code, 1)
    assert [problem[: len(start)] for problem, start in zip(problems, says, strict=True)] == says


def row(file: str, status: str = "captioned", caption: str | None = "A ring.") -> dict[str, Any]:
    return {"file": file, "status": status, "caption": caption}


WANTED = {"a": "captioned", "b": "failed"}


def test_expected_rows_are_not_a_problem() -> None:
    rows = [row("a"), row("b", "failed", None)]
    assert outcome_problems(rows, WANTED, WANTED) == []


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row("a")], "1 items without a row (b)"),
        ([row("a"), row("a"), row("b", "failed")], "1 items with several rows (a)"),
        ([row("a", "failed"), row("b", "failed")], "1 rows that say something else than expected"),
        ([row("a"), row("b", "failed"), row("c")], "1 rows that say something else than expected"),
        ([row("a", caption=""), row("b", "failed")], "1 captioned rows without a caption (a)"),
    ],
    ids=["missing", "twice", "wrong", "unknown", "empty"],
)
def test_lost_duplicate_or_wrong_rows_are_named(rows: list[dict[str, Any]], says: str) -> None:
    (problem,) = outcome_problems(rows, WANTED, WANTED)
    assert problem.startswith(says)


def test_an_interrupted_run_may_lack_rows_but_not_have_wrong_ones() -> None:
    assert outcome_problems([row("a")], {}, WANTED) == []
    assert outcome_problems([row("b")], {}, WANTED) != []


def test_the_clock_runs_from_the_first_lease_to_the_last_caption() -> None:
    rows = [
        {
            "status": "captioned",
            "attempts": 1,
            "finished_at": datetime.fromtimestamp(1000 + number, UTC),
            "queue_s": 0.5,
            "prepare_s": 0.5,
            "generate_s": 1.0,
            "prompt_tokens": 100,
            "output_tokens": 40,
        }
        for number in range(41)
    ]
    rows += [rows[0] | {"attempts": 0}, rows[0] | {"status": "failed"}]
    figures = rates(rows, started_at=900)
    assert figures["start_s"] == 98
    assert figures["seconds_at_work"] == 42
    assert figures["images_per_s"] == round(41 / 42, 2)
    assert figures["images_per_s_middle"] == 1.0
    assert figures["tokens_per_s"] == round(40 * 41 / 42, 1)


def test_a_run_without_captions_has_no_speed() -> None:
    assert rates([], started_at=900) == {}


CPU = CpuCaptions(0.5, {"a.png": CpuCaption(("Small", " red", " ring", "."), (9, 0.8, 9, 9))})


@pytest.mark.parametrize(
    ("caption", "explained"),
    [
        ("Small red ring.", True),
        ("Small pink star.", True),  # it differs where `red` was hardly ahead
        ("Large red ring.", False),
        ("Small red star.", False),
        ("", False),
    ],
)
def test_bf16_explains_another_caption_only_if_the_cpu_was_undecided(
    caption: str, explained: bool
) -> None:
    assert CPU.explains("a.png", caption) is explained


def test_unexplained_or_missing_captions_are_problems() -> None:
    figures, problems = compared(CPU, {"a.png": "Large red ring."})
    assert figures["unlike_cpu"] == {"a.png": {"cpu": "Small red ring.", "here": "Large red ring."}}
    assert problems == ["1 captions differ from the CPU's more than bf16 explains"]
    assert compared(CPU, {})[1] == ["1 captions are missing"]
    assert compared(CPU, {"a.png": "Small pink star."})[1] == []


def test_the_cpus_captions_cover_the_whole_sample_and_are_true_for_drawn_shapes() -> None:
    labels = json.loads((SAMPLE_DIR / "labels.json").read_bytes())
    cpu = read_cpu_captions()
    assert cpu.captions.keys() == labels.keys()
    for file, label in labels.items():
        if label["source"] == "drawn":
            assert cpu.captions[file].text == label["captions"]["shape-brief"]


def test_copies_of_the_corpus_hold_its_good_files_under_new_names(tmp_path: Path) -> None:
    given = copies(tmp_path / "copies", 2)
    good = [file for file, outcome in corpus().outcomes.items() if outcome == "captioned"]
    assert len(given.outcomes) == 2 * len(good)
    assert all((given.folder / "raw" / file).is_file() for file in given.outcomes)
    assert (given.exit_code, corpus().exit_code) == (0, 1)


def test_without_weights_on_this_machine_the_models_shape_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model, load = model_flags(tmp_path / "model")
    assert load == "--load-format=dummy"
    assert (Path(model.removeprefix("--model=")) / "config.json").is_file()


@needs_compiler
@pytest.mark.parametrize(("gpus", "tried"), [(1, False), (8, True)])
def test_several_gpus_have_their_own_step(
    gpus: int, tried: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PretendGpus(gpus).install(monkeypatch)
    names = [step.name for step in Steps(tmp_path).listed()]
    assert names[:2] == ["doctor", "demo"]
    assert ("every_gpu" in names) is tried


@needs_compiler
def test_the_memory_of_all_gpus_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(2, used_gib=1.5).install(monkeypatch)
    assert used_mib() == 3072


LEAVES_A_CHILD = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
"""


def test_processes_that_outlive_a_command_are_named_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.gpu.commands.GONE_WITHIN_S", 0.5)
    end = tmp_path / "end"
    arguments = [sys.executable, "-c", LEAVES_A_CHILD, os.fspath(end)]
    with Command(arguments, tmp_path / "log", limit_s=60) as running:
        assert running.until(running.process.children)
        end.touch()
        assert running.wait() == 0
        (left,) = running.left_behind()
        pid = int(left.split()[0])
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_command_that_times_out_is_ended_with_all_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [sys.executable, "-c", LEAVES_A_CHILD, os.fspath(tmp_path / "never")]
    with Command(arguments, tmp_path / "log", limit_s=60) as running:
        assert running.until(running.process.children)
        family = running.process.children(recursive=True)
        late = SimpleNamespace(monotonic=lambda: math.inf, sleep=time.sleep)
        monkeypatch.setattr("tools.gpu.commands.time", late)
        assert running.wait() is None
    alive = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert alive == []


def test_a_command_is_awaited_until_the_expected_event(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    arguments = [
        sys.executable,
        "-c",
        f"open({os.fspath(sign)!r}, 'w'); import time; time.sleep(9)",
    ]
    with Command(arguments, tmp_path / "log", limit_s=60) as running:
        assert running.until(sign.exists)
    with Command([sys.executable, "-c", ""], tmp_path / "log", limit_s=60) as running:
        assert not running.until(lambda: False)
