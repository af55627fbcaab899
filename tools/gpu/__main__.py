"""`python -m tools.gpu`: run the steps, and rewrite `results.json` after each.

A step that fails or takes too long costs its own time and nothing else. Steps that have a result in
the folder are not tried again, so a second call continues with what the first left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.gpu.inputs import ROOT
from tools.gpu.steps import Steps
from tools.gpu.visit import Result, Step, left_out, ratios, visit

QUERY = "name,driver_version,memory.total,clocks.max.sm,power.limit"


def main(arguments: Sequence[str]) -> int:
    """Exit code 0: every step was tried and succeeded."""
    options = _parser().parse_args(arguments)
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = (f"--model={options.model}",) if options.model else ()
    steps = Steps(folder, model, options.engine_flags).listed()
    results = _earlier(folder)
    if options.only:
        names = options.only.split(",")
        if unknown := set(names) - {step.name for step in steps}:
            sys.exit(f"{', '.join(sorted(unknown))}: not among {', '.join(s.name for s in steps)}")
        steps = tuple(step for step in steps if step.name in names)
        results = {name: result for name, result in results.items() if name not in names}

    def begun(step: Step, limit_s: float) -> None:
        print(f"{step.name}: {step.shows}, at most {limit_s:.0f} s", flush=True)

    def ended(step: Step) -> None:
        _write(folder, results, steps)
        result = results[step.name]
        verdict = "good" if result["good"] else "NOT GOOD"
        print(f"  {verdict} after {result['took_s']:.0f} s: {result['says']}", flush=True)

    visit(steps, results, time.monotonic, options.budget, options.patience, begun, ended)
    missing = left_out(steps, results)
    _write(folder, results, steps)
    for meaning, ratio in ratios(results).items():
        print(f"{ratio:.2f} × images/s {meaning}")
    for name, why in missing.items():
        print(f"{name}: left out, {why}; the next call continues with it")
    print(f"Results: {folder / 'results.json'}")
    return int(bool(missing) or not all(results[step.name]["good"] for step in steps))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu",
        usage="%(prog)s [options] [-- FLAG ...]",
        description="The first thing to run on a machine with a GPU: checks that the job works"
        " there and measures its speed. Flags of vLLM after -- go to every engine.",
        epilog="exit codes: 0 every step ran and was good; 1 a step was not, or was left out. Run"
        " it again to continue with the steps that have no result yet.",
    )
    text = "where results.json, logs and outputs go (default: build/gpu in the checkout)"
    parser.add_argument("--folder", type=Path, metavar="DIR", default=ROOT / "build/gpu", help=text)
    text = "time for all steps together; steps that do not fit are left out"
    text += " (default: %(default)s)"
    parser.add_argument("--budget", type=float, metavar="SECONDS", default=520, help=text)
    text = "run only these steps, separated by commas, even if they have results"
    parser.add_argument("--only", metavar="STEPS", help=text)
    text = "name or folder of a model (default: the job's default model; where this machine"
    text += " has not all of its files, its shape with random weights)"
    parser.add_argument("--model", help=text)
    text = "multiply the time limit of each step by this, on a slow machine"
    text += " (default: %(default)s)"
    parser.add_argument("--patience", type=float, metavar="FACTOR", default=1.0, help=text)
    parser.add_argument("engine_flags", nargs="*", help=argparse.SUPPRESS)
    return parser


def _earlier(folder: Path) -> dict[str, Result]:
    try:
        steps: dict[str, Result] = json.loads((folder / "results.json").read_bytes())["steps"]
    except FileNotFoundError:
        return {}
    return steps


def _write(folder: Path, results: dict[str, Result], steps: Sequence[Step]) -> None:
    whole = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpus": _gpus(),
        "ratios": ratios(results),
        "left_out": left_out(steps, results),
        "steps": results,
    }
    text = json.dumps(whole, indent=1, ensure_ascii=False)
    (folder / "results.json.new").write_text(text, "utf-8")
    (folder / "results.json.new").replace(folder / "results.json")


def _gpus() -> list[str]:
    """In nvidia-smi's words; empty without it."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return asked.stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
