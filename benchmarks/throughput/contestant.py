"""One run: `python -m benchmarks.throughput.contestant TASK.json` prints one line."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.throughput.clock import Record
from benchmarks.throughput.outcome import Outcome, Task


def perform(task: Task, started_at: float) -> Outcome:
    """The contestant is a module of this folder."""
    if task.contestant == "job":
        from benchmarks.throughput.job import run_job

        return run_job(task)
    if task.contestant == "static_split":
        from benchmarks.throughput.static_split import run_split

        return run_split(task, started_at)
    record = Record(task.output)
    module = importlib.import_module(f"benchmarks.throughput.{task.contestant}")
    module.run(task, record)
    return record.outcome(started_at)


def main() -> None:
    """What libraries print goes to standard error; only the answer goes to standard output."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    outcome = perform(task, float(os.environ["BENCH_STARTED_AT"]))
    print(outcome.to_json(), file=answers, flush=True)
    os._exit(0)  # no engine's threads or children delay the exit


if __name__ == "__main__":
    main()
