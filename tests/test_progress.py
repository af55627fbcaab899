"""What a user sees while it runs."""

from __future__ import annotations

import contextlib
import io
import json
from datetime import datetime
from pathlib import Path

import pytest
from support.job import FAKE, Terminal, input_flags, make_input, run

from vllm_caption.errors import UsageError
from vllm_caption.monitoring.event_log import EventLog
from vllm_caption.monitoring.figures import EngineFigures, describe_run
from vllm_caption.monitoring.progress import Progress
from vllm_caption.monitoring.stats import RunStats


def stats(captioned: int = 0, every_s: float = 0.5) -> RunStats:
    made = RunStats([EngineFigures(0, "up"), EngineFigures(1, "starting")], total=100)
    made.scanning = False
    for number in range(captioned):
        made.count_caption(0, 50, 20, number * every_s)
    return made


def test_rate_is_that_of_the_last_half_minute_and_not_since_the_start() -> None:
    made = stats(captioned=10, every_s=10.0)
    for number in range(60):
        made.count_caption(1, 50, 20, 100 + number * 0.5)
    rates = made.rates(130.0)
    assert 1.9 < rates.images_per_s < 2.1
    assert 38 < rates.tokens_per_s < 42


def test_line_names_rates_time_to_go_failures_and_engines() -> None:
    made = stats(captioned=40)
    made.count_failure("missing_file", "a.png: there is no such file")
    text = describe_run(made.figures(20.0), made.engines)
    assert text == "2.0 images/s, 40 tokens/s, ETA 00:29, failed 1, engines 1/2"


def test_time_to_go_is_unknown_while_the_input_is_still_read() -> None:
    made = stats(captioned=40)
    made.scanning = True
    assert "ETA ?" in describe_run(made.figures(20.0), made.engines)


def test_plain_output_has_a_line_each_50_items_or_10_seconds() -> None:
    out = io.StringIO()
    progress = Progress(quiet=False, stream=out)
    for now_s, captioned in ((0.0, 0), (1.0, 20), (2.0, 49), (3.0, 50), (4.0, 60), (13.5, 61)):
        progress.update(stats(captioned), now_s)
    shown = [line.split(" ")[0] for line in out.getvalue().splitlines()]
    assert shown == ["0/100", "50/100", "61/100"]


def test_terminal_gets_a_bar_and_texts_stand_above_it() -> None:
    out = Terminal()
    progress = Progress(quiet=False, stream=out)
    progress.update(stats(40), 20.0)
    progress.tell("Engine 1 died and starts again: CUDA error")
    progress.close()
    assert "40/100" in out.getvalue()
    assert "Engine 1 died and starts again: CUDA error\n" in out.getvalue()


def test_quiet_shows_texts_only() -> None:
    out = Terminal()
    progress = Progress(quiet=True, stream=out)
    progress.update(stats(40), 20.0)
    progress.tell("Engine 1 died")
    assert out.getvalue() == "Engine 1 died\n"


# --- engines, the log file, JSON -----------------------------------------------------------------


def busy(captioned: int) -> RunStats:
    made = stats(captioned)
    first = made.engines[0]
    first.gpu_percent, first.gpu_memory_percent, first.gpu_temperature_c = 97.4, 91.0, 64.0
    first.in_flight, made.engines[1].restarts = 16, 2
    return made


def log_of(tmp_path: Path, *, as_json: bool = False, quiet: bool = True) -> tuple[str, str]:
    """What a short run tells: its log file, and its stream."""
    out = io.StringIO()
    with contextlib.closing(EventLog(tmp_path / "logs/run.log", as_json=as_json)) as log:
        progress = Progress(quiet=quiet, stream=out, log=log)
        progress.tell("Checking demo")
        progress.update(busy(40), 20.0)
        progress.update(busy(99), 90.0)
        progress.warn("RAM at 93 %\nwatch it")
        progress.record("summary", "Items: 100")
    return (tmp_path / "logs/run.log").read_text("utf-8"), out.getvalue()


def test_engines_have_a_line_each_minute_with_share_rate_and_gpu() -> None:
    out = io.StringIO()
    progress = Progress(quiet=False, stream=out)
    for now_s, captioned in ((0.0, 0), (30.0, 30), (60.0, 60), (90.0, 90)):
        progress.update(busy(captioned), now_s)
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith("Engines"))
    assert line == (
        "Engines: 0: 60 captioned, 1.0 images/s, 16 in flight, GPU 97 %, GPU memory 91 %,"
        " GPU at 64 °C; 1: starting, 0 captioned, 0.0 images/s, 0 in flight, 2 restarts"
    )


def test_log_file_holds_everything_with_times_also_when_quiet(tmp_path: Path) -> None:
    text, shown = log_of(tmp_path)
    lines = text.splitlines()
    assert all(datetime.fromisoformat(line.split(" ")[0]).tzinfo for line in lines[:4])
    told = [line.partition(" ")[2] for line in lines]
    assert told[0] == "Checking demo"
    assert told[1].startswith("40/100 2.0 images/s")
    assert told[2].startswith("99/100 ")
    assert told[3].startswith("Engines: 0: 99 captioned, ")
    assert told[4] == "WARNING RAM at 93 %"
    assert told[-1] == "Items: 100"
    assert shown == "Checking demo\nRAM at 93 %\nwatch it\n"


def test_log_file_is_appended_to(tmp_path: Path) -> None:
    once = len(log_of(tmp_path)[0])
    assert len(log_of(tmp_path)[0]) == 2 * once


def test_json_log_is_one_object_per_line_whatever_is_told(tmp_path: Path) -> None:
    text, shown = log_of(tmp_path, as_json=True, quiet=False)
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["event"] for event in events] == [
        *("message", "progress", "progress", "engines", "warning", "summary"),
    ]
    assert set(events[0]) == {"time", "level", "event", "text", "fields"}
    assert (events[1]["fields"]["captioned"], events[1]["fields"]["eta_s"]) == (40, 30.0)
    assert events[3]["fields"]["engines"][0]["gpu_temperature_c"] == 64.0
    known = {*EngineFigures.__struct_fields__, "images_per_s"}
    assert set(events[3]["fields"]["engines"][0]) == known
    assert (events[4]["level"], events[4]["text"]) == ("warning", "RAM at 93 %\nwatch it")
    assert [json.loads(line)["event"] for line in shown.splitlines()] == [
        *("message", "progress", "progress", "engines", "warning"),
    ]


def test_json_leaves_no_bar_on_a_terminal() -> None:
    out = Terminal()
    progress = Progress(quiet=False, stream=out, log=EventLog(None, as_json=True))
    progress.update(stats(40), 20.0)
    assert json.loads(out.getvalue())["fields"]["finished"] == 40


def test_text_that_cannot_be_encoded_is_logged_all_the_same(tmp_path: Path) -> None:
    for as_json in (False, True):
        with contextlib.closing(EventLog(tmp_path / "log", as_json=as_json)) as log:
            Progress(quiet=True, stream=io.StringIO(), log=log).warn("a\udcffb")
    assert (tmp_path / "log").read_text("utf-8").count("udcff") == 2


def test_full_disk_under_the_log_costs_its_lines_only() -> None:
    told = io.StringIO()
    with contextlib.closing(EventLog(Path("/dev/full"))) as log:
        Progress(quiet=True, stream=told, log=log).warn("no room")
    assert told.getvalue() == "no room\n"


def test_log_file_that_cannot_be_opened_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--log-file {tmp_path}: cannot be written"):
        EventLog(tmp_path)


def test_run_logs_what_it_tells_and_its_summary(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    flags = (f"--output={tmp_path / 'out'}", "--quiet", f"--log-file={tmp_path / 'log'}")
    result = run(*input_flags(tmp_path), *flags, "--log-json", command=FAKE)
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert result.exit_code == 0
    assert events[0]["text"] == "Checking demo and the engine's flags."
    assert (events[-1]["event"], events[-1]["text"] + "\n") == ("summary", result.stdout)
