"""`tune`: which setting is measured next, what counts as its speed, and what is said of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.job import Result, input_flags, make_input, run_here
from support.report_folder import many_rows, write_folder

from vllm_caption.commands.report.command import make_report
from vllm_caption.commands.tune import text, trial
from vllm_caption.commands.tune.ladder import (
    MIN_ITEMS,
    MIN_ROUNDS,
    ROUNDS,
    Stop,
    fastest,
    is_too_short,
    min_items,
    next_value,
    num_items,
    steady_part,
)
from vllm_caption.commands.tune.measure import STAGES, measure
from vllm_caption.commands.tune.record import (
    Figures,
    Setting,
    Tuning,
    read_tuning,
    tune_folder,
    write_tuning,
)
from vllm_caption.commands.tune.settings import DOUBLING, Tried, line_of, parse_try
from vllm_caption.commands.tune.trial import Sample
from vllm_caption.config import InputConfig, RunConfig
from vllm_caption.driver.pilot import Pilot
from vllm_caption.errors import UsageError

PLENTY = 100_000


def figures(images_per_s: float, **others: Any) -> Figures:
    known = {
        "images": 100,
        "steady_s": 20.0,
        "tokens_per_s": 8 * images_per_s,
        "engine_s_p50": 1.0,
        "engine_s_p95": 2.0,
        "limited_by": "engine",
        "gpu_percent": None,
        "gpu_memory_percent": None,
        "start_s": 30.0,
    }
    return Figures(images_per_s=images_per_s, **(known | others))


def measured(value: int | str, images_per_s: float | None, **others: Any) -> Setting:
    """One setting; without a speed, one that had no memory."""
    if images_per_s is None:
        return Setting(str(value), "out", problem="out of memory: CUDA out of memory; lower it")
    return Setting(str(value), "out", figures(images_per_s, **others))


def climb(speed: Callable[[int], float | None], first: int = 8, num_sampled: int = PLENTY) -> Any:
    """Every setting that is measured of an engine with this speed, and why it ends."""
    done: list[Setting] = []
    while not isinstance(value := next_value(DOUBLING, done, first, num_sampled), Stop):
        done.append(measured(value, speed(int(value))))
    return done, value.why


# --- which setting is next, when to stop, which is the fastest ---------------------------------


def flat_up_to_32(seqs: int) -> float:
    """Steps that cost the same up to 32 sequences, and then grow with them."""
    return seqs / max(1, seqs / 32)


def prefill_dominates(seqs: int) -> float:
    return seqs / (0.04 + 0.03 * seqs)


def memory_for_16(seqs: int) -> float | None:
    return seqs if seqs <= 16 else None


@pytest.mark.parametrize(
    ("speed", "tried", "best"),
    [
        (flat_up_to_32, ["8", "16", "32", "64"], "32"),
        (prefill_dominates, ["8", "16", "32"], "32"),
        (memory_for_16, ["8", "16", "32"], "16"),
    ],
)
def test_doubling_ends_where_it_no_longer_pays(
    speed: Callable[[int], float | None], tried: list[str], best: str
) -> None:
    done, why = climb(speed)
    assert [setting.value for setting in done] == tried
    assert tried[-1] in why
    found = fastest(done)
    assert found is not None
    assert found.value == best


@given(st.floats(0.001, 0.1), st.floats(0, 0.1), st.integers(1, 256))
def test_what_is_found_is_near_the_best_of_all_while_more_sequences_gain_less_and_less(
    step_s: float, prefill_s: float, flat: int
) -> None:
    def speed(seqs: int) -> float:
        return seqs / (32 * step_s * max(1, seqs / flat) + prefill_s * seqs)

    best = fastest(climb(speed)[0])
    assert best is not None
    assert best.speed is not None
    assert best.speed >= 0.95 * max(speed(2**power) for power in range(3, 12))


def test_doubling_begins_at_the_number_of_the_line() -> None:
    assert next_value(DOUBLING, [], 32, PLENTY) == "32"


def test_doubling_ends_where_the_sample_has_no_steady_state() -> None:
    done, why = climb(float, num_sampled=min_items(32))
    assert [setting.value for setting in done] == ["8", "16", "32"]
    assert why == "64 needs 448 items to be measured, and the sample has 224"


def test_a_list_is_measured_to_its_end_whatever_becomes_of_its_values() -> None:
    tried = Tried("block-size", ("16", "32", "64"))
    done = [measured(16, 10.0), measured(32, None)]
    assert next_value(tried, done, 8, PLENTY) == "64"
    assert isinstance(next_value(tried, [*done, measured(64, 1.0)], 8, PLENTY), Stop)


def test_fastest_of_those_that_are_equal_is_the_one_tried_first() -> None:
    done = [measured(8, 50.0), measured(16, 99.0), measured(32, 100.0)]
    assert fastest(done) is done[1]
    assert fastest([measured(8, None)]) is None


def test_settings_are_compared_by_what_one_gpu_makes() -> None:
    done = [measured(1, 10.0), measured(2, 15.0, gpus_per_engine=2)]
    assert fastest(done) is done[0]


# --- how many items, and which part of a run counts --------------------------------------------


def test_sample_has_many_rounds_and_is_never_more_than_there_is() -> None:
    assert num_items(8, None, PLENTY) == MIN_ITEMS
    assert num_items(64, None, PLENTY) == 64 * ROUNDS
    assert num_items(64, None, 500) == 500


def test_fast_engine_gets_as_many_items_as_it_captions_in_some_seconds() -> None:
    assert num_items(8, figures(100.0), PLENTY) == 1231
    assert is_too_short(figures(100.0, steady_s=2.0))
    assert not is_too_short(figures(100.0, steady_s=10.0))


@given(st.integers(1, 64), st.integers(0, 2000))
def test_steady_part_is_whole_rounds_without_the_first_two_and_the_last(
    seqs: int, finished: int
) -> None:
    part = steady_part(finished, seqs)
    assert (part is None) == (finished < min_items(seqs))
    if part is not None:
        begin, end = part
        assert begin + 1 == 2 * seqs
        assert (end - begin) % seqs == 0
        assert finished - 2 * seqs < end + 1 <= finished - seqs
        assert end - begin >= MIN_ROUNDS * seqs


def row(ended_s: float, **columns: Any) -> dict[str, Any]:
    stages = dict.fromkeys(STAGES, 0.0) | {"generate_s": 1.0}
    at = datetime.fromtimestamp(ended_s, UTC)
    common = {"status": "captioned", "engine": 0, "output_tokens": 10, "finished_at": at}
    return {**common, **stages, **columns}


def a_run(seqs: int, rounds: int, round_s: float = 1.0) -> Iterator[dict[str, Any]]:
    """Sequences in step: all of a round end at once. The first round takes ten times as long, and
    the last one too."""
    at_s = 1000.0
    for number in range(rounds):
        at_s += round_s * (10 if number in (0, rounds - 1) else 1)
        yield from (row(at_s, generate_s=round_s) for _ in range(seqs))


def read(rows: list[dict[str, Any]], seqs: int = 8, **options: Any) -> Figures | None:
    samples: list[dict[str, Any]] = options.pop("samples", [])
    return measure(rows, samples, num_seqs=seqs, started_at_s=900.0, limited_by="engine", **options)


def test_start_and_tail_do_not_count() -> None:
    found = read(list(a_run(8, 16)))
    assert found is not None
    assert (found.images, found.steady_s, found.images_per_s) == (104, 13.0, 8.0)
    assert (found.tokens_per_s, found.engine_s_p50, found.engine_s_p95) == (80.0, 1.0, 1.0)
    assert found.start_s == 109.0  # the first item of the engine took 1 s of the first ten


def test_failed_items_and_those_no_engine_saw_do_not_count() -> None:
    others = [row(1012.5, status="failed"), row(1012.5, engine=None)] * 20
    assert read([*others, *a_run(8, 16)]) == read(list(a_run(8, 16)))


def test_use_of_the_gpu_is_that_of_the_steady_part() -> None:
    samples = [
        {
            "at": datetime.fromtimestamp(at_s, UTC),
            "engines": [{"gpu_percent": use, "gpu_memory_percent": 90.0}],
        }
        for at_s, use in ((1005.0, 1.0), (1015.0, 60.0), (1020.0, 80.0), (1030.0, 5.0))
    ]
    found = read(list(a_run(8, 16)), samples=samples)
    assert found is not None
    assert (found.gpu_percent, found.gpu_memory_percent) == (70.0, 90.0)


def test_run_that_was_too_short_has_no_figures() -> None:
    assert read(list(a_run(8, 6))) is None


def test_smaller_samples_are_parts_of_larger_ones() -> None:
    files = frozenset(f"{number}.png" for number in range(100))
    sample = Sample(Pilot(InputConfig(only=files), 1000, 10, {"": 100}))
    small, large = (sample.first(number).only for number in (10, 50))
    assert small is not None
    assert large is not None
    assert (len(small), len(large), small < large < files) == (10, 50, True)


# --- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "tried"),
    [
        ("max-num-seqs=8,24", Tried("max-num-seqs", ("8", "24"))),
        ("--max_num_seqs=8, 24", Tried("max-num-seqs", ("8", "24"))),
        ("enforce-eager=true,false", Tried("enforce-eager", ("true", "false"))),
        ('x={"a": [1,2]},{"a": 3}', Tried("x", ('{"a": [1,2]}', '{"a": 3}'))),
        ("x=1,1,2", Tried("x", ("1", "2"))),
    ],
)
def test_try_names_a_flag_and_its_values(given: str, tried: Tried) -> None:
    assert parse_try(given) == tried


@pytest.mark.parametrize("given", ["", "block-size", "block-size=", "=1,2", "output=a,b", "try=1"])
def test_try_that_is_no_setting_of_an_engine_is_a_mistake(given: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_try(given)


@pytest.mark.parametrize(
    ("line", "flag", "value", "made"),
    [
        ("pics --quiet", "max-num-seqs", "32", "pics --quiet --max-num-seqs=32"),
        ("pics --max-num-seqs 8 -q fp8", "max-num-seqs", "32", "pics -q fp8 --max-num-seqs=32"),
        ("--try x=1,2 --sample=9 --top-k -1", "x", "2", "--top-k -1 --x=2"),
        ("--no-x --y", "x", "true", "--y --x"),
        ("--x --y", "x", "false", "--y --no-x"),
    ],
)
def test_line_to_run_has_the_value_in_the_place_of_the_old_one(
    line: str, flag: str, value: str, made: str
) -> None:
    assert line_of(line.split(), flag, value) == made.split()


@pytest.mark.parametrize(
    ("output", "folder"), [("out", "out.tune"), ("/a/out/", "/a/out.tune"), ("..", None)]
)
def test_folder_of_tune_is_beside_the_output(output: str, folder: str | None) -> None:
    expected = folder or f"{Path.cwd().parent}.tune"
    assert tune_folder(Path(output)) == Path(expected)


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`tune` with an engine of known speed instead of runs."""
    make_input(tmp_path, 600)

    def call(speed: Callable[[RunConfig], float | None], *flags: str) -> Result:
        def try_out(config: RunConfig, value: str, *_: object) -> Setting:
            return measured(value, speed(config))

        monkeypatch.setattr(trial, "try_out", try_out)
        output = f"--output={tmp_path / 'out'}"
        return run_here("tune", "--model=demo", *input_flags(tmp_path), output, "--quiet", *flags)

    return call


def tuning_in(folder: Path) -> Tuning:
    found = read_tuning(folder / "out.tune")
    assert found is not None
    return found


def test_table_and_file_hold_every_setting_and_the_line_to_run(
    tmp_path: Path, tune: Callable[..., Result]
) -> None:
    flags = ("--gpu-hour-price=2.5", "--seed=7")
    result = tune(lambda config: memory_for_16(config.engine.max_num_seqs), *flags)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["max-num-seqs", "images/s"]
    assert lines[1].split() == ["8", "8.00", "64", "1.00", "2.00", "engine", "–", "–", "30", "s"]
    assert lines[3].split()[:4] == ["32", "out", "of", "memory:"]
    assert "Fastest: --max-num-seqs=16, 2.00 times as fast as 8." in lines
    assert "  Cost: 43.40 per million captions." in lines
    found = tuning_in(tmp_path)
    assert f"Run: {found.command}" in lines
    assert found.command is not None
    assert found.command.startswith("python -m vllm_caption --model=demo --jsons=")
    assert found.command.endswith("--seed=7 --max-num-seqs=16")
    assert [(s.value, s.speed) for s in found.settings] == [("8", 8), ("16", 16), ("32", None)]
    assert (found.fastest, found.num_sampled) == ("16", 600)


def test_output_folder_is_not_touched(tmp_path: Path, tune: Callable[..., Result]) -> None:
    tune(lambda config: 1.0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    before = (tmp_path / "out").stat().st_mtime_ns
    tune(lambda config: 1.0)
    assert (list((tmp_path / "out").iterdir()), (tmp_path / "out").stat().st_mtime_ns) == (
        [],
        before,
    )


def test_flag_that_is_refused_is_a_row_and_not_the_end(
    tmp_path: Path, tune: Callable[..., Result]
) -> None:
    def speed(config: RunConfig) -> float:
        if "--block-size=3" in config.engine.engine_args:
            raise UsageError("vLLM flags", None, "3 is no block size")
        return 10.0

    result = tune(speed, "--try=block-size=3,16")
    assert result.exit_code == 0
    assert "refused: vLLM flags: 3 is no block size" in result.stdout
    assert [setting.speed for setting in tuning_in(tmp_path).settings] == [None, 10.0]


def test_mistake_in_the_line_itself_is_one_line_and_exit_2(tune: Callable[..., Result]) -> None:
    def refuse(config: RunConfig) -> float:
        raise UsageError("--model", "demo", "is refused by vLLM")

    result = tune(refuse)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "vllm-caption: error: --model demo: is refused by vLLM\n"


@pytest.mark.parametrize(
    ("tried", "message"),
    [
        ("max-num-seqs=8,many", "--max-num-seqs: 'many' is not a whole number"),
        ("blok-size=16", "--blok-size: unknown flag; did you mean --block-size?"),
    ],
)
def test_mistake_in_what_is_tried_is_found_before_anything_starts(
    tmp_path: Path, tune: Callable[..., Result], tried: str, message: str
) -> None:
    result = tune(lambda config: 1.0, f"--try={tried}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (tmp_path / "out.tune").exists()


def test_nothing_measured_is_exit_3_with_the_reason(tune: Callable[..., Result]) -> None:
    result = tune(lambda config: None)
    assert result.exit_code == 3
    assert "out of memory" in result.stdout
    assert "Run:" not in result.stdout


@pytest.mark.parametrize("between_runs", [False, True])
def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path,
    tune: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    between_runs: bool,
) -> None:
    def try_out(config: RunConfig, value: str, *_: object) -> Setting | None:
        if value == "8":
            return measured(value, 8.0)
        if between_runs:
            raise KeyboardInterrupt
        return None

    tune(lambda config: 1.0)
    monkeypatch.setattr(trial, "try_out", try_out)
    output = f"--output={tmp_path / 'out'}"
    result = run_here("tune", "--model=demo", *input_flags(tmp_path), output, "--quiet")
    assert result.exit_code == 130
    assert "Ended: interrupted." in result.stdout
    assert "--max-num-seqs=8\n" in result.stdout
    assert [setting.value for setting in tuning_in(tmp_path).settings] == ["8"]


def test_what_was_measured_is_on_disk_before_the_next_setting(
    tmp_path: Path, tune: Callable[..., Result]
) -> None:
    def speed(config: RunConfig) -> float:
        if config.engine.max_num_seqs == 16:
            assert [s.value for s in tuning_in(tmp_path).settings] == ["8"]
            return 8.0
        return 8.0

    assert tune(speed).exit_code == 0


def test_report_has_a_chart_of_what_was_measured_for_its_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "out", many_rows(10))

    def page() -> str:
        make_report([root], root / "page.html", 0)
        return (root / "page.html").read_text("utf-8")

    assert "measured by tune" not in page()
    settings = [measured(8, 10.5), measured(16, 20.25), measured(32, None)]
    tuning = Tuning(flag="max-num-seqs", started_at="", num_sampled=9, settings=settings)
    tune_folder(root).mkdir()
    write_tuning(tune_folder(root), tuning)
    assert "Speed of one engine by --max-num-seqs, measured by tune" in page()
    assert "<title>16: 20.2 images/s</title>" in page()
    (tune_folder(root) / "tune.json").write_text("damaged")
    assert "measured by tune" not in page()


def test_speed_of_a_sample_that_was_too_small_is_not_to_be_relied_on() -> None:
    short = measured(8, 100.0, steady_s=0.5)
    tuning = Tuning(flag="x", started_at="", num_sampled=9, settings=[short], fastest="8")
    said = "\n".join(text.conclusion(tuning, Path("t")))
    assert "measured for 500 ms only" in said


# --- the whole command on real engines ---------------------------------------------------------


@pytest.mark.engine
def test_real_engine_is_measured_up_to_the_memory_that_it_has(tmp_path: Path) -> None:
    make_input(tmp_path, min_items(32))
    output = tmp_path / "out"
    result = run_here(
        *("tune", "--model=demo", *input_flags(tmp_path), f"--output={output}", "--quiet"),
        *("--worker-cls=benchmarks.throughput.sleepy.CrampedWorker", "--max-num-seqs=16"),
        *("--no-checks", "--ignore-eos", "--max-tokens=4"),
    )
    assert result.exit_code == 0, result.stderr
    found = tuning_in(tmp_path)
    measured, too_large = found.settings
    assert (measured.value, too_large.value, found.fastest) == ("16", "32", "16")
    assert (too_large.problem or "").startswith("out of memory: ")
    of_16 = measured.figures
    assert of_16 is not None
    assert of_16.images == 13 * 16 - 32
    assert of_16.limited_by == "engine"
    assert of_16.tokens_per_s == pytest.approx(4 * of_16.images_per_s, rel=0.01)
    assert 0.4 < of_16.engine_s_p50 < 16 / of_16.images_per_s * 2.5
    assert of_16.start_s > 0
    assert not output.exists()
