"""The summary at the end of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_caption.inputs.reader import InputCounts
from vllm_caption.monitoring.figures import EngineFigures
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.monitoring.summary import InputRead, stale_captions, summarise

RESUME = "Interrupted: run the same command line again to resume; nothing is lost."


def said(
    captioned: int, *, unmatched: tuple[str, ...] = (), interrupted: bool = False
) -> list[str]:
    stats = RunStats([EngineFigures(0)])
    stats.total = stats.captioned = captioned
    read = InputRead(InputCounts(), not interrupted, [], unmatched)
    out = Path("out")
    text = summarise(stats, read, 1.0, output=out, state=out, interrupted=interrupted)
    return text.splitlines()


def test_summary_of_an_interrupted_run_ends_with_how_to_resume_and_no_other_does() -> None:
    assert said(3, interrupted=True)[-1] == RESUME
    assert RESUME not in said(3)


@pytest.mark.parametrize(("captioned", "times"), [(3, 1), (0, 0)])
def test_unmatched_skip_types_are_reported_only_if_something_was_captioned(
    captioned: int, times: int
) -> None:
    lines = said(captioned, unmatched=("TextElement", "Photo"))
    note = "  No element has a type of --skip-types TextElement,Photo: the input may name"
    assert sum(line.startswith(note) for line in lines) == times


def test_stale_captions_are_explained_one_recipe_to_a_line() -> None:
    begin = "1,200 kept captions are stale (--redo stale captions them again):"
    made = {"with --seed 1": 700, "with --seed 2": 300, "with --seed 3": 100, "with --seed 4": 100}
    assert list(stale_captions(1, {"with --seed 1": 1})) == [
        "1 kept caption is stale (--redo stale captions it again): made with --seed 1"
    ]
    assert list(stale_captions(1200, made)) == [
        begin,
        "  700 made with --seed 1",
        "  300 made with --seed 2",
        "  100 made with --seed 3",
        "  100 made with other settings",
    ]
