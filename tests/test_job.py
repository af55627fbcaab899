"""What users are promised of the job, on the real engine and real files."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import CRELLO_LIKE
from support.job import (
    Result,
    captions,
    draw_shape,
    input_flags,
    make_input,
    rows,
    run,
    run_here,
    start,
    status,
    wait_until,
    write_document,
)

from vllm_caption.driver.engine_slot import JOIN_TIMEOUT_S
from vllm_caption.process import DECODER_NAME
from vllm_caption.store.layout import parts

pytestmark = pytest.mark.engine

MODEL = "--model=demo"
SHORT = "--max-tokens=16"
LONG = ("--ignore-eos", "--max-tokens=60", "--no-checks")  # every item is slow


@dataclass(frozen=True)
class CorpusRun:
    """The corpus of real shapes, captioned by two engines, and a second run over it."""

    expected: dict[str, Any]
    output: Path
    first: Result
    second: Result
    second_cpu_s: float
    logs_of_first: dict[Path, int]
    logs_of_second: dict[Path, int]

    def items_line(self, *, captioned_now: bool) -> str:
        """The line of the summary that counts the items."""
        counts = self.expected["counts"]
        captioned = counts["captioned"]
        now = captioned if captioned_now else 0
        return (
            f"Items: {counts['items']}, captioned {captioned} ({now} in this run),"
            f" failed {counts['failed']}"
        )


@pytest.fixture(scope="module")
def corpus_run(tmp_path_factory: pytest.TempPathFactory) -> CorpusRun:
    folder, output = CRELLO_LIKE, tmp_path_factory.mktemp("corpus")
    arguments = [MODEL, *input_flags(folder), f"--output={output}", "-dp=2"]
    first = run_here(*arguments)
    logs, cpu_s = stamps_of_logs(output), cpu_s_of_children()
    second = run(*arguments)
    cpu_s = cpu_s_of_children() - cpu_s
    expected = json.loads((folder / "expected.json").read_text())
    return CorpusRun(expected, output, first, second, cpu_s, logs, stamps_of_logs(output))


def stamps_of_logs(output: Path) -> dict[Path, int]:
    """When each log of an engine or of the check of the flags was last written."""
    return {path: path.stat().st_mtime_ns for path in (output / "logs").iterdir()}


def cpu_s_of_children() -> float:
    """The processor time of the children of this process that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input of 20 drawn shapes."""
    folder = tmp_path_factory.mktemp("shapes")
    make_input(folder, 20)
    return folder


# --- the corpus of real shapes -----------------------------------------------------------------


def test_corpus_run_captions_every_shape_and_nothing_else(corpus_run: CorpusRun) -> None:
    items = corpus_run.expected["items"]
    good = {file for file, item in items.items() if item["outcome"] == "captioned"}
    assert set(captions(corpus_run.output)) == good
    assert len(good) == corpus_run.expected["counts"]["captioned"]


def test_corpus_run_fails_broken_files_with_their_kinds_and_exits_1(corpus_run: CorpusRun) -> None:
    items = corpus_run.expected["items"]
    expected = {file: item["kind"] for file, item in items.items() if item["outcome"] == "failed"}
    found = rows(corpus_run.output)
    failed = {file: row["error_kind"] for file, row in found.items() if row["status"] == "failed"}
    assert failed == expected
    assert all(found[file]["error"] for file in failed)
    assert corpus_run.first.exit_code == 1
    assert corpus_run.items_line(captioned_now=True) in corpus_run.first.stdout


def test_corpus_run_names_the_documents_that_were_skipped_and_why(corpus_run: CorpusRun) -> None:
    table = pq.read_table(corpus_run.output / "documents.parquet").to_pylist()
    expected = {n: d["reason"] for n, d in corpus_run.expected["skipped_documents"].items()}
    assert {row["document"]: row["kind"] for row in table} == expected
    counts = corpus_run.expected["counts"]
    read = f"Designs: {counts['documents']:,} read, {counts['documents_skipped']:,} skipped"
    assert read in corpus_run.first.stdout


def test_corpus_run_never_captions_a_text_or_photo_element(corpus_run: CorpusRun) -> None:
    assert set(rows(corpus_run.output)) == set(corpus_run.expected["items"])


def test_second_run_starts_no_engine_and_ends_with_the_same_counts(corpus_run: CorpusRun) -> None:
    second = corpus_run.second
    assert second.exit_code == 1
    assert corpus_run.items_line(captioned_now=False) in second.stdout
    assert "missing_file 5" in second.stdout
    assert "Checking" not in second.stderr
    assert corpus_run.logs_of_second == corpus_run.logs_of_first
    assert corpus_run.second_cpu_s < 5  # importing vLLM takes more


def test_every_row_of_a_caption_says_what_made_it_and_agrees_with_its_file(
    corpus_run: CorpusRun,
) -> None:
    recipes = json.loads((corpus_run.output / "recipes.json").read_text())
    texts = captions(corpus_run.output)
    for file, row in rows(corpus_run.output).items():
        if row["status"] == "captioned":
            assert row["caption"] == texts[file]
            assert row["caption_path"] == f"{file}.txt"
            assert recipes[row["recipe_id"]]["model"] == row["model"] == "demo"
        if row["engine"] is not None and row["status"] == "captioned":
            assert row["prompt_tokens"] > 8
            assert row["output_tokens"] > 0
            assert row["generate_s"] > 0
            item = corpus_run.expected["items"][file]
            assert [row["image_width"], row["image_height"]] == item["size"]
            assert row["image_sha256"] == item["sha256"]


def test_byte_identical_images_are_captioned_once_and_share_the_caption(
    corpus_run: CorpusRun,
) -> None:
    items, found = corpus_run.expected["items"], rows(corpus_run.output)
    twins = {file: row["same_as"] for file, row in found.items() if row["same_as"]}
    counts = corpus_run.expected["counts"]
    assert len(twins) == counts["captioned"] - counts["unique_bytes"] > 0
    for file, other in twins.items():
        assert items[file]["sha256"] == items[other]["sha256"]
        assert found[file]["caption"] == found[other]["caption"]
        assert found[other]["same_as"] is None


def test_finished_run_leaves_one_row_per_item_and_an_empty_journal(corpus_run: CorpusRun) -> None:
    (part,) = parts(corpus_run.output / "manifest.parquet")
    files = pq.read_table(part, columns=["file"])["file"].to_pylist()
    assert len(files) == len(set(files)) == corpus_run.expected["counts"]["items"]
    assert (corpus_run.output / "journal.jsonl").read_bytes() == b""
    assert not list(corpus_run.output.rglob("*.tmp"))


def test_both_engines_took_part(corpus_run: CorpusRun) -> None:
    made = [row for row in rows(corpus_run.output).values() if row["output_tokens"]]
    engines = [row["engine"] for row in sorted(made, key=lambda row: row["finished_at"])]
    assert set(engines) == {0, 1}
    shares = Counter(engines[max(engines.index(0), engines.index(1)) :])  # once both are up
    assert min(shares.values()) > 0.25 * shares.total()


# --- prompts, resume, adoption -----------------------------------------------------------------


def test_changed_prompt_keeps_what_is_done_and_redo_stale_recaptions_it(
    shapes: Path, tmp_path: Path
) -> None:
    base = [MODEL, SHORT, *input_flags(shapes), f"--output={tmp_path}", "--limit=4"]
    run_here(*base, "--prompt=shape-brief")
    brief = captions(tmp_path)
    kept = run_here(*base, "--prompt=shape-zh")
    assert captions(tmp_path) == brief
    assert (
        "4 kept captions are stale (--redo stale captions them again): made with --prompt"
        " shape-brief\n" in kept.stdout
    )
    anew = run_here(*base, "--prompt=shape-zh", "--redo=stale")
    assert "captioned 4 (4 in this run)" in anew.stdout
    assert all(captions(tmp_path)[file] != text for file, text in brief.items())
    names = {row["prompt_name"] for row in rows(tmp_path).values()}
    assert names == {"shape-zh"}
    assert len(json.loads((tmp_path / "recipes.json").read_text())) == 2


@dataclass(frozen=True)
class AdoptedRun:
    """A run into the folder of older scripts, over files that two documents name and of which one
    is not there yet; and a rerun once it is."""

    files: list[str]
    output: Path
    first: Result
    rows_of_first: dict[str, dict[str, Any]]
    second: Result


@pytest.fixture(scope="module")
def adopted_run(tmp_path_factory: pytest.TempPathFactory) -> AdoptedRun:
    folder = tmp_path_factory.mktemp("adopted")
    files, output = make_input(folder, 4), folder / "out"
    write_document(folder, "another", files[2:], ["svgElement", "SvgMaskElement"])
    hidden = folder / "raw" / files[3]
    hidden.rename(folder / "elsewhere.png")
    (output / "d0").mkdir(parents=True)
    (output / f"{files[0]}.txt").write_text("an old caption")
    (output / f"{files[1]}.txt").touch()
    arguments = [MODEL, SHORT, *input_flags(folder), f"--output={output}"]
    first = run_here(*arguments)
    rows_of_first = rows(output)
    (folder / "elsewhere.png").rename(hidden)
    return AdoptedRun(files, output, first, rows_of_first, run_here(*arguments))


def test_captions_of_the_old_scripts_are_adopted_and_empty_files_are_not(
    adopted_run: AdoptedRun,
) -> None:
    old, empty = adopted_run.files[:2]
    assert "captioned 3 (2 in this run), failed 1" in adopted_run.first.stdout
    assert adopted_run.second.exit_code == 0
    assert captions(adopted_run.output)[old] == "an old caption"
    assert captions(adopted_run.output)[empty]
    row = rows(adopted_run.output)[old]
    assert (row["status"], row["caption"], row["recipe_id"]) == (
        "captioned",
        "an old caption",
        None,
    )


def test_failed_item_is_captioned_on_a_rerun_once_its_file_is_there(
    adopted_run: AdoptedRun,
) -> None:
    hidden = adopted_run.files[3]
    assert adopted_run.first.exit_code == 1
    assert adopted_run.rows_of_first[hidden]["status"] == "failed"
    assert adopted_run.second.exit_code == 0
    assert rows(adopted_run.output)[hidden]["status"] == "captioned"


def test_file_named_by_several_documents_is_captioned_once(adopted_run: AdoptedRun) -> None:
    named_by = {file: row["document"] for file, row in rows(adopted_run.output).items()}
    once, twice = adopted_run.files[:2], adopted_run.files[2:]
    assert named_by == dict.fromkeys(once, "design_000") | dict.fromkeys(twice, "another")


def test_engine_flags_sampling_flags_and_pixel_bounds_reach_the_engine(tmp_path: Path) -> None:
    make_input(tmp_path, 0)
    write_document(tmp_path, "design", ["large.png"], ["SvgElement"])
    (tmp_path / "raw").mkdir(exist_ok=True)
    draw_shape(1).resize((840, 840)).save(tmp_path / "raw/large.png")
    arguments = [MODEL, *input_flags(tmp_path), "--ignore-eos", "--max-model-len=512"]
    tokens = {}
    for side in (4, 8):  # in image tokens of 28 × 28 pixels
        output = tmp_path / str(side)
        bounds = f"--max-pixels={(28 * side) ** 2}"
        run_here(*arguments, f"--output={output}", f"--max-tokens={side}", bounds)
        made = rows(output)["large.png"]
        assert (made["output_tokens"], made["finish_reason"]) == (side, "length")
        assert "Using max model len 512" in (output / "logs/preflight.log").read_text()
        tokens[side] = made["prompt_tokens"]
    assert tokens[8] - tokens[4] == 8 * 8 - 4 * 4


# --- deaths and interrupts ---------------------------------------------------------------------


def up_engines(output: Path) -> list[int]:
    """The worker processes of the engines that are up."""
    engines = status(output).get("engines", [])
    return [engine["pid"] for engine in engines if engine["state"] == "up"]


def start_and_kill(arguments: list[str], output: Path, num_captions: int) -> None:
    """A run that is killed, with nothing of it left soon after, once so many captions are there."""
    process = start(*arguments)
    driver = psutil.Process(process.pid)
    wait_until(lambda: driver.children(recursive=True), process)
    wait_until(lambda: len(list(output.rglob("*.txt"))) >= num_captions, process)
    family = driver.children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not psutil.wait_procs(family, timeout=30)[1]


def test_repeatedly_killed_driver_leaves_no_process_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 90)
    output = tmp_path / "out"
    arguments = [MODEL, *input_flags(tmp_path), f"--output={output}", "-dp=2"]
    arguments += ["--checkpoint-interval=20", *LONG]
    written: dict[Path, int] = {}
    for captions_at_kill in (0, 25):  # the first while vLLM is imported
        start_and_kill(arguments, output, captions_at_kill)
        now = {path: path.stat().st_mtime_ns for path in output.rglob("*.txt")}
        assert captions_at_kill <= len(now) < 90
        assert all(path.stat().st_size for path in now)
        assert now | written == now  # nothing is captioned twice
        written = now
    assert run_here(*arguments).exit_code == 0
    assert set(captions(output)) == set(rows(output)) == set(files)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    unknown = [row for row in rows(output).values() if row["recipe_id"] is None]
    assert len(unknown) <= 3  # those between their .txt and their row, if a kill hit there


@pytest.mark.parametrize("kind", ["x.tar", "x.parquet"])
def test_run_over_images_inside_one_file_resumes_after_a_kill_and_repeats_nothing(
    tmp_path: Path, kind: str
) -> None:
    make_input(tmp_path, 60)
    drawn = sorted((tmp_path / "raw").rglob("*.png"))
    held = tmp_path / kind
    if kind == "x.tar":
        with tarfile.open(held, "w") as opened:
            for path in drawn:
                opened.add(path, path.name)
    else:
        cells = [{"bytes": path.read_bytes(), "path": path.name} for path in drawn]
        pq.write_table(pa.table({"image": cells}), held, row_group_size=7)
    output = tmp_path / "out"
    arguments = [str(held), MODEL, f"--output={output}", "-dp=2", *LONG]
    start_and_kill(arguments, output, 15)
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*.txt")}
    assert 15 <= len(written) < 60
    result = run_here(*arguments)
    assert result.exit_code == 0, result.stderr
    assert set(captions(output)) == set(rows(output))
    assert len({row["image_sha256"] for row in rows(output).values()}) >= 60 - 3
    assert len(rows(output)) == 60
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_killed_engine_is_replaced_and_every_item_is_captioned_once(tmp_path: Path) -> None:
    files = make_input(tmp_path, 150)
    output = tmp_path / "out"

    def kill_one(told: io.StringIO) -> None:
        wait_until(lambda: len(captions(output)) >= 20)
        pids = wait_until(lambda: up_engines(output))
        family = psutil.Process(pids[0]).children()
        core = next(process for process in family if process.name() != DECODER_NAME)
        began = time.monotonic()
        core.kill()
        wait_until(lambda: "died" in told.getvalue())
        assert time.monotonic() - began < JOIN_TIMEOUT_S  # it was not waited for

    arguments = [MODEL, *input_flags(tmp_path), f"--output={output}", "-dp=2"]
    result = run_here(*arguments, *LONG, meanwhile=kill_one)
    assert result.exit_code == 0, result.stderr
    assert "Items: 150, captioned 150 (150 in this run), failed 0" in result.stdout
    assert set(captions(output)) == set(files)
    assert {row["attempts"] for row in rows(output).values()} == {1}


RUN_FOR_A_TENTH = """
import contextlib, os, signal, sys, time
with contextlib.suppress(ProcessLookupError):  # it has ended
    while True:
        os.killpg(int(sys.argv[1]), signal.SIGSTOP)
        time.sleep(0.18)
        os.killpg(int(sys.argv[1]), signal.SIGCONT)
        time.sleep(0.02)
"""
"""Slows down a group of processes, in a process that nothing else keeps busy."""


def test_slow_engine_takes_fewer_items_and_the_others_take_its_share(tmp_path: Path) -> None:
    make_input(tmp_path, 240)
    output = tmp_path / "out"
    before: list[int] = []

    def slow_down(_: io.StringIO) -> None:
        """Once both engines are up, one runs for only a tenth of the time."""
        pids = wait_until(lambda: len(up_engines(output)) == 2 and up_engines(output))
        before.extend(engine["captioned"] for engine in status(output)["engines"])
        subprocess.run([sys.executable, "-c", RUN_FOR_A_TENTH, str(pids[0])], check=True)

    arguments = [MODEL, *input_flags(tmp_path), f"--output={output}", "-dp=2"]
    result = run_here(*arguments, *LONG, meanwhile=slow_down)
    assert result.exit_code == 0, result.stderr
    after = [engine["captioned"] for engine in status(output)["engines"]]
    assert sum(after) == 240
    slowed, other = (end - begin for begin, end in zip(before, after, strict=True))
    assert slowed + other > 50
    assert slowed < 0.35 * (slowed + other)


def test_ctrl_c_finishes_what_is_in_flight_and_leaves_another_run_alone(tmp_path: Path) -> None:
    make_input(tmp_path, 200)
    output = tmp_path / "out"
    arguments = [MODEL, *input_flags(tmp_path), "-dp=1", *LONG]
    process = start(*arguments, f"--output={output}")

    def interrupt(_: io.StringIO) -> None:
        wait_until(lambda: len(list(output.rglob("*.txt"))) >= 10, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group

    beside = run_here(*arguments, f"--output={tmp_path / 'b'}", "--limit=60", meanwhile=interrupt)
    assert beside.exit_code == 0, beside.stderr
    assert len(captions(tmp_path / "b")) == 60
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted: finishing 1" in stderr  # a window of 16, give or take
    made = rows(output)
    assert set(captions(output)) == set(made)
    assert 10 < len(made) < 200
    assert f"not tried {200 - len(made)}" in stdout
    assert stdout.endswith(
        "\nInterrupted: run the same command line again to resume; nothing is lost.\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("processes", [0, 1, 2])
def test_ctrl_c_before_an_engine_is_up_leaves_at_once(
    tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    make_input(tmp_path, 3)
    output = tmp_path / "out"
    process = start(MODEL, *input_flags(tmp_path), f"--output={output}")
    wait_until(lambda: status(output), process)
    driver = psutil.Process(process.pid)
    family = wait_until(lambda: len(found := driver.children()) >= processes and [driver, *found])
    os.killpg(process.pid, number)  # also reaches processes that do not lead their own session yet
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert not list(output.rglob("*.log")), "it waited for vLLM to be imported"
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_second_ctrl_c_stops_at_once_and_keeps_finished_captions(tmp_path: Path) -> None:
    make_input(tmp_path, 60)
    output = tmp_path / "out"
    second: list[float] = []

    def interrupt_twice(told: io.StringIO) -> None:
        wait_until(lambda: up_engines(output))
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: "Interrupted: finishing" in told.getvalue())
        second.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    arguments = [MODEL, *input_flags(tmp_path), f"--output={output}", "-dp=1", "--no-checks"]
    sleepy = "--worker-cls=benchmarks.throughput.sleepy.SleepyWorker"  # a step takes 20 ms
    endless = (sleepy, "--ignore-eos", "--max-tokens=1500")
    result = run_here(*arguments, *endless, meanwhile=interrupt_twice)
    assert result.exit_code == 130
    assert time.monotonic() - second[0] < JOIN_TIMEOUT_S  # their captions take 30 s
    assert set(captions(output)) == {
        file for file, row in rows(output).items() if row["status"] == "captioned"
    }


def test_engine_that_cannot_start_ends_the_run_with_the_cause_and_exit_3(
    shapes: Path, tmp_path: Path
) -> None:
    arguments = [MODEL, *input_flags(shapes), f"--output={tmp_path}", "--max-engine-restarts=0"]
    result = run_here(*arguments, "--kv-cache-memory-bytes=1K")
    assert result.exit_code == 3
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Stopped: no engine can start: ValueError: Cannot ")
    assert "not enough" in last
    assert "lower --max-model-len" in last
    assert str(tmp_path / "logs/engine-0.log") in last
    assert "Traceback" not in result.stderr


# --- mistakes, found before an engine starts ---------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--gpu-memory-utilisation=0.9", "unknown flag; did you mean --gpu-memory-utilization?"),
        ("--gpu-memory-util=0.9", "unknown flag; did you mean --gpu-memory-utilization?"),
        ("--dtype=float99", "float99"),
        ("--kv-cache-memory-bytes=lots", "lots"),
        ("--quantization=nonsense", "nonsense"),
        ("--max-model-len=-5", "max_model_len: Input should be greater than or equal to -1"),
        ("--temperature=-1", "temperature must be non-negative"),
        ("--top-p=7", "top_p must be in (0, 1]"),
        ("--model=Nobody/NoSuchModel", "--model Nobody/NoSuchModel: "),
    ],
)
def test_flag_that_vllm_refuses_is_one_line_and_exit_2_before_an_engine_starts(
    shapes: Path, tmp_path: Path, flag: str, message: str
) -> None:
    result = run_here(MODEL, *input_flags(shapes), f"--output={tmp_path}", flag)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("vllm-caption: error: ")
    assert message in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "logs/engine-0.log").exists()
