"""What `status` reports of a run that is active, ended or died; and when `--watch` ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.job import (
    ENVIRONMENT,
    FAKE,
    QUICK,
    Terminal,
    captions,
    input_flags,
    make_input,
    run_here,
    start,
    wait_until,
)

from vllm_caption.commands.status import states
from vllm_caption.commands.status.command import run_status
from vllm_caption.commands.status.layout import draw
from vllm_caption.commands.status.overview import Views, overview
from vllm_caption.commands.status.shards import look_at
from vllm_caption.commands.status.text import describe
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.formatting import recorded_moment
from vllm_caption.monitoring.figures import EngineFigures, HostFigures
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.monitoring.status import (
    RunStatus,
    Speed,
    State,
    View,
    encode_status,
    how_it_ended,
    look,
    make_status,
    seen_state,
)
from vllm_caption.store.lock import OutputLock, find_holder

AT = "2026-01-01T00:00:00+00:00"
NOW = datetime(2026, 1, 1, 11, tzinfo=UTC)


def status_of(state: Any = "running", captioned: int = 30, reason: str = "") -> RunStatus:
    engines = [EngineFigures(0, "up", 11, in_flight=4), EngineFigures(1, "starting", restarts=2)]
    stats = RunStats(engines, total=100, scanning=False, done_before=20)
    for number in range(captioned):
        stats.count_caption(number % 3 == 2, 50, 20, float(number))
    stats.count_failure("missing_file", "a.png: there is no such file")
    return make_status("run-1", state, stats, 30.0, AT, reason)


def test_speed_of_an_earlier_run_stays_until_a_run_has_made_enough_captions() -> None:
    def speed(captioned: int, earlier: Speed | None) -> Speed | None:
        stats = RunStats([EngineFigures(0), EngineFigures(1)])
        for number in range(captioned):
            stats.count_caption(0, 1, 1, number / 10)
        return make_status("run-2", "finished", stats, 99.0, AT, earlier=earlier).speed

    few, many = Speed(5.0, 30, 1, 1, "before"), Speed(5.0, 10_000, 1, 1, "before")
    assert [speed(number, None) for number in (0, 1)] == [None, None]
    assert speed(3, None) == Speed(10.0, 3, 1, 2, AT)
    assert [speed(number, few) for number in (0, 1, 29)] == [few] * 3
    assert speed(30, few) == Speed(10.0, 30, 1, 2, AT)
    assert speed(99, many) == many
    assert speed(100, many) == Speed(10.0, 100, 1, 2, AT)


def test_run_that_captioned_nothing_shows_the_one_that_did(tmp_path: Path) -> None:
    def before(captioned: int) -> list[str]:
        stats = RunStats([EngineFigures(0)], total=69, captioned=captioned)
        earlier = Speed(4.3, 69, 1, 1, "2026-11-30T01:37:00+00:00")
        status = make_status("run-2", "finished", stats, 99.0, AT, earlier=earlier)
        (tmp_path / "status.json").write_bytes(encode_status(status))
        return [
            line
            for line in describe(look_at(tmp_path), tmp_path, NOW).splitlines()
            if line.startswith("Before")
        ]

    ended = recorded_moment("2026-11-30T01:37:00+00:00", NOW)
    assert before(0) == [f"Before     69 captioned at 4.3 images/s, ended {ended}"]
    assert before(1) == []


def started(view: View) -> str:
    return recorded_moment(view.status.started_at, NOW)


def held(root: Path, state: str = "running") -> OutputLock:
    root.mkdir(exist_ok=True)
    (root / "status.json").write_bytes(encode_status(status_of(state)))
    return OutputLock(root)


def status(root: Path, *flags: str) -> tuple[int, str]:
    result = run_here("status", f"--output={root}", *flags)
    assert result.stderr == ""
    return result.exit_code, result.stdout


# --- one look --------------------------------------------------------------------------------


def test_active_run_is_shown_with_its_counts_speed_and_engines(tmp_path: Path) -> None:
    lock = held(tmp_path)
    exit_code, text = status(tmp_path)
    lock.release()
    assert exit_code == 0
    assert f"running, process {os.getpid()} on " in text
    assert " 51 of 100" in text
    assert "Items      30 captioned, 20 before, 1 failed, 49 left" in text
    assert "Speed      0.98 images/s now, 0.98 over 5 min, 1.0 overall; 20 tokens/s" in text
    assert "End        ETA 50 s (" in text
    assert "Failures   missing_file 1" in text
    engines = [line.split() for line in text.splitlines() if line[:2] in ("En", "0 ", "1 ")][1:]
    assert engines == [
        ["Engine", "state", "images/s", "in", "flight", "restarts", "captioned", "process"],
        ["0", "up", "0.64", "4", "0", "20", "11"],
        ["1", "starting", "0.33", "0", "2", "10", "–"],
    ]


def test_status_names_the_bottleneck_and_what_to_do_about_it(tmp_path: Path) -> None:
    status = msgspec.structs.replace(status_of(), limited_by="render")
    text = describe({None: View("running", "process 1", 0.0, status)}, tmp_path, NOW, width=80)
    assert "Limited by render: a smaller --max-pixels, a free core for each engine" in text


def test_status_says_in_words_what_is_not_known_yet(tmp_path: Path) -> None:
    stats = RunStats([EngineFigures(0), EngineFigures(1)])
    stats.begin("reading the input", 29.0)
    view = View("running", "process 1", 0.0, make_status("run-1", "running", stats, 30.0, AT))
    text = describe({None: view}, tmp_path, NOW, width=80)
    assert text.splitlines()[2:] == [
        "Phase      reading the input, 1 s",
        f"End        not known until the input has been read; started {started(view)}",
        "Engine     state       in flight restarts  captioned",
        "0          not started         0        0          0",
        "1          not started         0        0          0",
        "Failures   none",
    ]


def test_status_prints_what_watch_shows(tmp_path: Path) -> None:
    views: Views = {None: View("running", "process 1", 0.0, status_of())}
    printed = describe(views, tmp_path, NOW, width=80).splitlines()
    screen = draw(overview(views), str(tmp_path), NOW, 80, 40)
    assert printed == [line.plain for line in screen]


def test_run_whose_lock_is_free_while_its_file_says_running_died(tmp_path: Path) -> None:
    held(tmp_path).release()
    exit_code, text = status(tmp_path)
    assert exit_code == 1
    assert (
        "died: status.json says running, but no process holds the folder; run again to resume"
        in text
    )


def test_ended_run_is_shown_without_speed_and_processes(tmp_path: Path) -> None:
    held(tmp_path, "finished").release()
    exit_code, text = status(tmp_path)
    assert (exit_code, text.splitlines()[0]) == (0, "State      finished")
    assert "Speed" not in text
    assert "End " not in text


def test_ended_run_shows_when_it_ran(tmp_path: Path) -> None:
    times = {"started_at": "2026-01-01T06:00:00+00:00", "updated_at": "2026-01-01T09:30:00+00:00"}
    for state, word in (("finished", "ended"), ("stopped", "ended"), ("died", "last seen")):
        seen = msgspec.structs.replace(status_of(state), **times)
        text = describe({None: View(state, None, 5400.0, seen)}, tmp_path, NOW)  # type: ignore[arg-type]
        assert (
            f"Time       started 06:00, {word} 09:30 (1 h 30 min ago); it took 3 h 30 min" in text
        )


def test_status_of_an_older_version_is_read(tmp_path: Path) -> None:
    content = msgspec.to_builtins(status_of("finished"))
    del content["started_at"], content["engines"][0]["in_flight"]
    (tmp_path / "status.json").write_text(json.dumps(content))
    (line,) = (line for line in status(tmp_path)[1].splitlines() if line.startswith("Time"))
    assert line.startswith("Time       ended ")
    assert "started" not in line


def test_json_is_the_file_with_state_holder_and_age(tmp_path: Path) -> None:
    held(tmp_path).release()
    exit_code, text = status(tmp_path, "--json")
    found = json.loads(text)
    assert (exit_code, found["state"], found["holder"]) == (1, "died", None)
    assert (found["captioned"], found["engines"][0]["in_flight"]) == (30, 4)
    assert found["age_s"] > 0


@pytest.mark.parametrize("content", [None, b"", b'{"run_id": 1}', b"\xff", b'{"run_id": "\xff"}'])
@pytest.mark.parametrize("flags", [[], ["--watch"], ["--json"]])
def test_folder_without_a_status_is_one_sentence_and_exit_2(
    tmp_path: Path, content: bytes | None, flags: list[str]
) -> None:
    if content is not None:
        (tmp_path / "status.json").write_bytes(content)
    result = run_here("status", f"--output={tmp_path}", *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"vllm-caption: error: --output {tmp_path}: ")


# --- states ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exit_code", "error", "ended"),
    [
        (0, None, ("finished", "")),
        (1, None, ("finished", "")),
        (130, None, ("interrupted", "")),
        (3, RunStopped("no engine is left"), ("stopped", "no engine is left")),
        (130, RunStopped("the disk is full"), ("stopped", "the disk is full")),
        (3, UsageError("--jsons", "x", "is empty"), ("stopped", "--jsons x: is empty")),
        (3, KeyError("nobody expected this"), ("stopped", "KeyError: 'nobody expected this'")),
    ],
)
def test_last_state_of_a_run_says_whether_it_finished_and_why_not(
    exit_code: int, error: BaseException | None, ended: tuple[str, str]
) -> None:
    assert how_it_ended(exit_code, error) == ended


@pytest.mark.parametrize(
    ("written", "holder", "num_left", "seen"),
    [
        ("running", "process 7", 49, "running"),
        ("running", None, 49, "died"),
        ("interrupted", None, 49, "interrupted"),
        ("stopped", None, 49, "stopped"),
        ("finished", None, 0, "finished"),
        ("interrupted", "process 7", 49, "interrupted"),
        ("ended", None, 0, "finished"),  # from an older version
        ("ended", None, 49, "stopped"),
    ],
)
def test_state_follows_from_what_a_run_wrote_and_whether_it_holds_the_folder(
    written: str, holder: str | None, num_left: int, seen: State
) -> None:
    status = status_of()
    status = msgspec.structs.replace(status, state=written, total=status.finished + num_left)
    assert seen_state(status, holder) == seen


def test_run_of_an_older_version_that_had_not_read_all_is_not_finished() -> None:
    status = msgspec.structs.replace(status_of(), state="ended", total=51, scanning=True)
    assert seen_state(status, None) == "stopped"


@pytest.mark.parametrize(
    ("state", "holder", "text", "exit_code"),
    [
        ("running", "process 7", "running, process 7", 0),
        ("finished", None, "finished", 0),
        ("finished", "process 7", "finished; the folder is held by process 7", 0),
        ("stopped", None, "stopped: the disk is full", 3),
        ("interrupted", None, "interrupted; run again to resume", 4),
    ],
)
def test_each_state_has_its_words_and_its_exit_code(
    state: State, holder: str | None, text: str, exit_code: int
) -> None:
    status = status_of(state, reason="the disk is full" if state == "stopped" else "")
    assert states.in_words(View(state, holder, 0.0, status)) == text
    assert states.exit_code([state]) == exit_code


def test_exit_code_of_shards_is_that_of_the_worst() -> None:
    worst_first: list[State] = ["died", "stopped", "interrupted", "running"]
    found = [states.exit_code(worst_first[number:]) for number in range(4)]
    assert found == [1, 3, 4, 0]


@pytest.mark.parametrize(
    ("end", "exit_code", "text"),
    [
        ("kill", 1, "died: "),
        ("interrupt", 4, "interrupted; run again to resume"),
        ("remove the images", 3, "stopped: --images-root "),
        ("wait", 0, "finished"),
    ],
)
def test_job_that_ends_is_shown_as_it_ended(
    tmp_path: Path, end: str, exit_code: int, text: str
) -> None:
    files = make_input(tmp_path, 20 if end == "wait" else 200)
    out = tmp_path / "out"
    flags = (*input_flags(tmp_path), f"--output={out}", *QUICK)
    job = start(*flags, command=FAKE, environment={"FAKE_SLOW_STAGE": "engine"})
    wait_until(lambda: captions(out), job)
    match end:
        case "kill":
            job.kill()
        case "interrupt":
            job.send_signal(signal.SIGINT)
        case "remove the images":
            (tmp_path / "raw").rename(tmp_path / "elsewhere")
    job.communicate(timeout=60)
    seen_code, seen = status(out)
    assert (seen_code, seen.splitlines()[0].startswith(f"State      {text}")) == (exit_code, True)
    assert ("Done       100.0%" in seen) == (end == "wait")
    if end == "wait":
        said = look(out).status
        shown = [item.text for item in said.last_captions]
        assert set(shown) <= {f"{file}: caption of {file}" for file in files}
        assert len(set(shown)) == 3
        assert said.images_per_s_of_run > 0


# --- the lock, looked at ---------------------------------------------------------------------


def test_checking_the_lock_never_causes_a_run_to_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may take the processor from the process that looks.
    monkeypatch.setattr("vllm_caption.store.lock._PATIENCE_S", 5.0)
    code = (
        "import sys; from pathlib import Path; from vllm_caption.store.lock import find_holder\n"
        "print('on', flush=True)\nwhile True: find_holder(Path(sys.argv[1]))"
    )
    OutputLock(tmp_path).release()
    looking = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    assert looking.stdout is not None
    try:
        assert looking.stdout.readline() == b"on\n"
        for _ in range(20):
            OutputLock(tmp_path).release()
        assert looking.poll() is None
    finally:
        looking.kill()
        looking.communicate()
    assert find_holder(tmp_path) is None


# --- watching --------------------------------------------------------------------------------


def end_after(lock: OutputLock, root: Path, looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait; the run ends after this many looks."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == looks:
            (root / "status.json").write_bytes(encode_status(status_of("finished")))
            lock.release()

    monkeypatch.setattr(time, "sleep", sleep)


def test_watch_to_a_pipe_prints_lines_and_the_full_status_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_after(held(tmp_path), tmp_path, 3, monkeypatch)
    exit_code, text = status(tmp_path, "--watch")
    lines = text.splitlines()
    line = f"{AT} running, 51/100, 0.98 images/s, ETA 50 s, 1 failed, 1/2 engines, 20 tokens/s"
    assert (exit_code, lines[:3]) == (0, [line] * 3)
    assert lines[3] == "State      finished"
    assert "\x1b" not in text


def test_watch_on_a_terminal_uses_the_alternate_screen_and_leaves_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_after(held(tmp_path), tmp_path, 2, monkeypatch)
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    assert run_status([f"--output={tmp_path}", "--watch"], screen) == 0
    before, _, rest = screen.getvalue().partition("\x1b[?1049h")
    shown, _, after = rest.partition("\x1b[?1049l")
    assert (before, shown.count("51 of 100")) == ("", 2)
    assert after.startswith("State      finished\n")


def test_interrupted_watch_restores_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = held(tmp_path)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    assert run_status([f"--output={tmp_path}", "--watch"], screen) == 130
    lock.release()
    assert screen.getvalue().rpartition("\x1b[?1049")[2].startswith("l")


def test_dumb_terminal_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_after(held(tmp_path), tmp_path, 2, monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    screen = Terminal()
    assert run_status([f"--output={tmp_path}", "--watch"], screen) == 0
    assert "\x1b" not in screen.getvalue()


def test_watch_as_json_is_one_object_per_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_after(held(tmp_path), tmp_path, 2, monkeypatch)
    lines = status(tmp_path, "--watch", "--json")[1].splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["running", "running", "finished"]


def test_watch_of_an_ended_run_returns_at_once(tmp_path: Path) -> None:
    held(tmp_path, "finished").release()
    assert status(tmp_path, "--watch")[1].startswith("State      finished")


def test_watch_ends_with_1_when_the_run_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = held(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda _: lock.release())
    assert status(tmp_path, "--watch")[0] == 1


def test_ctrl_c_ends_a_watch_quietly(tmp_path: Path) -> None:
    lock = held(tmp_path)
    process = start("status", f"--output={tmp_path}", "--watch")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    lock.release()
    assert (process.returncode, stderr) == (130, "")
    assert "State" not in stdout


def test_closed_output_pipe_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    lock = held(tmp_path)
    command = f"{sys.executable} -m vllm_caption status --output={tmp_path} --watch | head -1"
    result = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    lock.release()
    assert (len(result.stdout.splitlines()), result.stderr) == (1, "")


# --- the file ----------------------------------------------------------------------------------


def test_file_has_these_fields_in_this_order_and_of_these_types() -> None:
    status = status_of()
    status.engines[0].rss_mib = 900.0
    host = HostFigures(50.0, 40.0, 100.0, 500.0, 30.0)
    found = json.loads(encode_status(msgspec.structs.replace(status, host=host)))
    assert [(name, type(value).__name__) for name, value in found.items()] == [
        *[("run_id", "str"), ("state", "str"), ("pid", "int"), ("updated_at", "str")],
        *[("total", "int"), ("scanning", "bool"), ("done_before", "int")],
        *[("captioned", "int"), ("failed", "int")],
        *[("images_per_s", "float"), ("tokens_per_s", "float"), ("eta_s", "float")],
        *[("failures", "dict"), ("engines", "list"), ("started_at", "str")],
        *[
            ("gpus_per_engine", "int"),
            ("gpu_hour_price", "NoneType"),
            ("is_part", "bool"),
            ("host", "dict"),
        ],
        *[("warnings", "list"), ("reason", "str"), ("images_per_s_5_min", "float")],
        *[("images_per_s_of_run", "float"), ("speed", "dict")],
        *[("last_captions", "list"), ("last_failures", "list")],
        *[("limited_by", "NoneType"), ("phase", "NoneType")],
    ]
    assert list(found["host"].items()) == [
        *[("cpu_percent", 50.0), ("ram_percent", 40.0), ("driver_rss_mib", 100.0)],
        *[("disk_free_gib", 500.0), ("disk_percent", 30.0)],
    ]
    assert list(found["engines"][0].items()) == [
        *[("engine", 0), ("state", "up"), ("pid", 11), ("captioned", 20), ("output_tokens", 400)],
        *[("images_per_s", 0.6441), ("restarts", 0), ("in_flight", 4), ("rss_mib", 900.0)],
        *[("gpu_percent", None), ("gpu_memory_percent", None), ("gpu_temperature_c", None)],
    ]
