"""g. vLLM's offline data-parallel example: each process takes its part of the list beforehand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.throughput.outcome import Outcome, Task


def run_split(task: Task, started_at: float) -> Outcome:
    """One `LLM.chat` process per engine over a contiguous part, all at the same time."""
    count = len(task.files)
    bounds = [count * part // task.engines for part in range(task.engines + 1)]
    processes = []
    for part in range(task.engines):
        files = task.files[bounds[part] : bounds[part + 1]]
        mine = replace(task, contestant="chat", engines=1, files=files)
        path = Path(f"{task.output}-{part}.json")
        path.write_text(json.dumps(asdict(mine)))
        command = [sys.executable, "-m", "benchmarks.throughput.contestant", str(path)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    outcomes = [json.loads(p.communicate()[0].splitlines()[-1]) for p in processes]
    return Outcome(
        started_at,
        [at for outcome in outcomes for at in outcome["ready_at"]],
        {file: at for outcome in outcomes for file, at in outcome["finished_at"].items()},
        {file: text for outcome in outcomes for file, text in outcome["captions"].items()},
    )
