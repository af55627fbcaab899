"""The time series beside the manifest, the warnings, and that neither ever stops a run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fake_nvml import FakeNvml
from support.job import FAKE, Result, input_flags, make_input, run, start, status, wait_until

from vllm_caption.commands.status.overview import Views
from vllm_caption.commands.status.text import describe
from vllm_caption.monitoring import monitor
from vllm_caption.monitoring.figures import EngineFigures, HostFigures
from vllm_caption.monitoring.gpus import GpuReading
from vllm_caption.monitoring.host import Host, limit_percent, own_groups
from vllm_caption.monitoring.monitor import Monitor, Reading, sample
from vllm_caption.monitoring.pressure import Pressure, gpu_memory_limit
from vllm_caption.monitoring.samples import SCHEMA, Series, read_series, thin, write_series
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.monitoring.status import View, make_status
from vllm_caption.store.layout import SAMPLES

START = datetime(2026, 1, 1, tzinfo=UTC)
CALM = HostFigures(50.0, 40.0, 100.0, 500.0, 30.0)


def row(number: int, run_id: str = "run-1", engines: int = 2) -> dict[str, Any]:
    """A sample of a run with two engines, one of them with GPU figures."""
    stats = RunStats([EngineFigures(n, "up", 11, captioned=number) for n in range(engines)])
    stats.captioned = number
    status = make_status(run_id, "running", stats, 0.0, "")
    gpus = [GpuReading(97.0, 91.0, 64.0)] + [GpuReading()] * (engines - 1)
    return sample(status, Reading(CALM, gpus, {11: 900.0}), START + timedelta(seconds=5 * number))


def series_of(table: pa.Table, count: int, run_id: str, **options: int) -> pa.Table:
    series = Series(table, **options)
    for number in range(count):
        series.add(row(number, run_id), last=number == count - 1)
    return series.table()


def write(root: Path, table: pa.Table) -> None:
    folder = os.open(root, os.O_RDONLY)
    try:
        write_series(folder, table)
    finally:
        os.close(folder)


# --- the file ----------------------------------------------------------------------------------


def test_file_has_these_columns_in_this_order_and_of_these_types(tmp_path: Path) -> None:
    write(tmp_path, series_of(None, 3, "run-1"))
    table = pq.read_table(tmp_path / SAMPLES)
    assert table.schema.equals(SCHEMA)
    assert [(field.name, str(field.type)) for field in table.schema][:-1] == [
        *[("at", "timestamp[us, tz=UTC]"), ("run_id", "string")],
        *[("images_per_s", "float"), ("tokens_per_s", "float")],
        *[("captioned", "int64"), ("failed", "int64"), ("in_flight", "int32")],
        *[("cpu_percent", "float"), ("ram_percent", "float")],
        *[("driver_rss_mib", "float"), ("disk_free_gib", "float")],
    ]
    assert table.column_names[-1] == "engines"
    assert [(f.name, str(f.type)) for f in table.schema.field("engines").type.value_type] == [
        *[("engine", "int32"), ("state", "string")],
        *[("captioned", "int64"), ("output_tokens", "int64")],
        *[("in_flight", "int32"), ("restarts", "int32"), ("rss_mib", "float")],
        *[("gpu_percent", "float"), ("gpu_memory_percent", "float")],
        ("gpu_temperature_c", "float"),
    ]
    last = table.to_pylist()[-1]
    assert (last["captioned"], last["run_id"]) == (2, "run-1")
    assert last["engines"][0]["gpu_temperature_c"] == 64.0
    assert last["engines"][1]["gpu_percent"] is None
    assert last["engines"][1]["rss_mib"] == 900.0
    assert [path.name for path in tmp_path.iterdir()] == [SAMPLES]


def test_run_of_days_keeps_a_bounded_number_of_points_evenly_over_its_length() -> None:
    found = series_of(None, 5000, "run-1", max_points=64)["captioned"].to_pylist()
    assert 32 <= len(found) <= 65
    assert (found[0], found[-1]) == (0, 4999)
    steps = {after - before for before, after in itertools.pairwise(found[:-1])}
    assert steps == {128}


def test_series_of_a_week_stays_small_in_memory_and_on_disk(tmp_path: Path) -> None:
    series = Series()
    random = Random(1)
    for _ in range(10_000):
        one = row(random.randrange(10**6), engines=8)
        for engine in one["engines"]:
            engine |= {"gpu_percent": random.random(), "gpu_memory_percent": random.random()}
            engine |= {"rss_mib": random.random(), "gpu_temperature_c": random.random()}
        series.add(one)
    started = time.process_time()
    write(tmp_path, series.table())
    assert time.process_time() - started < 5
    assert series.table().num_rows <= 2048
    assert series.table().nbytes < 3 * 2**20
    assert (tmp_path / SAMPLES).stat().st_size < 2**20


def test_runs_of_one_folder_follow_each_other() -> None:
    table = series_of(series_of(None, 10, "run-1"), 5, "run-2")
    assert table["run_id"].to_pylist() == ["run-1"] * 10 + ["run-2"] * 5


def test_earlier_runs_are_thinned_to_their_ends_then_the_oldest_are_dropped() -> None:
    table = None
    for number in range(6):
        table = series_of(table, 20, f"run-{number}", max_earlier=30)
    assert table.num_rows <= 50
    ends = {
        run: [r["captioned"] for r in table.to_pylist() if r["run_id"] == run]
        for run in set(table["run_id"].to_pylist())
    }
    assert len(ends) == 6
    assert all((found[0], found[-1]) == (0, 19) for found in ends.values())
    assert thin(table, 3)["run_id"].to_pylist() == ["run-4", "run-5", "run-5"]


def test_figures_that_an_older_version_did_not_record_are_null(tmp_path: Path) -> None:
    table = series_of(None, 3, "run-1")
    engines = [[{"engine": 0, "captioned": 7}]] * 3
    older = table.select(["at", "run_id", "captioned"]).append_column("engines", pa.array(engines))
    write(tmp_path, older)
    found = read_series(tmp_path)
    assert found is not None and found.schema.equals(SCHEMA)
    (engine,) = found.to_pylist()[-1]["engines"]
    assert (engine["captioned"], engine["gpu_percent"]) == (7, None)
    assert found["failed"].null_count == 3


def test_folder_without_a_file_has_no_series(tmp_path: Path) -> None:
    assert read_series(tmp_path) is None


# --- warnings ----------------------------------------------------------------------------------


def host(**percent: float) -> HostFigures:
    values = {"cpu": 50.0, "ram": 40.0, "disk": 30.0} | percent
    return HostFigures(values["cpu"], values["ram"], 100.0, 12.5, values["disk"])


def pressure(on_cpu: bool = False, limit: float = 90.0) -> Pressure:
    return Pressure("out", on_cpu=on_cpu, gpu_memory_limit=limit)


@pytest.mark.parametrize(
    ("percent", "gpu_memory", "said"),
    [
        ({"cpu": 95.0}, None, "CPU at 95%: "),
        ({"ram": 92.0}, None, "RAM at 92%: "),
        ({"disk": 90.0}, None, "12.5 GiB are free; make room; a full disk stops the run."),
        ({}, 97.0, "GPU memory of engine 0 at 97%: "),
    ],
)
def test_resource_that_exceeds_its_limit_is_reported_with_a_remedy(
    percent: dict[str, float], gpu_memory: float | None, said: str
) -> None:
    (told,) = pressure().check(host(**percent), [gpu_memory])
    assert said in told


def test_machine_with_free_resources_causes_no_warning() -> None:
    assert pressure().check(CALM, [50.0, None]) == []


def test_warning_comes_once_and_again_only_after_the_resource_was_free() -> None:
    watched = pressure()
    told = [len(watched.check(host(ram=p), [])) for p in (91, 95, 85, 92, 81, 99, 79, 85, 91, 92)]
    assert told == [1, 0, 0, 0, 0, 0, 0, 0, 1, 0]


def test_warning_lasts_until_the_resource_is_free() -> None:
    watched = pressure()
    watched.check(host(ram=91), [])
    watched.check(host(ram=85), [])
    assert list(watched.active) == ["RAM"]
    watched.check(host(ram=79), [])
    assert watched.active == {}


def test_each_resource_and_each_gpu_has_its_own_warning() -> None:
    watched = pressure()
    assert len(watched.check(host(ram=95, disk=95), [95.0, 50.0])) == 3
    assert len(watched.check(host(ram=95, disk=95), [95.0, 95.0])) == 1


def test_busy_cpu_is_fine_if_the_engines_run_on_it() -> None:
    assert pressure(on_cpu=True).check(host(cpu=100.0), [None]) == []


def test_unreadable_disk_causes_no_warning() -> None:
    assert pressure().check(HostFigures(10.0, 10.0, 10.0), []) == []


@pytest.mark.parametrize(
    ("engine_args", "limit"),
    [
        ((), 96.0),
        (("--gpu-memory-utilization", "0.8"), 90.0),
        (("--gpu-memory-utilization=0.9",), 94.0),
        (("--gpu_memory_utilization=0.98",), 99.0),
        (("--gpu-memory-utilization=lots",), 96.0),
        (("--gpu-memory-utilization",), 96.0),
        (("--dtype", "bfloat16"), 96.0),
    ],
)
def test_gpu_memory_that_vllm_allocates_by_design_causes_no_warning(
    engine_args: tuple[str, ...], limit: float
) -> None:
    assert gpu_memory_limit(engine_args) == pytest.approx(limit)


# --- the machine -------------------------------------------------------------------------------


def test_host_is_read_with_the_memory_of_each_session(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "100"], start_new_session=True)
    try:
        seen = Host(tmp_path)
        found = seen.read()
        assert 0 <= found.cpu_percent <= 100 and 0 < found.ram_percent <= 100
        assert found.driver_rss_mib > 10
        assert found.disk_free_gib is not None and found.disk_free_gib > 0
        until(lambda: seen.rss_mib().get(child.pid))  # 0 just after its start
    finally:
        child.kill()
        child.wait()


def test_missing_folder_costs_only_the_figures_of_the_disk(tmp_path: Path) -> None:
    found = Host(tmp_path / "nowhere").read()
    assert found.disk_free_gib is None
    assert found.ram_percent > 0


def cgroup(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(content)
    return folder


def test_memory_of_a_container_is_counted_against_its_own_limit_without_caches(
    tmp_path: Path,
) -> None:
    stat = "anon 500\nfile 300\nshmem 100\n"
    assert limit_percent(cgroup(tmp_path, max="1000\n", current="900\n", stat=stat)) == 70.0


@pytest.mark.parametrize("limit", ["max\n", "0", "9223372036854771712\n", "many"])
def test_container_without_a_limit_has_no_percentage(tmp_path: Path, limit: str) -> None:
    assert limit_percent(cgroup(tmp_path, max=limit, current="900", stat="file 1")) == 0.0
    assert limit_percent(tmp_path / "nowhere") == 0.0


@pytest.mark.parametrize(
    ("content", "groups"),
    [
        ("0::/\n", []),
        ("0::/slurm/job_1\n", ["slurm/job_1", "slurm", "."]),
        ("4:memory:/old\n", []),
        (None, []),
    ],
)
def test_limits_of_a_batch_job_are_found_in_every_group_around_it(
    tmp_path: Path, content: str | None, groups: list[str]
) -> None:
    if content is not None:
        (tmp_path / "own").write_text(content)
    found = own_groups(Path("/cgroup"), tmp_path / "own")
    assert found == [Path("/cgroup") / group for group in groups]


# --- beside a run --------------------------------------------------------------------------------


def watched(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Host], HostFigures],
    gpu: str | None = None,
) -> Monitor:
    monkeypatch.setattr(monitor, "FIRST_EVERY_S", 0.01)
    monkeypatch.setattr(monitor, "WRITE_EVERY_S", 0.0)
    monkeypatch.setattr(Host, "read", read)
    made = Monitor(root, [gpu], ())
    made.follow(make_status("run-1", "running", RunStats([EngineFigures(0, "up")]), 0.0, ""))
    made.start()
    return made


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_warning_reaches_the_status_and_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watched(tmp_path, monkeypatch, lambda _: host(ram=93.0))
    stats = RunStats([EngineFigures(0, "up")])
    until(lambda: made.show(stats) or stats.warnings)
    made.close()
    (told,) = made.take_notes()
    assert told == stats.warnings[0]
    assert make_status("run-1", "running", stats, 0.0, "").warnings == [told]
    assert stats.host == host(ram=93.0)


def test_gpu_is_in_the_series_in_the_status_and_on_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeNvml((97, 98, 64)).install(monkeypatch)
    made = watched(tmp_path, monkeypatch, lambda _: CALM, gpu="0")
    stats = RunStats([EngineFigures(0, "up", 11)])
    until(lambda: made.show(stats) or stats.warnings)
    made.close()
    (engine,) = pq.read_table(tmp_path / SAMPLES).to_pylist()[-1]["engines"]
    seen = ("gpu_percent", "gpu_memory_percent", "gpu_temperature_c")
    assert [engine[name] for name in seen] == [97.0, 98.0, 64.0]
    assert stats.warnings[0].startswith("GPU memory of engine 0 at 98%: ")
    status = make_status("run-1", "running", stats, 0.0, "2026-01-01T00:00:00+00:00")
    views: Views = {None: View("running", "process 1", 0.0, status)}
    text = describe(views, tmp_path, datetime.now(UTC))
    assert "  97%     98%  64 °C " in text
    assert "Host       CPU 50%, RAM 40%, driver 100 MiB, free disk 500.0 GiB" in text
    assert "Warning    GPU memory of engine 0 at 98%: " in text


def test_failed_samples_are_reported_once_and_cost_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def read(_: Host) -> HostFigures:
        calls.append(1)
        if len(calls) % 2:
            raise psutil.AccessDenied(1)
        return CALM

    made = watched(tmp_path, monkeypatch, read)
    until(lambda: len(calls) > 20)
    made.close()
    (told,) = made.take_notes()
    assert told.startswith("The monitor continues without some of its figures: ")
    assert pq.read_table(tmp_path / SAMPLES).num_rows >= 5


def test_damaged_file_is_replaced_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SAMPLES).write_bytes(b"PAR1 and then nothing")
    made = watched(tmp_path, monkeypatch, lambda _: CALM)
    made.close()
    (told,) = made.take_notes()
    assert "monitor.parquet cannot be read and is replaced" in told
    assert pq.read_table(tmp_path / SAMPLES).num_rows >= 1


def test_file_with_other_columns_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"at": ["yesterday"]}), tmp_path / SAMPLES)
    watched(tmp_path, monkeypatch, lambda _: CALM).close()
    assert pq.read_table(tmp_path / SAMPLES).schema.equals(SCHEMA)


def test_hanging_monitor_delays_neither_the_run_nor_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "PATIENCE_S", 0.1)
    free = tmp_path / "free"

    def read(_: Host) -> HostFigures:
        until(free.exists)
        return CALM

    made = watched(tmp_path, monkeypatch, read)
    started = time.monotonic()
    made.show(RunStats([EngineFigures(0)]))
    made.close()
    assert time.monotonic() - started < 15
    free.touch()


def test_missing_folder_leaves_a_run_without_monitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watched(tmp_path / "nowhere", monkeypatch, lambda _: CALM)
    made.close()
    assert [note.partition(":")[0] for note in made.take_notes()] == ["The monitor cannot start"]


def job(folder: Path, *flags: str) -> Result:
    return run(*flags_of(folder), *flags, command=FAKE)


def flags_of(folder: Path) -> list[str]:
    return [*input_flags(folder), f"--output={folder / 'out'}", "-dp=2", "--max-num-seqs=2"]


def test_every_run_leaves_its_figures_beside_the_manifest(tmp_path: Path) -> None:
    make_input(tmp_path, 12)
    assert job(tmp_path, "--limit=4").exit_code == 0
    assert job(tmp_path).exit_code == 0
    table = pq.read_table(tmp_path / "out" / SAMPLES)
    first, second = dict.fromkeys(table["run_id"].to_pylist())
    last = {r["run_id"]: r for r in table.to_pylist()}
    assert [last[first]["captioned"], last[second]["captioned"]] == [4, 8]
    assert sum(engine["captioned"] for engine in last[second]["engines"]) == 8
    assert [engine["engine"] for engine in last[second]["engines"]] == [0, 1]


def test_memory_of_a_running_engine_is_in_the_status(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    (tmp_path / "raw/d0/shape_0.png").rename(tmp_path / "raw/d0/gated.png")
    text = (tmp_path / "jsons/design_000.json").read_text().replace("shape_0", "gated")
    (tmp_path / "jsons/design_000.json").write_text(text)
    process = start(*flags_of(tmp_path), "-dp=1", command=FAKE)
    output = tmp_path / "out"
    wait_until(lambda: status(output).get("engines", [{}])[0].get("rss_mib"), process)
    assert status(output)["engines"][0]["rss_mib"] > 10
    assert status(output)["host"]["disk_free_gib"] > 0
    (tmp_path / "raw/gate").touch()
    assert process.communicate(timeout=60) and process.returncode == 0


def test_caption_cannot_take_the_place_of_the_series(tmp_path: Path) -> None:
    make_input(tmp_path, 1)
    text = (tmp_path / "jsons/design_000.json").read_text()
    text = text.replace("d0/shape_0.png", "monitor.parquet/shape_0.png")
    (tmp_path / "jsons/design_000.json").write_text(text)
    result = job(tmp_path)
    assert (result.exit_code, "output_conflict 1" in result.stdout) == (1, True)


def test_monitor_imports_neither_vllm_nor_torch() -> None:
    code = "import vllm_caption.monitoring.monitor, sys\n"
    code += "print('vllm' in sys.modules, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
