"""`tune`: which setting is measured next, what counts as its speed, and what is said of it."""

from __future__ import annotations

import argparse
import io
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.job import (
    FAKE,
    Result,
    input_flags,
    make_input,
    run,
    run_here,
    start,
    status,
    wait_until,
)
from support.report_folder import many_rows, write_folder

from vllm_caption.commands.report.command import make_report
from vllm_caption.commands.tune import text, trial
from vllm_caption.commands.tune.ladder import (
    MIN_ITEMS,
    MIN_ROUNDS,
    ROUNDS,
    Stop,
    expected_s,
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
from vllm_caption.commands.tune.settings import DOUBLING, SEQS, Tried, line_of, parse_try
from vllm_caption.commands.tune.trial import Sample
from vllm_caption.config import EngineConfig, InputConfig, RunConfig
from vllm_caption.driver.pilot import Pilot
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.store.lock import OutputLock

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
def test_doubling_ends_when_it_no_longer_pays(
    speed: Callable[[int], float | None], tried: list[str], best: str
) -> None:
    done, why = climb(speed)
    assert [setting.value for setting in done] == tried
    assert tried[-1] in why
    found = fastest(SEQS, done)
    assert found is not None
    assert found.value == best


@given(st.floats(0.001, 0.1), st.floats(0, 0.1), st.integers(1, 256))
def test_result_is_near_the_best_if_more_sequences_gain_less_and_less(
    step_s: float, prefill_s: float, flat: int
) -> None:
    def speed(seqs: int) -> float:
        return seqs / (32 * step_s * max(1, seqs / flat) + prefill_s * seqs)

    best = fastest(SEQS, climb(speed)[0])
    assert best is not None
    assert best.speed is not None
    assert best.speed >= 0.95 * max(speed(2**power) for power in range(3, 12))


def test_doubling_starts_at_the_number_given() -> None:
    assert next_value(DOUBLING, [], 32, PLENTY) == "32"


def test_doubling_ends_when_the_sample_has_no_steady_state() -> None:
    done, why = climb(float, num_sampled=min_items(32))
    assert [setting.value for setting in done] == ["8", "16", "32"]
    assert why == "64 needs at least 448 items, and the sample has 224"


def test_a_list_is_measured_to_its_end_whatever_its_values_yield() -> None:
    tried = Tried("block-size", ("16", "32", "64"))
    done = [measured(16, 10.0), measured(32, None)]
    assert next_value(tried, done, 8, PLENTY) == "64"
    assert isinstance(next_value(tried, [*done, measured(64, 1.0)], 8, PLENTY), Stop)


def test_list_skips_what_is_measured_already() -> None:
    tried = Tried("block-size", ("16", "32", "64"))
    assert next_value(tried, [measured(32, 10.0)], 8, PLENTY) == "16"


@pytest.mark.parametrize(
    ("flag", "speeds", "found"),
    [
        (SEQS, {"8": 50.0, "16": 99.0, "32": 100.0}, "16"),
        (SEQS, {"128": 100.0, "64": 99.0, "8": 50.0}, "64"),
        (SEQS, {"8": 97.0, "16": 100.0}, "16"),
        ("max-pixels", {"100352": 99.0, "50176": 100.0}, "100352"),
        (SEQS, {"8": None}, None),
    ],
)
def test_of_equal_speeds_the_fewest_sequences_are_taken_and_of_other_flags_the_first(
    flag: str, speeds: dict[str, float | None], found: str | None
) -> None:
    best = fastest(flag, [measured(value, speed) for value, speed in speeds.items()])
    assert (best and best.value) == found


def test_settings_are_compared_by_the_speed_per_gpu() -> None:
    done = [measured(1, 10.0), measured(2, 15.0, gpus_per_engine=2)]
    assert fastest("tensor-parallel-size", done) is done[0]


# --- how many items, and which part of a run counts --------------------------------------------


def test_sample_has_many_rounds_and_never_exceeds_the_input() -> None:
    assert num_items(8, None, PLENTY) == MIN_ITEMS
    assert num_items(64, None, PLENTY) == 64 * ROUNDS
    assert num_items(64, None, 500) == 500


def test_fast_engine_gets_as_many_items_as_it_captions_in_a_few_seconds() -> None:
    assert num_items(8, figures(100.0), PLENTY) == 1231
    assert is_too_short(figures(100.0, steady_s=2.0))
    assert not is_too_short(figures(100.0, steady_s=10.0))


def test_time_that_a_setting_takes_is_known_from_the_one_before() -> None:
    assert expected_s(300, figures(10.0, start_s=30.0)) == 60.0
    assert expected_s(300, None) is None
    assert expected_s(300, figures(0.0)) is not None
    said = text.announcement("--x=1", 1200, 60.0, again=False)
    assert said == "Measuring --x=1 on 1,200 items, about 1 min."
    assert text.announcement("--x=1", 1, None, again=False) == "Measuring --x=1 on 1 item."


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


def test_failed_items_and_items_without_an_engine_do_not_count() -> None:
    others = [row(1012.5, status="failed"), row(1012.5, engine=None)] * 20
    assert read([*others, *a_run(8, 16)]) == read(list(a_run(8, 16)))


def test_gpu_use_is_measured_over_the_steady_part() -> None:
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


# --- how often a setting is run -----------------------------------------------------------------


def sample_of(number: int) -> Sample:
    files = frozenset(f"{index}.png" for index in range(number))
    return Sample(Pilot(InputConfig(only=files), number, 1, {"": number}))


def runs_of(
    monkeypatch: pytest.MonkeyPatch,
    outcome: Callable[[int], Figures],
    num_sampled: int,
    num_seqs: int = 8,
) -> tuple[Setting | None, list[tuple[int, bool]]]:
    """A setting where a run over so many items has this outcome; the runs, as they are told."""
    told: list[tuple[int, bool]] = []

    def run_once(config: RunConfig, value: str) -> Setting:
        return Setting(value, "out", outcome(len(config.input.only or ())))

    def tell(number: int, seconds: float | None, again: bool) -> None:
        told.append((number, again))

    monkeypatch.setattr(trial, "_measure_once", run_once)
    config = RunConfig(engine=EngineConfig(max_num_seqs=num_seqs))
    return trial.try_out(config, "8", sample_of(num_sampled), Path("out"), None, tell), told


def test_fast_engine_is_measured_again_on_as_many_items_as_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def outcome(number: int) -> Figures:
        return figures(100.0, steady_s=number / 100.0)

    found, told = runs_of(monkeypatch, outcome, PLENTY)
    assert told == [(256, False), (1231, True)]
    assert found is not None
    assert found.figures == outcome(1231)


def test_setting_is_not_measured_again_with_fewer_items(monkeypatch: pytest.MonkeyPatch) -> None:
    _, told = runs_of(monkeypatch, lambda _: figures(1.0, steady_s=1.0), PLENTY)
    assert told == [(256, False)]


def test_setting_for_which_the_sample_is_too_small_starts_no_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, told = runs_of(monkeypatch, figures, 223, num_seqs=32)
    assert (found and found.problem) == "needs at least 224 items; the sample has 223"
    assert told == []


# --- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "tried"),
    [
        ("max-num-seqs=8,24", Tried("max-num-seqs", ("8", "24"))),
        ("--max_num_seqs=8, 24", Tried("max-num-seqs", ("8", "24"))),
        ("enforce-eager=true,false", Tried("enforce-eager", ("true", "false"))),
        ('x={"a": [1,2]},{"a": 3}', Tried("x", ('{"a": [1,2]}', '{"a": 3}'))),
        ("x=1,1,2", Tried("x", ("1", "2"))),
        ("tp=1,2", Tried("tensor-parallel-size", ("1", "2"))),
    ],
)
def test_try_names_a_flag_and_its_values(given: str, tried: Tried) -> None:
    assert parse_try(given) == tried


@pytest.mark.parametrize(
    "given",
    [
        *("", "block-size", "block-size=", "=1,2", "try=1", "output=a,b", "skip-types=a,b"),
        *("dp=1,2", "quiet=true", "gpu-hour-price=1,2", "redo=all", "checkpoint-interval=1,2"),
    ],
)
def test_try_of_a_flag_that_is_not_an_engine_setting_is_a_mistake(given: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_try(given)


@pytest.mark.parametrize(
    ("line", "flag", "value", "made"),
    [
        ("pics --quiet", "max-num-seqs", "32", "pics --quiet --max-num-seqs=32"),
        ("pics --max-num-seqs 8 -q fp8", "max-num-seqs", "32", "pics -q fp8 --max-num-seqs=32"),
        ("--try x=1,2 --sample=9 --top-k -1", "x", "2", "--top-k -1 --x=2"),
        ("--tune_output=o --max_num_seqs 8 --quiet", SEQS, "16", "--quiet --max-num-seqs=16"),
        ("--no-x --y", "x", "true", "--y --x"),
        ("--x --y", "x", "false", "--y --no-x"),
    ],
)
def test_command_to_run_has_the_new_value_in_place_of_the_old_one(
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


@pytest.fixture(scope="module")
def input_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input of 600 items; nobody writes into it."""
    folder = tmp_path_factory.mktemp("input")
    make_input(folder, 600)
    return folder


@pytest.fixture
def tune(
    tmp_path: Path, input_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`tune` with an engine of known speed instead of runs."""

    def call(speed: Callable[[RunConfig], float | None], *flags: str) -> Result:
        def try_out(config: RunConfig, value: str, *_: object) -> Setting:
            return measured(value, speed(config))

        monkeypatch.setattr(trial, "try_out", try_out)
        line = ("--model=demo", *input_flags(input_folder), f"--output={tmp_path / 'out'}")
        return run_here("tune", *line, "--quiet", *flags)

    return call


def linear(config: RunConfig) -> float:
    return config.engine.max_num_seqs


def after(*measured_before: str, then: BaseException) -> Callable[[RunConfig], float]:
    """Speeds of these numbers of sequences; with any other, this happens."""

    def speed(config: RunConfig) -> float:
        if str(config.engine.max_num_seqs) not in measured_before:
            raise then
        return linear(config)

    return speed


def tuning_in(folder: Path) -> Tuning:
    found = read_tuning(folder / "out.tune")
    assert found is not None
    return found


def test_table_and_file_hold_every_setting_and_the_command_to_run(
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
    assert "  Cost: 43.40 per million captions at 16.0 images/s." in lines
    found = tuning_in(tmp_path)
    assert f"Run: {found.command}" in lines
    assert found.command is not None
    assert found.command.startswith("python -m vllm_caption --model=demo --jsons=")
    assert found.command.endswith("--seed=7 --max-num-seqs=16")
    assert [(s.value, s.speed) for s in found.settings] == [("8", 8), ("16", 16), ("32", None)]
    assert (found.fastest, found.num_sampled) == ("16", 600)
    assert found.ended == "32 could not be measured"


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


def test_refused_flag_is_a_row_and_does_not_end_tune(
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


def test_run_that_cannot_continue_is_a_row_and_not_the_end(
    tmp_path: Path, tune: Callable[..., Result]
) -> None:
    speed = after("8", "32", then=RunStopped("the disk is full"))
    assert tune(speed, "--try=max-num-seqs=8,16,32").exit_code == 0
    problems = [setting.problem for setting in tuning_in(tmp_path).settings]
    assert problems == [None, "the disk is full", None]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit=30"], "the input: has only 30 items; --max-num-seqs=8 needs at least 56 items"),
        (["--sample=55"], "--sample 55: is too small; --max-num-seqs=8 needs at least 56 items"),
        (["--try=max-num-seqs=100,99"], "the input: has only 600 items; --max-num-seqs=99 needs"),
        (["--try=top-k=1", "--try=seed=1,2"], "--try: is given twice; tune varies one flag"),
        (["--tune-output={out}"], "{out}: is in --output; name another folder"),
        (["--tune-output={out}/x"], "{out}/x: is in --output; name another folder"),
        (["--tune-output={out}.loop"], "out.loop: cannot be written (File exists)"),
        (["--tune-output=/proc/x"], "--tune-output /proc/x: cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_said_before_an_engine_starts(
    tmp_path: Path, tune: Callable[..., Result], flags: list[str], message: str
) -> None:
    out = tmp_path / "out"
    (tmp_path / "out.loop").symlink_to("out.loop")
    result = tune(after(then=AssertionError()), *(flag.format(out=out) for flag in flags))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message.format(out=out) in result.stderr
    assert not out.exists()


def test_two_at_a_time_in_one_folder_are_refused(
    tmp_path: Path, tune: Callable[..., Result]
) -> None:
    folder = tune_folder(tmp_path / "out")
    folder.mkdir()
    lock = OutputLock(folder)
    result = tune(linear)
    lock.release()
    assert result.exit_code == 2
    assert f"--tune-output {folder}: is in use by process {os.getpid()}" in result.stderr
    assert tune(linear).exit_code == 0


def test_mistake_in_the_line_itself_is_one_line_and_exit_2(tune: Callable[..., Result]) -> None:
    def refuse(config: RunConfig) -> float:
        raise UsageError("--model", "demo", "is refused by vLLM")

    result = tune(refuse)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "vllm-caption: error: --model demo: is refused by vLLM\n"


def test_model_that_is_nowhere_is_refused_before_anything_starts(
    tmp_path: Path, tune: Callable[..., Result]
) -> None:
    result = tune(linear, "--model=demo2")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--model demo2: is neither a folder nor in the Hub's cache" in result.stderr
    assert "did you mean demo?" in result.stderr
    assert not (tmp_path / "out.tune").exists()


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
    assert "No setting could be measured: out of memory" in result.stdout
    assert "Run:" not in result.stdout


def test_ctrl_c_keeps_what_was_measured_and_prints_the_line_to_run(
    tmp_path: Path, tune: Callable[..., Result]
) -> None:
    result = tune(after("8", "16", then=KeyboardInterrupt()))
    assert result.exit_code == 130
    lines = result.stdout.splitlines()
    assert "Interrupted: run the same command line again to measure the rest." in lines
    found = tuning_in(tmp_path)
    assert (found.ended, [s.value for s in found.settings]) == ("interrupted", ["8", "16"])
    assert (found.command or "").endswith("--max-num-seqs=16")
    assert f"Run: {found.command}" in lines


def test_run_that_was_interrupted_is_no_row_and_ends_the_command(
    tmp_path: Path, tune: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_caption.commands.tune.trial._measure_once", lambda *_: None)
    assert trial.try_out(RunConfig(), "8", sample_of(60), tmp_path, None, lambda *_: None) is None


def test_ctrl_c_before_the_first_setting_leaves_an_earlier_file(
    tmp_path: Path, tune: Callable[..., Result]
) -> None:
    tune(linear)
    before = tuning_in(tmp_path)
    result = tune(after(then=KeyboardInterrupt()))
    assert (result.exit_code, result.stdout) == (
        130,
        "Interrupted before a setting was measured: run the same command line again.\n",
    )
    assert tuning_in(tmp_path) == before


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit()])
def test_same_line_after_an_interruption_measures_only_the_rest(
    tmp_path: Path, tune: Callable[..., Result], ending: BaseException
) -> None:
    """The second is as a kill: no last word is written."""
    try:
        tune(after("8", "16", then=ending), "--sample=300")
    except SystemExit:
        assert tuning_in(tmp_path).ended == ""
    result = tune(after("32", then=AssertionError("measured twice")), "--sample=300")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:4]] == ["8", "16", "32"]
    found = tuning_in(tmp_path)
    assert (found.fastest, len(found.settings)) == ("32", 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [([], []), (["--try=max-num-seqs=8,64"], []), ([], ["--seed=1"]), ([], ["--sample=300"])],
)
def test_another_line_and_a_line_that_ended_measure_everything(
    tmp_path: Path, tune: Callable[..., Result], first: list[str], second: list[str]
) -> None:
    ends_by_itself = first == second
    tune(linear if ends_by_itself else after("8", then=KeyboardInterrupt()), *first)
    values: list[str] = []

    def speed(config: RunConfig) -> float:
        values.append(str(config.engine.max_num_seqs))
        return linear(config)

    tune(speed, *second)
    assert values[0] == "8"
    assert [setting.value for setting in tuning_in(tmp_path).settings] == values


def test_file_of_another_machine_or_version_is_not_resumed() -> None:
    call = Tuning(flag="x", started_at="", num_sampled=9, call=["host", "1.0", "pics"])
    other = Tuning(flag="x", started_at="", num_sampled=9, settings=[measured(8, 1.0)])
    for named, expected in (
        (["host", "1.0", "pics"], True),
        (["other", "1.0", "pics"], False),
        (["host", "1.1", "pics"], False),
    ):
        assert call.resumes(msgspec.structs.replace(other, call=named)) == expected
    assert not call.resumes(None)


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


@pytest.mark.parametrize(
    ("others", "remark"),
    [
        ({"limited_by": "decode"}, "The bottleneck is decode, not the engine. Faster with: "),
        ({}, None),
    ],
)
def test_result_says_why_it_may_not_be_the_engines(
    others: dict[str, Any], remark: str | None
) -> None:
    tuning = Tuning(
        flag="x", started_at="", num_sampled=9, settings=[measured(8, 100.0, **others)], ended="."
    )
    remarks = [line for line in text.conclusion(tuning, Path("t")) if line.startswith("  ")]
    assert len(remarks) == (remark is not None)
    assert remark is None or remarks[0].startswith(f"  {remark}")


def test_unreliable_figures_are_said_before_the_result_with_the_flag_to_raise() -> None:
    tuning = Tuning(
        flag="x", started_at="", num_sampled=9, settings=[measured(8, 100.0, steady_s=0.5)]
    )
    _, warning, fastest, *_ = text.conclusion(tuning, Path("t"))
    assert warning == (
        "Not reliable: --x=8 was measured for only 500 ms; raise --sample (9 items now), or"
        " give a larger input."
    )
    assert fastest.startswith("Fastest: --x=8")


# --- the whole command -------------------------------------------------------------------------


def test_killed_tune_resumes_with_the_same_line(tmp_path: Path) -> None:
    make_input(tmp_path, 14)
    out = tmp_path / "out"
    line = ["tune", *input_flags(tmp_path), f"--output={out}", "--try=max-num-seqs=1,2"]
    folder, slow = tune_folder(out), {"FAKE_SLOW_STAGE": "engine"}
    process = start(*line, command=FAKE, environment=slow)
    wait_until(lambda: read_tuning(folder), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (first,) = killed = tuning_in(tmp_path).settings
    assert (tuning_in(tmp_path).ended, first.value) == ("", "1")
    result = run(*line, command=FAKE, environment=slow)
    assert result.exit_code == 0, result.stderr
    assert "Resuming the call of " in result.stderr
    assert "Measuring --max-num-seqs=1 " not in result.stderr
    assert tuning_in(tmp_path).settings[:1] == killed
    assert "Done: all values were measured." in result.stdout
    assert not out.exists()


# --- the whole command on real engines ---------------------------------------------------------


@pytest.mark.engine
def test_real_engine_is_measured_up_to_the_memory_that_it_has_across_an_interruption(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, min_items(32))
    output = tmp_path / "out"
    line = (
        *("tune", "--model=demo", *input_flags(tmp_path), f"--output={output}", "--quiet"),
        *("--worker-cls=benchmarks.throughput.sleepy.CrampedWorker", "--max-num-seqs=16"),
        *("--no-checks", "--ignore-eos", "--max-tokens=12"),
    )

    def interrupt_the_second_run(_: io.StringIO) -> None:
        # Its status is written once its own handlers of signals are in place.
        folder = tune_folder(output)
        second = wait_until(lambda: [*folder.glob("*/2-max-num-seqs=32/status.json")])[0]
        wait_until(lambda: status(second.parent))
        os.kill(os.getpid(), signal.SIGINT)

    result = run_here(*line, meanwhile=interrupt_the_second_run)
    assert result.exit_code == 130, result.stderr
    kept = tuning_in(tmp_path)
    (of_16,) = kept.settings
    assert (of_16.value, kept.fastest, kept.ended) == ("16", "16", "interrupted")
    printed = result.stdout.splitlines()
    assert printed[1].split()[0] == "16"
    assert f"Run: {kept.command}" in printed
    assert (kept.command or "").endswith("--max-tokens=12 --max-num-seqs=16")

    result = run_here(*line)
    assert result.exit_code == 0, result.stderr
    found = tuning_in(tmp_path)
    measured, too_large = found.settings
    assert measured == of_16
    assert (too_large.value, found.fastest) == ("32", "16")
    assert (too_large.problem or "").startswith("out of memory: ")
    figures_of_16 = measured.figures
    assert figures_of_16 is not None
    assert figures_of_16.images == 13 * 16 - 32
    assert figures_of_16.limited_by == "engine"
    assert figures_of_16.tokens_per_s == pytest.approx(12 * figures_of_16.images_per_s, rel=0.01)
    assert 1.2 < figures_of_16.engine_s_p50 < 16 / figures_of_16.images_per_s * 2.5
    assert figures_of_16.start_s > 0
    assert not output.exists()
