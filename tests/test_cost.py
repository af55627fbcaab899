"""`--gpu-hour-price`: the cost of what was done, of what is left, and of a million captions."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from support.job import input_flags, make_input, run_here
from support.report_folder import START, many_rows, write_folder, write_series

from vllm_caption.commands.report.command import make_report
from vllm_caption.commands.run import parse_run
from vllm_caption.config import EngineConfig, RunConfig, Shard
from vllm_caption.cost import Billing, Costs
from vllm_caption.inputs.reader import InputCounts
from vllm_caption.inputs.source import Nouns
from vllm_caption.monitoring.figures import EngineFigures
from vllm_caption.monitoring.samples import SCHEMA, engine_s, read_gpu_s
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.monitoring.status import encode_status, make_status
from vllm_caption.monitoring.summary import InputRead, describe_pilot, summarise
from vllm_caption.store.layout import state_folder

EIGHT = Billing(2.5, 8)
"""8 GPUs for 20 an hour in total."""


def test_time_of_all_gpus_counts_and_the_rest_is_extrapolated() -> None:
    costs = EIGHT.costs(gpu_s=8 * 1800, num_left=360_000, images_per_s=100.0)
    assert costs == Costs(10.0, pytest.approx(20.0), pytest.approx(55.5556), 100.0, "so far")
    ahead = "about 20.00 for what is left, 55.56 per million captions at 100.0 images/s"
    assert (costs.ahead, str(costs)) == (ahead, f"10.00 so far; {ahead}")


def test_unknown_costs_are_left_out() -> None:
    assert str(EIGHT.costs(gpu_s=3600)) == "2.50 so far"
    assert str(EIGHT.costs(images_per_s=100.0)) == ("55.56 per million captions at 100.0 images/s")
    assert str(Billing(1.0, 1).costs(images_per_s=0.012)).endswith(" at 0.012 images/s")
    assert str(Billing(0.01, 1).costs(gpu_s=36)) == "0.0001 so far"
    assert str(Billing(1e9, 8).costs(gpu_s=3600, images_per_s=0.0)) == "1,000,000,000.00 so far"


def test_gpus_of_all_engines_count() -> None:
    engine = EngineConfig(data_parallel_size=4, tensor_parallel_size=2)
    assert RunConfig(engine=engine, gpu_hour_price=2.5).billing == EIGHT
    assert RunConfig().billing is None
    assert parse_run(["--gpu-hour-price=2.5"]).gpu_hour_price == 2.5


@pytest.mark.parametrize("price", ["0", "-1", "nan", "inf", "much", ""])
def test_price_must_be_above_0(price: str) -> None:
    result = run_here(f"--gpu-hour-price={price}")
    assert result.exit_code == 2
    assert "--gpu-hour-price" in result.stderr


# --- where it is said --------------------------------------------------------------------------


def run_of(captioned: int, total: int) -> RunStats:
    """One image per second."""
    stats = RunStats([EngineFigures(0)], total=total)
    for number in range(captioned):
        stats.count_caption(0, 1, 1, 100.0 + number)
    return stats


def summary(billing: Billing | None) -> str:
    read = InputRead(InputCounts(), is_complete=True, skipped=())
    out = Path("out")
    return summarise(run_of(101, 3701), read, 360.0, output=out, state=out, billing=billing)


def test_summary_shows_the_cost_of_the_run_with_its_start_and_of_what_is_left() -> None:
    assert (
        "Cost: 0.25 for this run; about 2.50 for what is left, 694.44 per million captions"
        " at 1.0 images/s" in summary(Billing(2.5, 1)).splitlines()
    )
    assert "Cost" not in summary(None)


def test_summary_says_the_cost_of_a_run_whose_engines_captioned_nothing() -> None:
    def cost_of(state: str) -> list[str]:
        stats, read = RunStats([EngineFigures(0, state)]), InputRead(InputCounts(), True, ())
        out = Path("out")
        said = summarise(stats, read, 3600.0, output=out, state=out, billing=EIGHT)
        return [line for line in said.splitlines() if line.startswith("Cost")]

    assert cost_of("stopped") == ["Cost: 20.00 for this run"]
    assert cost_of("waiting") == []  # none was needed


def test_pilot_shows_the_cost_of_the_full_run() -> None:
    text = describe_pilot(
        run_of(100, 100),
        chosen={"Svg": 100},
        num_items=3700,
        num_documents=20,
        nouns=Nouns(),
        arguments=(),
        billing=Billing(2.5, 1),
    )
    assert (
        "Its cost: about 2.50 for what is left, 694.44 per million captions at 1.0 images/s."
        in text
    )


def test_plan_shows_the_cost_of_what_is_left_and_of_earlier_runs(tmp_path: Path) -> None:
    make_input(tmp_path, 36)
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=1", "--quiet"]
    price = ["--images-per-s=1", "--gpu-hour-price=100", f"--json={tmp_path / 'p.json'}"]
    result = run_here("plan", "--model=demo", *flags, *price)
    line = "Cost       about 1.00 for what is left, 27,777.78 per million captions at 1.0 images/s"
    assert line in result.stdout.splitlines()
    costs = msgspec.json.decode((tmp_path / "p.json").read_bytes())["time"]["costs"]
    assert (costs["done"], costs["left"]) == (None, pytest.approx(1.0))
    (tmp_path / "out").mkdir()
    write_series(tmp_path / "out", 10, num_engines=2, runs=1)
    result = run_here("plan", "--model=demo", *flags, *price)
    assert "Cost       5.00 for earlier runs; about 1.00" in result.stdout
    assert "Cost" not in run_here("plan", "--model=demo", *flags, "--images-per-s=1").stdout


def test_plan_without_a_speed_says_how_to_learn_the_cost(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=1", "--quiet"]
    flags += ["--model=demo", "--gpu-hour-price=100", f"--json={tmp_path / 'p.json'}"]
    unknown = "not known without the speed: --pilot or `tune` measures it"
    assert f"Cost       {unknown}" in run_here("plan", *flags).stdout.splitlines()
    costs = msgspec.json.decode((tmp_path / "p.json").read_bytes())["time"]["costs"]
    assert (costs["done"], costs["left"], costs["per_million"]) == (None, None, None)
    (tmp_path / "out").mkdir()
    write_series(tmp_path / "out", 10, num_engines=2, runs=1)
    line = f"Cost       5.00 for earlier runs; what is left is {unknown}"
    assert line in run_here("plan", *flags).stdout.splitlines()


def test_cost_of_next_to_nothing_is_not_shown_as_zero() -> None:
    assert str(Billing(1.0, 1).costs(gpu_s=0.01)) == "under 0.0001 so far"
    assert str(Billing(1.0, 1).costs(gpu_s=0.0)) == "0.00 so far"


def sample(at_s: float, run: str, num_engines: int) -> dict[str, object]:
    engines = [{"engine": number} for number in range(num_engines)]
    return {"at": START + timedelta(seconds=at_s), "run_id": run, "engines": engines}


def test_engines_cost_between_samples_but_not_between_runs() -> None:
    samples = [sample(0, "a", 2), sample(10, "a", 2), sample(1000, "b", 1), sample(1005, "b", 1)]
    assert engine_s(pa.Table.from_pylist(samples, SCHEMA)) == 25.0
    assert engine_s(SCHEMA.empty_table()) == 0.0


def test_report_shows_the_cost_of_a_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "out", many_rows(100))
    write_series(root, 19, num_engines=2, runs=1)  # 180 s, 2 engines of 2 GPUs
    stats = RunStats([EngineFigures(0), EngineFigures(1)], total=199, scanning=False)
    stats.gpus_per_engine, stats.captioned = 2, 101
    stats.first_caption_s, stats.last_caption_s = 60.0, 110.0
    status = make_status("run-0", "finished", stats, 0, "")
    (root / "status.json").write_bytes(encode_status(status))

    def page(price: float | None) -> str:
        make_report([root], root / "page.html", 0, gpu_hour_price=price)
        return (root / "page.html").read_text("utf-8")

    assert "<b>0.50</b><span>cost for all runs</span>" in page(2.5)
    ahead = "about 0.14 for what is left, 1,388.89 per million captions at 2.0 images/s"
    assert ahead in page(2.5)
    assert "cost for" not in page(None)


def test_summary_status_plan_and_report_say_the_same_cost_of_a_million_captions(
    tmp_path: Path,
) -> None:
    """At one speed, from the first caption to the last, however long the start and the tail are."""
    stats, billing = run_of(101, 101), Billing(2.5, 1)
    stats.gpu_hour_price = 2.5
    root = write_folder(tmp_path / "out", many_rows(100))
    make_input(tmp_path, 3)
    write_series(root, 40, num_engines=1, runs=1)
    status = make_status("run-0", "finished", stats, 900.0, "")
    assert status.images_per_s == 0
    (root / "status.json").write_bytes(encode_status(status))
    make_report([root], root / "page.html", 0, gpu_hour_price=2.5)
    flags = ["--model=demo", *input_flags(tmp_path), f"--output={root}", "-dp=1", "--quiet"]
    for said in (
        summarise(
            stats,
            InputRead(InputCounts(), True, ()),
            990.0,
            output=root,
            state=root,
            billing=billing,
        ),
        run_here("status", f"--output={root}").stdout,
        run_here("plan", *flags, "--gpu-hour-price=2.5").stdout,
        (root / "page.html").read_text("utf-8"),
    ):
        assert "694.44 per million captions at 1.0 images/s" in said
        assert "so far" not in said


def test_gpus_of_all_shards_are_paid_for_and_each_engine_by_its_own_number(tmp_path: Path) -> None:
    """As on two machines with other GPUs, and on a third after them."""
    root = write_folder(tmp_path / "out", many_rows(100))
    for folder, gpus_per_engine in (
        (root, 1),
        (state_folder(root, Shard(1, 2)), 2),
        (state_folder(root, Shard(2, 2)), 4),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        write_series(folder, 10, num_engines=2, runs=1)  # 90 s
        stats = RunStats([EngineFigures(0), EngineFigures(1)], total=99, scanning=False)
        stats.gpus_per_engine = gpus_per_engine
        content = encode_status(make_status("run-0", "finished", stats, 0, ""))
        (folder / "status.json").write_bytes(content)
    assert read_gpu_s(root) == 2 * 90.0 * (1 + 2 + 4)
    make_report([root], root / "page.html", 0, gpu_hour_price=10)
    assert "<b>3.50</b><span>cost for all runs</span>" in (root / "page.html").read_text("utf-8")
    (root / "monitor.parquet").write_text("damaged")
    assert read_gpu_s(root) == 2 * 90.0 * (2 + 4)
    assert read_gpu_s(tmp_path) is None
