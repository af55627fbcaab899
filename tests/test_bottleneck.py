"""What limits a run, from measured depths and waits, and with each stage made slow in turn."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean
from typing import get_args

import msgspec
import pytest
from support.job import FAKE, input_flags, make_input, rows, run

from vllm_caption.messages import Timings
from vllm_caption.monitoring.bottleneck import REMEDIES, Limit, Load, limit, remedy
from vllm_caption.monitoring.stats import Recent


def load(generating: float, **changed: object) -> Load:
    """Two engines of eight sequences in full swing; the numbers are of both together. What is not
    generated is mostly being prepared."""
    values: dict[str, object] = {
        "num_up": 2,
        "num_waiting": 1000,
        "num_in_flight": 32,
        "scanning": False,
        "max_num_seqs": 8,
        "writing": 0.1,
        "computing": 0.2,
        "num_captions": 60,
        "num_preparing": 20.0 - generating / 2,
        "num_rendering": 10.0 - generating / 2,
        "num_generating": generating,
    }
    return Load(**(values | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (load(0, num_up=0), "starting"),
        (load(28), "engine"),
        (load(13), "engine"),
        (load(4), "decode"),
        (load(4, num_preparing=3.0, num_rendering=25.0), "render"),
        (load(14, num_preparing=2.0, num_rendering=16.0), "engine"),
        (load(4, num_preparing=3.0, num_rendering=25.0, computing=0.9), "driver"),
        (load(4, computing=0.9), "driver"),
        (load(4, computing=0.9, writing=0.8), "disk"),
        (load(14, num_waiting=0, num_in_flight=15), "tail"),
        (load(28, num_waiting=0, num_in_flight=31), "engine"),
        (load(3, num_waiting=0, num_in_flight=3, scanning=True), "input"),
    ],
)
def test_limit_is_the_stage_that_holds_the_items(moment: Load, expected: str) -> None:
    assert limit(moment) == expected


def test_rates_cover_the_last_half_minute_whatever_the_speed() -> None:
    recent = Recent()
    for number in range(100_000):
        timings = Timings(
            queue_s=0.5, prepare_s=0.25, render_queue_s=1.0, render_s=0.5, generate_s=2.0
        )
        recent.add(number / 1000, 20, timings)
    rates = recent.rates(100.0)
    assert rates.images_per_s == pytest.approx(1000, rel=0.02)
    assert rates.tokens_per_s == pytest.approx(20_000, rel=0.02)
    assert rates.num_preparing == pytest.approx(750, rel=0.02)
    assert rates.num_rendering == pytest.approx(1500, rel=0.02)
    assert rates.num_generating == pytest.approx(2000, rel=0.02)


@pytest.mark.parametrize(
    ("limits_s", "expected"),
    [
        ({"render": 60.0, "engine": 30.0, "starting": 20.0}, REMEDIES["render"]),
        ({"decode": 60.0, "render": 30.0}, REMEDIES["decode"]),
        ({"engine": 60.0, "render": 30.0}, None),
        ({"render": 10.0, "starting": 30.0, "tail": 1.0}, None),
        ({"starting": 30.0}, None),
        ({}, None),
    ],
)
def test_remedy_is_for_the_limit_of_most_of_the_run(
    limits_s: dict[Limit, float], expected: str | None
) -> None:
    assert remedy(limits_s) == expected


def test_more_prepare_threads_are_advised_only_for_decoding() -> None:
    assert [name for name, text in REMEDIES.items() if "more --prepare-threads" in text] == [
        "decode"
    ]


def test_documentation_has_the_same_remedies_as_the_summary() -> None:
    page = (Path(__file__).parents[1] / "docs/run.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .+? \| (.+) \|$", page, re.MULTILINE)
    plain = {name: re.sub(r"\[(.+?)\]\(.+?\)", r"\1", text) for name, text in rows}  # of links
    documented = {name: plain[name].replace("`", "") for name in plain if name in get_args(Limit)}
    assert documented.keys() == set(get_args(Limit))
    for name, text in REMEDIES.items():
        assert documented[name] == text


@pytest.mark.parametrize("slow", ["engine 0.5", "decode", "render", "disk"])
def test_summary_names_the_slow_stage(tmp_path: Path, slow: str) -> None:
    stage = slow.split()[0]
    make_input(tmp_path, 300)
    arguments = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=1", "--quiet")
    result = run(*arguments, command=FAKE, environment={"FAKE_SLOW_STAGE": slow})
    assert result.exit_code == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Limited by: ")]
    shares = dict(part.split()[:2] for part in line.removeprefix("Limited by: ").split(", "))
    shares.pop("starting", None)  # most of a short run is start-up
    assert next(iter(shares)) == stage, line
    waits = mean_timings(tmp_path / "out")
    wait = {"engine": "generate_s", "decode": "queue_s", "render": "render_queue_s"}.get(stage)
    if wait:
        assert max(waits, key=lambda name: waits[name]) == wait, waits


def mean_timings(output: Path) -> dict[str, float]:
    """Mean seconds of each stage, over the items of a run."""
    found = [row for row in rows(output).values() if row["status"] == "captioned"]
    names = [field.name for field in msgspec.structs.fields(Timings)]
    return {name: mean(row[name] for row in found) for name in names}
