"""The screen of `status --watch`: what it shows of a run and of shards, at any size."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from vllm_caption.commands.status.layout import draw
from vllm_caption.commands.status.overview import Views, overview
from vllm_caption.config import Shard
from vllm_caption.cost import Costs
from vllm_caption.monitoring.figures import EngineFigures, HostFigures, LastItem
from vllm_caption.monitoring.status import RunStatus, Speed, State, View

NOW = datetime(2026, 11, 30, 10, 53, tzinfo=UTC)


def engine(number: int, **changes: Any) -> EngineFigures:
    usual = {
        "state": "up",
        "captioned": 52_500,
        "images_per_s": 5.0 + number / 10,
        "in_flight": 32,
        "rss_mib": 9120.0,
        "gpu_percent": 97.0,
        "gpu_memory_percent": 92.0,
        "gpu_temperature_c": 64.0,
    }
    return EngineFigures(number, **(usual | changes))


def last(hour: int, text: str, kind: str = "") -> LastItem:
    return LastItem(f"2026-11-30T{hour:02}:10:00+00:00", text, kind)


def status(num_engines: int = 8, **changes: Any) -> RunStatus:
    usual = {
        "run_id": "run-1",
        "state": "running",
        "pid": 7,
        "updated_at": NOW.isoformat(),
        "started_at": "2026-11-29T15:11:01+00:00",
        "total": 1_000_000,
        "scanning": False,
        "done_before": 20_000,
        "captioned": 400_090,
        "failed": 22,
        "images_per_s": 5.93,
        "tokens_per_s": 1412.0,
        "images_per_s_5_min": 5.86,
        "images_per_s_of_run": 6.01,
        "eta_s": 97_940.0,
        "limited_by": "decode",
        "failures": {"missing_file": 20, "decode_error": 2},
        "engines": [engine(number) for number in range(num_engines)],
        "host": HostFigures(50.0, 40.0, 137.0, 60.9, 30.0),
        "last_failures": [last(n, f"d{n}/a.png: no such file", "missing_file") for n in (7, 8, 9)],
        "last_captions": [last(n, f"d{n}/b.png: A red circle") for n in (7, 8, 9)],
    }
    made = RunStatus(**(usual | changes))
    if made.speed is None and (rate := made.images_per_s_of_run):
        speed = Speed(rate, made.captioned, num_engines, made.num_gpus, made.updated_at)
        made = msgspec.structs.replace(made, speed=speed)
    return made


def view(state: State = "running", age_s: float = 1.0, **changes: Any) -> View:
    holder = "process 7 on vm" if state == "running" else None
    return View(state, holder, age_s, status(**changes))


def screen(views: Views, width: int = 80, height: int = 24) -> list[str]:
    lines = [line.plain for line in draw(overview(views), "/data/out", NOW, width, height)]
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    return lines


def test_eighty_by_twenty_four_show_everything_about_eight_engines() -> None:
    assert screen({None: view()}) == [
        "State      running, process 7 on vm",
        "Output     /data/out",
        "Done        42.0% █████████████████░░░░░░░░░░░░░░░░░░░░░░░░ 420,112 of 1,000,000",
        "Items      400,090 captioned, 20,000 before, 22 failed, 579,888 left",
        "Speed      5.9 images/s now, 5.9 over 5 min, 6.0 overall; 1,412 tokens/s",
        "End        ETA 1 d 3 h (Tue 14:05); started 29 Nov 15:11",
        "Limited by decode: more --prepare-threads, more cores, faster storage",
        "Host       CPU 50%, RAM 40%, driver 137 MiB, free disk 60.9 GiB",
        "Engine     state       images/s in flight   GPU GPU mem   temp restarts RAM MiB",
        *(
            f"{n}          up               5.{n}        32   97%     92%  64 °C        0   9,120"
            for n in range(8)
        ),
        "Failures   missing_file 20, decode_error 2",
        "           09:10 missing_file d9/a.png: no such file",
        "           08:10 missing_file d8/a.png: no such file",
        "           07:10 missing_file d7/a.png: no such file",
        "Captions   d9/b.png: A red circle",
        "           d8/b.png: A red circle",
        "           d7/b.png: A red circle",
    ]


def test_warning_replaces_the_oldest_caption_and_not_an_engine() -> None:
    lines = screen({None: view(warnings=["RAM at 93%: memory is nearly used up."])})
    assert "Warning    RAM at 93%: memory is nearly used up." in lines
    assert sum(" up " in line for line in lines) == 8
    assert lines[-1] == "           d8/b.png: A red circle"


@pytest.mark.parametrize("width", [1, 20, 40, 60, 79, 200])
@pytest.mark.parametrize("height", [1, 5, 12, 16, 23, 60])
def test_screen_fits_any_size_and_starts_with_the_state(width: int, height: int) -> None:
    lines = screen({None: view(warnings=["x"])}, width, height)
    assert lines[0].startswith("State      runn"[: width - 1])


def test_low_terminal_still_shows_failures_and_engines_that_need_attention() -> None:
    engines = [engine(number) for number in range(8)]
    engines[3] = engine(3, state="starting", restarts=2, images_per_s=0.0)
    lines = screen({None: view(engines=engines)}, height=16)
    (_, first, rest) = lines[8:11]
    assert first.split()[:3] == ["3", "starting", "0.0"]
    assert rest == "           and 7 more, 7 of them up, 5.0 to 5.7 images/s each"
    assert lines[11] == "Failures   missing_file 20, decode_error 2"


def test_unknown_figure_is_a_dash_and_a_column_without_any_is_left_out() -> None:
    found = screen({None: view(engines=[EngineFigures(0), engine(1, gpu_temperature_c=None)])}, 99)
    assert not any("temp" in line for line in found)
    (line,) = (line for line in found if line.startswith("0 "))
    assert line.split() == ["0", "not", "started", "–", "0", "–", "–", "0", "–", "0"]


def test_phase_is_shown_where_the_speed_will_be() -> None:
    loading = {"phase": "loading 2/8 engines, 41 s", "images_per_s": None, "eta_s": None}
    lines = screen({None: view(**loading)})
    assert lines[4:6] == [
        "Phase      loading 2/8 engines, 41 s",
        "End        not known yet; started 29 Nov 15:11",
    ]
    assert not any(line.startswith("Limited by") for line in lines)


def test_phases_of_shards_are_counted_beside_the_speed_of_the_others() -> None:
    phases = ["checking flags, 9 s", "loading 2/8 engines, 41 s", "loading 2/8 engines, 41 s", None]
    views: Views = {
        Shard(n + 1, 4): view(phase=phase, images_per_s=None if phase else 5.9)
        for n, phase in enumerate(phases)
    }
    lines = screen(views)
    assert lines[4] == "Phase      2 × loading 2/8 engines, 41 s; checking flags, 9 s"
    assert lines[5].startswith("Speed      5.9 images/s now")


def test_silent_run_is_marked() -> None:
    assert screen({None: view(age_s=14.0)})[0] == "State      running, process 7 on vm"
    assert screen({None: view(age_s=75.0)})[0].endswith(" (silent for 1 min 15 s)")


def test_run_without_a_failure_says_none() -> None:
    lines = screen({None: view(failures={}, last_failures=[], failed=0)})
    assert "Failures   none" in lines


def test_cost_uses_the_price_of_the_run_or_of_the_viewer() -> None:
    a_day = {"started_at": "2026-11-29T10:53:00+00:00", "images_per_s_of_run": 8.0}
    lines = screen({None: view(gpu_hour_price=2.5, gpus_per_engine=2, **a_day)}, height=40)
    number = next(n for n, line in enumerate(lines) if line.startswith("Cost"))
    assert lines[number : number + 2] == [
        "Cost       960.00 so far; about 805.40 for what is left, 1,388.89 per million",
        "           captions at 8.0 images/s",
    ]
    views: Views = {Shard(n, 2): view(**a_day) for n in (1, 2)}
    assert overview(views).costs is None
    assert overview(views, 1.0).costs == Costs(
        done=pytest.approx(2 * 8 * 24),
        left=pytest.approx(1_159_776 / 3600),
        per_million=pytest.approx(1e6 / 3600),
        images_per_s=16.0,
    )


def test_ended_run_shows_its_final_cost_and_that_of_a_million_captions() -> None:
    times = {"started_at": "2026-11-30T08:53:00+00:00", "updated_at": "2026-11-30T10:53:00+00:00"}
    views: Views = {None: view("stopped", gpu_hour_price=2.5, **times)}
    a_million = pytest.approx(1e6 * 8 * 2.5 / 3600 / 6.01)
    wanted = Costs(pytest.approx(40.0), None, a_million, 6.01, "for this run")
    assert overview(views).costs == wanted


# --- shards --------------------------------------------------------------------------------------


def test_shards_are_shown_as_one_with_the_engines_that_need_attention() -> None:
    views: dict[Shard | None, View] = {Shard(n, 8): view() for n in range(1, 9)}
    views[Shard(2, 8)] = view("died")
    views[Shard(3, 8)] = view("finished")
    lines = screen(views)
    assert lines[0] == "State      8 shards: 1 finished, 6 running, 1 died"
    assert lines[2].endswith(" 3,360,896 of 8,000,000")
    assert lines[4] == (
        "Speed      35.6 images/s now, 35.2 over 5 min, 36.1 overall; 8,472 tokens/s"
    )
    assert "Limited by decode: more --prepare-threads, more cores, faster storage" in lines
    assert [line.split()[:2] for line in lines if "died" in line][1:] == [
        [f"2/8:{number}", "died"] for number in range(8)
    ]
    assert "           and 56 more, 48 of them up, 5.0 to 5.7 images/s each" in lines
    assert "Failures   missing_file 160, decode_error 16" in lines
    assert screen({Shard(1, 2): view()})[0] == "State      1 of 2 shards: 1 running"


def test_engine_is_said_to_be_the_limit_of_a_healthy_run() -> None:
    assert "Limited by engine (as it should be)" in screen({None: view(limited_by="engine")})


def test_limits_of_shards_are_counted_only_if_they_differ() -> None:
    limits = ["decode", "engine", "decode"]
    views: Views = {Shard(n, 3): view(limited_by=name) for n, name in enumerate(limits, 1)}
    assert "Limited by decode in 2 shards, engine in 1 shard" in screen(views)


def test_shards_have_a_line_each_only_if_no_engine_has_to_go_for_it() -> None:
    engines = [engine(number) for number in range(4)]
    views: Views = {Shard(n, 2): view(engines=engines, gpu_hour_price=2.5) for n in (1, 2)}
    lines = screen(views)
    assert [line.split()[1] for line in lines if line.startswith("Shard ")] == ["1/2", "2/2"]
    assert sum(" up " in line for line in lines) == 8
    assert lines[-1] == "           08:10 missing_file d8/a.png: no such file"
    assert not any(line.startswith("Shard ") for line in screen(views, height=22))
    assert sum(" up " in line for line in screen(views, height=22)) == 8


@pytest.mark.parametrize(
    ("etas", "eta_s"), [([10.0, 30.0], 30.0), ([10.0, None], None), ([None, None], None)]
)
def test_shards_end_with_the_last_of_them(etas: list[float | None], eta_s: float | None) -> None:
    views: Views = {Shard(n + 1, 2): view(eta_s=eta) for n, eta in enumerate(etas)}
    assert overview(views).eta_s == eta_s


def test_last_items_are_those_of_all_shards() -> None:
    hours = {1: (1, 4), 2: (2, 3)}
    views: Views = {
        Shard(n, 2): view(last_captions=[last(hour, f"{hour}") for hour in hours[n]]) for n in hours
    }
    assert [item.text for item in overview(views).last_captions] == ["4", "3", "2"]


def test_worst_state_of_shards_gives_the_colour() -> None:
    states: list[State] = ["running", "finished", "interrupted", "stopped", "died"]
    for state in states:
        views: Views = {Shard(1, 2): view("finished"), Shard(2, 2): view(state)}
        assert overview(views).state == state


def test_time_in_an_edited_file_is_not_an_error() -> None:
    edited = [LastItem("yesterday", "a.png: gone", "missing_file")]
    lines = screen({None: view(last_failures=edited, started_at="then")})
    assert "           yesterday missing_file a.png: gone" in lines


def test_status_of_a_run_keeps_its_last_items() -> None:
    encoded = msgspec.json.encode(status().as_dict())
    assert msgspec.json.decode(encoded, type=RunStatus) == status()
