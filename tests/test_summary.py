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


def test_summary_counts_for_people() -> None:
    stats = RunStats([EngineFigures(number, captioned=1000) for number in range(3)])
    stats.total, stats.captioned, stats.twins = 1_003_000, 3_000, 1_200
    stats.done_before, stats.failed, stats.failures["poison"] = 998_800, 1_200, 1_200
    stats.examples["poison"] = "a.png: it killed its engine"
    stats.prompt_tokens, stats.output_tokens = 600_000, 90_000
    stats.limits_s = {"engine": 97.0, "decode": 2.5, "tail": 0.5, "starting": 0.001}
    counts = InputCounts(documents=12_000, skipped=1, duplicates=25_000)
    out = Path("out")
    text = summarise(stats, InputRead(counts, True, []), 11_520, output=out, state=out)
    assert text.splitlines() == [
        "Documents: 12,000 read, 1 skipped",
        "Items: 1,003,000, captioned 1,001,800 (3,000 in this run), failed 1,200",
        "  25,000 further references to images named before, which are captioned once.",
        "  poison 1,200, e.g. a.png: it killed its engine",
        "  1,200 share the caption of a byte-identical image (see --no-dedup).",
        "Time: 3 h 12 min, 0.26 images/s including start-up,"
        " 600,000 prompt tokens, 90,000 output tokens",
        "Limited by: engine 97% (as it should be), decode 2%, tail 1% of the time",
        "Share of the captions: engine 0 34%, engine 1 33%, engine 2 33%",
        "Captions: out/<file>.txt, manifest: out/manifest.parquet",
    ]


def test_share_of_the_only_engine_is_left_out() -> None:
    assert not any("Share" in line for line in said(3))


def test_rejected_answers_add_up_and_other_errors_are_counted_apart() -> None:
    stats = RunStats([EngineFigures(0, captioned=68)], total=69, captioned=68, failed=1)
    made = stats.rejections
    for number in range(75):
        made.count(f"{number}.png", "a a a", ("loop",) if number < 7 else ())
    made.retried, made.failed, stats.retried = 6, 1, 9
    out = Path("out")
    text = summarise(stats, InputRead(InputCounts(), True, []), 9, output=out, state=out)
    begin = "Rejected answers: 7 of 75 (loop 7): "
    assert f"{begin}6 queued for a retry, 1 item failed\n" in text
    assert "  3 attempts ended with an error and were queued for a retry.\n" in text
    made.failed = 0  # the failure was the run's fault
    text = summarise(stats, InputRead(InputCounts(), True, []), 9, output=out, state=out)
    assert f"{begin}6 queued for a retry, 1 dropped when the run stopped\n" in text
