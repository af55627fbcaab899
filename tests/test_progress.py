"""What a user sees during a run."""

from __future__ import annotations

import contextlib
import io
import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.job import FAKE, Terminal, input_flags, make_input, run

from vllm_caption.errors import UsageError
from vllm_caption.formatting import moment
from vllm_caption.monitoring.bottleneck import REMEDIES
from vllm_caption.monitoring.event_log import EventLog
from vllm_caption.monitoring.figures import EngineFigures, RunFigures, time_to_go
from vllm_caption.monitoring.live.line import live_line, text_line
from vllm_caption.monitoring.live.phase import Step, phase
from vllm_caption.monitoring.progress import Progress
from vllm_caption.monitoring.stats import Pace, RunStats


def stats(captioned: int = 0, every_s: float = 0.5) -> RunStats:
    made = RunStats([EngineFigures(0, "up"), EngineFigures(1, "starting")], total=100)
    made.scanning = False
    for number in range(captioned):
        made.count_caption(0, 50, 20, number * every_s)
    return made


def test_rate_covers_the_last_half_minute_not_the_whole_run() -> None:
    made = stats(captioned=10, every_s=10.0)
    for number in range(60):
        made.count_caption(1, 50, 20, 100 + number * 0.5)
    rates = made.rates(130.0)
    assert 1.9 < rates.images_per_s < 2.1
    assert 38 < rates.tokens_per_s < 42


def test_pace_covers_the_last_minutes_in_total_and_per_engine() -> None:
    pace = Pace()
    for second in range(1000):
        pace.add(float(second), engine=second % 4 == 0)
    pace.add(1000.0, engine=2)
    assert pace.images_per_s(1000.0, 300.0) == pytest.approx(1.0, rel=0.02)
    assert pace.images_per_s(1000.0, 60.0, engine=0) == pytest.approx(0.75, rel=0.02)
    assert pace.images_per_s(1000.0, 60.0, engine=1) == pytest.approx(0.25, rel=0.02)
    assert pace.images_per_s(1150.0, 300.0) == pytest.approx(0.5, rel=0.02)
    assert pace.images_per_s(1150.0, 60.0) == 0.0


def test_eta_is_steadier_than_the_rate_of_half_a_minute() -> None:
    made = stats()
    made.total = 10_000
    for second in range(300):
        made.count_caption(0, 50, 20, float(second))
    assert made.rates(329.0).images_per_s == 0.0
    assert made.eta_s(329.0) == pytest.approx((10_000 - 300) * 329 / 300, rel=0.1)


def test_last_captions_and_failures_are_kept_to_be_shown() -> None:
    made = stats()
    for number in range(5):
        made.keep_caption(f"{number}.png", "a\nred circle")
        made.count_failure("missing_file", f"{number}.png: there is no such file")
    assert [item.text for item in made.last_captions] == [
        f"{number}.png: a\\u000ared circle" for number in (2, 3, 4)
    ]
    assert [(item.kind, item.text) for item in made.last_failures] == [
        ("missing_file", f"{number}.png: there is no such file") for number in (2, 3, 4)
    ]


def test_line_shows_rates_eta_failures_and_engines() -> None:
    made = stats(captioned=40)
    made.count_failure("missing_file", "a.png: there is no such file")
    text = text_line(made.figures(20.0), made.engines)
    assert text == "41/100, 2.0 images/s, ETA 30 s, 1 failed, 1/2 engines, 40 tokens/s"


def test_there_is_no_eta_while_the_input_is_being_read() -> None:
    made = stats(captioned=40)
    made.scanning = True
    text = text_line(made.figures(20.0), made.engines)
    assert text == "40/100+, 2.0 images/s, 1/2 engines, 40 tokens/s"


def test_speed_is_shown_only_once_there_is_enough_to_compute_it() -> None:
    made = stats()
    made.total = 10_000
    for number in range(64):  # as of engines that are full at once
        made.count_caption(0, 50, 20, 100 + number / 1000)
    text = text_line(made.figures(100.1), made.engines, NOW)
    assert text == "64/10,000, measuring the speed, 1/2 engines"
    figures = [made.figures(now_s) for now_s in (100.1, 104.9, 105.0)]
    assert {(f.images_per_s, f.tokens_per_s, f.eta_s) for f in figures} == {(None, None, None)}
    assert made.engine_figures(104.9)[0].images_per_s is None
    for number in range(64):
        made.count_caption(0, 50, 20, 106 + number / 1000)
    assert made.figures(107.0).images_per_s == pytest.approx(64 / 6.5, rel=0.01)
    assert made.engine_figures(107.0)[0].images_per_s == pytest.approx(64 / 6.5, rel=0.01)
    assert made.figures(107.0).eta_s == pytest.approx((10_000 - 128) / (64 / 6.5), rel=0.01)
    assert made.engine_figures(107.0)[1].images_per_s is None


def test_no_limit_is_shown_while_the_speed_is_being_measured() -> None:
    made = stats()
    made.limited_by = "render"
    for number in range(12):
        made.count_caption(0, 50, 20, float(number))
    assert [made.figures(now_s).limited_by for now_s in (0.1, 4.0, 12.0)] == [None, None, "render"]


def test_speed_counts_captions_that_were_copied_and_that_of_an_engine_does_not() -> None:
    made = stats()
    for number in range(80):
        made.count_caption(0, 50, 20, number / 2)
        made.captioned += 2
    assert made.figures(40.0).images_per_s == pytest.approx(6.0, rel=0.02)
    assert made.pace.images_per_s(40.0, 300.0) == pytest.approx(6.0, rel=0.02)
    assert made.mean_images_per_s == pytest.approx(6.0, rel=0.02)
    assert made.engine_figures(40.0)[0].images_per_s == pytest.approx(2.0, rel=0.02)


def test_slow_run_has_a_speed_after_half_a_minute() -> None:
    made = stats()
    for number in range(4):
        made.count_caption(0, 50, 20, 12.0 * number)
    assert made.figures(25.0).images_per_s is None
    assert made.figures(42.0).images_per_s == pytest.approx(2 / 30, rel=0.01)
    assert text_line(made.figures(42.0), made.engines).startswith("4/100, 0.067 images/s, ETA ")


def test_plain_output_has_a_line_a_minute() -> None:
    out = io.StringIO()
    progress = Progress(quiet=False, stream=out)
    for now_s, captioned in ((0.0, 0), (1.0, 20), (59.0, 70), (60.0, 71), (119.0, 98), (120.0, 99)):
        progress.update(stats(captioned), now_s)
    shown = [line.split(" ")[0] for line in out.getvalue().splitlines()]
    assert [line for line in shown if line != "Engines:"] == ["0/100,", "71/100,", "99/100,"]


def test_plain_output_shows_the_phase_before_the_first_caption_even_without_items() -> None:
    out = io.StringIO()
    progress = Progress(quiet=False, stream=out)
    made = RunStats([EngineFigures(0), EngineFigures(1)])
    made.begin("reading the input", 0.0)
    for now_s in (0.0, 59.0, 60.0):
        progress.update(made, now_s)
    made.total = 100
    made.begin("loading", 119.0)
    made.engines[1].state = "up"
    progress.update(made, 160.0)
    lines = [line for line in out.getvalue().splitlines() if not line.startswith("Engines")]
    assert lines == ["reading the input, 1 min", "0/100+, loading 1/2 engines, 41 s"]


def test_terminal_shows_a_live_line_with_messages_above_it() -> None:
    out = Terminal()
    progress = Progress(quiet=False, stream=out)
    progress.update(stats(40), 20.0)
    progress.tell("Engine 1 died and starts again: CUDA error")
    line = out.getvalue().rpartition("\r")[2]
    progress.close()
    assert line.startswith(" 40% ████░░░░░░ 40/100, 2.0 images/s, ETA 30 s (")
    assert len(line) < 80
    assert "Engine 1 died and starts again: CUDA error\n" in out.getvalue()


def test_live_line_is_erased_before_the_summary_also_with_a_typed_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    progress = Progress(quiet=False, stream=out)
    progress.update(stats(40), 20.0)
    line = out.getvalue().rpartition("\r")[2]
    out.write("^C")
    assert len(line + "^C") < 80  # else the terminal would begin another line
    progress.close()
    erased = out.getvalue().partition("^C")[2]
    assert erased.startswith("\r\x1b[K")  # to the end of the line
    assert not erased.replace("\x1b[K", "").strip()
    assert erased.endswith("\r")


def test_quiet_shows_only_messages() -> None:
    out = Terminal()
    progress = Progress(quiet=True, stream=out)
    progress.update(stats(40), 20.0)
    progress.tell("Engine 1 died")
    assert out.getvalue() == "Engine 1 died\n"


def test_line_shows_the_phase_until_the_first_caption() -> None:
    made = stats()
    made.begin("checking flags (loading vLLM)", 3.0)
    assert (
        text_line(made.figures(15.0), made.engines) == "0/100, checking flags (loading vLLM), 12 s"
    )
    made.count_failure("missing_file", "a.png: there is no such file")
    assert (
        text_line(made.figures(15.0), made.engines)
        == "1/100, checking flags (loading vLLM), 12 s, 1 failed"
    )


@pytest.mark.parametrize(
    ("step", "num_up", "seconds", "text"),
    [
        ("reading the input", 0, None, "reading the input"),
        ("checking flags (loading vLLM)", 0, 7.4, "checking flags (loading vLLM), 7 s"),
        ("loading", 0, 0.0, "loading 0/8 engines, 0 s"),
        ("loading", 2, 41.0, "loading 2/8 engines, 41 s"),
        ("loading", 2, 161.0, "loading 2/8 engines, 2 min 41 s"),
        ("loading", 8, 161.0, "waiting for the first caption, 2 min 41 s"),
    ],
)
def test_phase_shows_what_the_run_does_and_for_how_long(
    step: Step, num_up: int, seconds: float | None, text: str
) -> None:
    engines = [EngineFigures(n, "up" if n < num_up else "starting") for n in range(8)]
    assert phase(step, engines, seconds) == text


def test_phase_ends_with_the_first_caption_and_returns_during_saving() -> None:
    made = stats(captioned=1)
    made.begin("loading", 0.0)
    assert made.phase(9.0) is None
    made.begin("saving", 20.0)
    assert made.phase(25.0) == "saving, 5 s"


# --- the live line -------------------------------------------------------------------------------

NOW = datetime(2026, 11, 30, 10, 53)


def figures(**changes: Any) -> RunFigures:
    """A million items, a day before the end."""
    usual = {
        "total": 1_000_000,
        "scanning": False,
        "done_before": 20_000,
        "captioned": 400_090,
        "failed": 22,
        "images_per_s": 5.93,
        "tokens_per_s": 412.0,
        "eta_s": 97_940.0,
        "limited_by": "engine",
    }
    return RunFigures(**(usual | changes))


def line(width: int, num_up: int = 8, **changes: Any) -> str:
    engines = [EngineFigures(n, "up" if n < num_up else "starting") for n in range(8)]
    return live_line(figures(**changes), engines, 70_893.0, NOW, width)


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (
            160,
            " 42% ████████░░░░░░░░░░░░ 420,112/1,000,000, 5.9 images/s, ETA 1 d 3 h (Tue 14:05),"
            " 22 failed, 8/8 engines, limited by engine, 412 tokens/s, 19 h 42 min elapsed",
        ),
        (
            100,
            " 42% █████░░░░░░░ 420,112/1,000,000, 5.9/s, ETA 1 d 3 h (Tue 14:05),"
            " 22 failed, limited by engine",
        ),
        (80, " 42% ████░░░░░░ 420,112/1,000,000, 5.9/s, ETA 1 d 3 h, 22 failed, limit: engine"),
        (60, " 42% ████░░░░░░ of 1,000,000, 5.9/s, ETA 1 d 3 h, 22 failed"),
        (40, " 42% ████░░░░░░ ETA 1 d 3 h"),
        (20, " 42% ████░░░░░░"),
        (10, " 42% ████░"),
    ],
)
def test_live_line_drops_the_least_important_fields_as_it_gets_narrow(
    width: int, shown: str
) -> None:
    assert line(width) == shown


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"total": 0, "captioned": 0, "done_before": 0, "failed": 0, "scanning": True},
        {"total": 10**9, "eta_s": 9e9, "failed": 12_345_678},
        {"captioned": 0, "phase": "loading 2/8 engines, 41 s"},
        {"eta_s": None, "scanning": True},
    ],
)
def test_live_line_fits_whatever_the_width_and_has_a_bar(changes: dict[str, Any]) -> None:
    for width in range(1, 200):
        shown = line(width, **changes)
        assert len(shown) <= width
        assert len(re.findall("[█░]", shown)) >= min(10, width - 5)


def test_live_line_shows_the_phase_until_there_is_a_rate() -> None:
    shown = line(80, captioned=0, failed=0, phase="loading 2/8 engines, 41 s", eta_s=None)
    assert (
        shown == "  2% ░░░░░░░░░░ 20,000/1,000,000, loading 2/8 engines, 41 s (19 h 42 min in all)"
    )


@pytest.mark.parametrize(
    ("phase", "shown"),
    [
        ("loading 2/8 engines, 41 s", "loading 2/8 engines"),
        ("waiting for the first caption, 2:05", "waiting"),
        ("checking flags (loading vLLM), 3 s", "checking flags"),
        ("reading the input, 3 s", "reading the input"),
    ],
)
def test_phase_is_shortened_before_it_is_dropped(phase: str, shown: str) -> None:
    assert line(40, captioned=0, failed=0, phase=phase, eta_s=None).endswith(f" {shown}")


@pytest.mark.parametrize("limit", [*REMEDIES, "engine", "tail", "starting"])
def test_live_line_names_the_bottleneck_at_80_columns_even_of_a_million_items(limit: str) -> None:
    assert line(79, limited_by=limit).endswith(f", limit: {limit}")


def test_live_line_shows_nothing_that_is_not_known() -> None:
    nothing = {"total": 0, "done_before": 0, "captioned": 0, "failed": 0, "eta_s": None}
    shown = line(79, **nothing, scanning=True, images_per_s=None, phase="reading the input, 3 s")
    assert shown == f"     {10 * '░'} reading the input, 3 s (19 h 42 min in all)"
    unknown = dict.fromkeys(("images_per_s", "tokens_per_s", "eta_s", "limited_by"))
    shown = line(79, **unknown, scanning=True, failed=0)
    assert shown == (f"     {10 * '░'} 420,090/1,000,000+, measuring the speed, 8/8 engines")


def test_live_line_keeps_the_engine_count_longer_if_some_are_not_up() -> None:
    assert "engines" not in line(90)
    assert "7/8 engines" in line(90, num_up=7)


@pytest.mark.parametrize("width", [40, 79, 100, 160, 240])
def test_bar_keeps_its_width_while_fields_come_and_go(width: int) -> None:
    shown = [
        line(width, captioned=0, phase="checking flags (loading vLLM), 4 s"),
        line(width, images_per_s=None, tokens_per_s=None, eta_s=None, limited_by=None),
        line(width),
        line(width, failed=123_456),
        line(width, num_up=7, captioned=979_978),
    ]
    assert len({len(re.findall("[█░]", text)) for text in shown}) == 1


def test_time_of_the_phase_and_of_the_run_are_told_apart() -> None:
    figures = {"captioned": 0, "failed": 0, "eta_s": None, "total": 69, "done_before": 0}
    engines = [EngineFigures(0, "starting")]

    def shown(phase: str, elapsed_s: float) -> str:
        run = RunFigures(
            **figures, scanning=False, images_per_s=None, tokens_per_s=None, phase=phase
        )
        return live_line(run, engines, elapsed_s, NOW, 79)

    begin = "  0% ░░░░░░░░░░ 0/69, "
    checking = "checking flags (loading vLLM), 4 s"
    assert shown(checking, 5.2) == f"{begin}{checking} (5 s in all)"
    assert shown("reading the input, 4 s", 4.2) == f"{begin}reading the input, 4 s"


def test_bar_is_full_only_at_the_end() -> None:
    assert line(80, captioned=979_977).startswith(" 99% █████████░ ")
    assert line(80, captioned=979_978).startswith("100% ██████████ of 1,000,000,")


@pytest.mark.parametrize(("encoding", "expected"), [("utf-8", "█"), ("latin-1", "#")])
def test_bar_uses_characters_that_the_terminal_can_show(encoding: str, expected: str) -> None:
    class Old(Terminal):
        pass

    Old.encoding = encoding  # type: ignore[misc]
    out = Old()
    with contextlib.closing(Progress(quiet=False, stream=out)) as progress:
        progress.update(stats(40), 20.0)
    assert f" 40% {expected}" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "10:53"),
        (47_160, "23:59"),
        (47_220, "Tue 00:00"),
        (97_940, "Tue 14:05"),
        (6 * 86_400, "Sun 10:53"),
        (7 * 86_400, "7 Dec 10:53"),
        (32 * 86_400, "1 Jan 2027"),
        (-3600, "09:53"),
        (-86_400, "29 Nov 10:53"),
    ],
)
def test_time_of_the_end_has_its_day_if_that_is_not_today(seconds: float, text: str) -> None:
    assert moment(NOW + timedelta(seconds=seconds), NOW) == text


def test_end_beyond_the_calendar_is_not_an_error() -> None:
    assert time_to_go(1e15, NOW).startswith("ETA 11,574,074,074 d 2 h (")


# --- engines, the log file, JSON -----------------------------------------------------------------


def busy(captioned: int) -> RunStats:
    made = stats(captioned)
    first = made.engines[0]
    first.gpu_percent, first.gpu_memory_percent, first.gpu_temperature_c = 97.4, 91.0, 64.0
    first.in_flight, made.engines[1].restarts = 16, 2
    return made


def log_of(tmp_path: Path, *, as_json: bool = False, quiet: bool = True) -> tuple[str, str]:
    """What a short run shows: its log file, and its stream."""
    out = io.StringIO()
    with contextlib.closing(EventLog(tmp_path / "logs/run.log", as_json=as_json)) as log:
        progress = Progress(quiet=quiet, stream=out, log=log)
        progress.tell("Checking demo")
        progress.update(busy(40), 20.0)
        progress.update(busy(99), 90.0)
        progress.warn("RAM at 93%\nwatch it")
        progress.record("summary", "Items: 100")
    return (tmp_path / "logs/run.log").read_text("utf-8"), out.getvalue()


def test_engines_have_a_line_each_minute_with_share_rate_and_gpu() -> None:
    out = io.StringIO()
    progress = Progress(quiet=False, stream=out)
    for now_s, captioned in ((0.0, 0), (30.0, 30), (60.0, 60), (90.0, 90)):
        progress.update(busy(captioned), now_s)
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith("Engines"))
    assert line == (
        "Engines: 0: 60 captioned, 0.99 images/s, 16 in flight, GPU 97%, GPU memory 91%,"
        " GPU at 64 °C; 1: starting, 2 restarts"
    )


def test_engines_are_not_shown_before_one_was_started_and_then_in_words() -> None:
    out = io.StringIO()
    progress = Progress(quiet=False, stream=out)
    stats = RunStats([EngineFigures(0), EngineFigures(1)], total=5)
    progress.update(stats, 0.0)
    progress.update(stats, 60.0)
    assert "Engines" not in out.getvalue()
    stats.engines[0].state = "starting"
    progress.update(stats, 120.0)
    assert out.getvalue().splitlines()[-1] == "Engines: 0: starting; 1: not started"
    stats.engines[0].state, stats.engines[0].restarts = "waiting", 1
    stats.engines[1].state = "retired"
    progress.update(stats, 180.0)
    assert out.getvalue().splitlines()[-1] == "Engines: 0: restarting, 1 restart; 1: taken out"


def test_log_file_holds_everything_with_times_even_if_quiet(tmp_path: Path) -> None:
    text, shown = log_of(tmp_path)
    lines = text.splitlines()
    assert all(datetime.fromisoformat(line.split(" ")[0]).tzinfo for line in lines[:4])
    told = [line.partition(" ")[2] for line in lines]
    assert told[0] == "Checking demo"
    assert told[1].startswith("40/100, 2.0 images/s")
    assert told[2].startswith("99/100, ")
    assert told[3].startswith("Engines: 0: 99 captioned, ")
    assert told[4] == "WARNING RAM at 93%"
    assert told[-1] == "Items: 100"
    assert shown == "Checking demo\nRAM at 93%\nwatch it\n"


def test_log_file_is_appended_to(tmp_path: Path) -> None:
    once = len(log_of(tmp_path)[0])
    assert len(log_of(tmp_path)[0]) == 2 * once


def test_json_log_is_one_object_per_line_whatever_the_text(tmp_path: Path) -> None:
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
    assert (events[4]["level"], events[4]["text"]) == ("warning", "RAM at 93%\nwatch it")
    assert [json.loads(line)["event"] for line in shown.splitlines()] == [
        *("message", "progress", "progress", "engines", "warning"),
    ]


def test_json_shows_no_bar_on_a_terminal() -> None:
    out = Terminal()
    progress = Progress(quiet=False, stream=out, log=EventLog(None, as_json=True))
    progress.update(stats(40), 20.0)
    assert json.loads(out.getvalue())["fields"]["finished"] == 40


def test_text_that_cannot_be_encoded_is_still_logged(tmp_path: Path) -> None:
    for as_json in (False, True):
        with contextlib.closing(EventLog(tmp_path / "log", as_json=as_json)) as log:
            Progress(quiet=True, stream=io.StringIO(), log=log).warn("a\udcffb")
    assert (tmp_path / "log").read_text("utf-8").count("udcff") == 2


def test_full_disk_under_the_log_costs_only_log_lines() -> None:
    told = io.StringIO()
    with contextlib.closing(EventLog(Path("/dev/full"))) as log:
        Progress(quiet=True, stream=told, log=log).warn("no room")
    assert told.getvalue() == "no room\n"


def test_log_file_that_cannot_be_opened_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--log-file {tmp_path}: cannot be written"):
        EventLog(tmp_path)


def test_run_logs_its_messages_and_its_summary(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    flags = (f"--output={tmp_path / 'out'}", "--quiet", f"--log-file={tmp_path / 'log'}")
    result = run(*input_flags(tmp_path), *flags, "--log-json", command=FAKE)
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert result.exit_code == 0
    assert events[0]["text"] == "Checking the model demo and vLLM's flags."
    assert (events[-1]["event"], events[-1]["text"] + "\n") == ("summary", result.stdout)
