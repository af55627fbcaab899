"""What limits a run: from measured depths and waits, and with slowness put into each stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.job import FAKE, input_flags, make_input, run

from vllm_caption.monitoring.bottleneck import Load, limit
from vllm_caption.monitoring.stats import Recent


def load(generating: float, **changed: object) -> Load:
    """Two engines of eight sequences in full swing; the numbers are of both together."""
    values: dict[str, object] = {
        "num_up": 2,
        "num_waiting": 1000,
        "num_in_flight": 32,
        "scanning": False,
        "max_num_seqs": 8,
        "writing": 0.1,
        "computing": 0.2,
        "images_per_s": 40.0,
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
        (load(4, computing=0.9), "driver"),
        (load(4, computing=0.9, writing=0.8), "disk"),
        (load(14, num_waiting=0, num_in_flight=15), "tail"),
        (load(28, num_waiting=0, num_in_flight=31), "engine"),
        (load(3, num_waiting=0, num_in_flight=3, scanning=True), "input"),
    ],
)
def test_limit_follows_from_where_the_items_are(moment: Load, expected: str) -> None:
    assert limit(moment) == expected


def test_rates_are_of_the_last_half_minute_whatever_the_speed() -> None:
    recent = Recent()
    for number in range(100_000):
        recent.add(number / 1000, 20, 2.0)
    rates = recent.rates(100.0)
    assert rates.images_per_s == pytest.approx(1000, rel=0.02)
    assert rates.tokens_per_s == pytest.approx(20_000, rel=0.02)
    assert rates.num_generating == pytest.approx(2000, rel=0.02)


@pytest.mark.parametrize("stage", ["engine", "decode", "disk"])
def test_slow_stage_is_named_by_the_summary(tmp_path: Path, stage: str) -> None:
    make_input(tmp_path, 120)
    arguments = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=1", "--quiet")
    result = run(*arguments, command=FAKE, environment={"FAKE_SLOW_STAGE": stage})
    assert result.exit_code == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Limited by: ")]
    shares = dict(part.split()[:2] for part in line.removeprefix("Limited by: ").split(", "))
    shares.pop("starting", None)  # a short run is mostly that
    assert next(iter(shares)) == stage, line
