"""How much one driver can carry: items per second through 16 workers that answer at once.

`python benchmarks/driver_scale.py [--items 60000] [--engines 16] [--file-cost-us 100] [--profile]`

Processes, messages, files and Parquet parts are the job's own; the workers answer at once and use
as little of the processor as they can, so what is measured is the driver (and the machine's cores,
which the workers share with it). Reports items/s in the steady state and the driver's CPU per item;
`--profile` adds what each part of the driver takes of it. With `--file-cost-us`, each new file of
the driver takes so much longer: of waiting, or of the processor's time (`--file-cost spin`).
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
PARTS = {
    "scan": ("/inputs/", "/driver/resume.py"),
    "dispatch": ("/scheduling/",),
    "prompt and rules": ("/captions/", "jinja2"),
    "captions to .txt": ("/store/caption_files.py",),
    "rows to Parquet": ("/store/", "row_maker.py", "pyarrow"),
    "messages": ("channel.py", "asyncio", "selectors"),
    "driver, recorder, stats": ("/driver/", "/monitoring/"),
}


def make_input(folder: Path, num_items: int, per_document: int = 50) -> None:
    """Documents of whose images only the first exists, without which no run would start: no worker
    opens one."""
    for name in ("jsons", "json_detail", "raw/d0"):
        (folder / name).mkdir(parents=True)
    (folder / "raw/d0/0.png").touch()
    for first in range(0, num_items, per_document):
        files = [f"d{first // 1000}/{n}.png" for n in range(first, first + per_document)]
        manifest = {"images": [{"file": file} for file in files], "width": 800, "height": 600}
        detail = {"images": [{}] * len(files), "types": ["SvgElement"] * len(files)}
        name = f"design_{first:08}.json"
        (folder / "jsons" / name).write_text(json.dumps(manifest))
        (folder / "json_detail" / name).write_text(json.dumps(detail))


def costly_files(folder: Path, cost_us: int, kind: str) -> dict[str, str]:
    """The environment of a process for which each new file costs so much more."""
    if not cost_us:
        return {}
    library, source = folder / "file_cost.so", HERE / "file_cost.c"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library), "FILE_COST_US": str(cost_us), "FILE_COST_KIND": kind}


def run_job(
    folder: Path, num_engines: int, environment: dict[str, str], *, profile: bool
) -> dict[str, float]:
    """One whole run in a process of its own; figures of its steady state."""
    command = [sys.executable, __file__, "--job", str(folder), "--engines", str(num_engines)]
    driver = psutil.Popen(
        command + ["--profile"] * profile,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    seen: list[tuple[float, float, int]] = []
    while driver.poll() is None:
        try:
            status = json.loads((folder / "out/status.json").read_bytes())
            cpu = driver.cpu_times()
        except (OSError, psutil.Error):
            time.sleep(0.2)
            continue
        if status["captioned"] and (not seen or status["captioned"] > seen[-1][2]):
            seen.append((time.monotonic(), cpu.user + cpu.system, status["captioned"]))
        time.sleep(0.02)
    assert driver.wait() == 0, "the run failed"
    if profile and driver.stdout is not None:
        print(driver.stdout.read())
    (first_s, first_cpu, first), (last_s, last_cpu, last) = seen[0], seen[-1]
    return {
        "items_per_s": (last - first) / (last_s - first_s),
        "driver_cpu_us_per_item": 1e6 * (last_cpu - first_cpu) / (last - first),
        "items": last - first,
    }


def job(folder: Path, num_engines: int, *, profile: bool) -> None:
    """The job's own process: the real command line around engines that answer at once."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from support import fake_engines, fake_job

    flags = [f"--{name}={folder / sub}" for name, sub in FOLDERS]
    arguments = (*flags, f"-dp={num_engines}", "--quiet", "--prepare-threads=1")
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    code = fake_job.fake_main(*arguments, start_engine=fake_engines.start_instant)
    if profile:
        profiler.disable()
        print_parts(profiler)
    sys.stdout.flush()
    os._exit(code)


FOLDERS = (
    ("jsons", "jsons"),
    ("json-detail", "json_detail"),
    ("images-root", "raw"),
    ("output", "out"),
)


def print_parts(profiler: cProfile.Profile) -> None:
    """Own time of the main thread by part of the driver; the scan's thread is not seen."""
    stats = pstats.Stats(profiler, stream=io.StringIO())
    own: dict[str, float] = {}
    for function, (_, _, own_s, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        spent = {function: own_s}
        if function[0] == "~":  # what a builtin takes is its callers' own
            spent = {caller: times[2] for caller, times in callers.items()} or spent
        for (file, _, _), seconds in spent.items():
            part = next((p for p, names in PARTS.items() if any(n in file for n in names)), "other")
            part = "waiting" if "poll" in function[2] else part
            own[part] = own.get(part, 0.0) + seconds
    busy = sum(s for part, s in own.items() if part != "waiting")
    for part, seconds in sorted(own.items(), key=lambda item: -item[1]):
        if part != "waiting":
            print(f"  {part:22} {seconds / busy:6.1%}")


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=60_000)
    parser.add_argument("--engines", type=int, default=16)
    parser.add_argument("--file-cost-us", type=int, default=0, metavar="US")
    parser.add_argument("--file-cost", choices=("sleep", "spin"), default="sleep")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(arguments.job, arguments.engines, profile=arguments.profile)
    with tempfile.TemporaryDirectory() as name:
        make_input(Path(name), arguments.items)
        environment = costly_files(Path(name), arguments.file_cost_us, arguments.file_cost)
        found = run_job(Path(name), arguments.engines, environment, profile=arguments.profile)
    print(json.dumps({name: round(value, 1) for name, value in found.items()}))


if __name__ == "__main__":
    main()
