"""b. This job: the real command line in a separate process, writing everything it writes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.throughput.outcome import Outcome, Task

STAGES = ["queue_s", "prepare_s", "render_queue_s", "render_s", "generate_s"]
COLUMNS = ["file", "caption", "engine", *STAGES, "finished_at"]
PARTS_EVERY = 250
"""Rows per Parquet part: far fewer than the default, so that parts are written during the run."""


def command(task: Task) -> list[str]:
    """What a user would type."""
    given = Path(task.options["input"])
    return [
        *(sys.executable, "-m", "vllm_caption", f"--model={task.model}", f"--prompt={task.prompt}"),
        *(f"--jsons={given / 'jsons'}", f"--json-detail={given / 'json_detail'}"),
        *(f"--images-root={task.images_root}", f"--output={task.output}", "--quiet"),
        *(f"--limit={len(task.files)}", f"--data-parallel-size={task.engines}"),
        f"--max-num-seqs={task.max_num_seqs}",
        *(f"--max-tokens={task.max_tokens}", *(["--ignore-eos"] if task.ignore_eos else [])),
        *("--no-dedup", "--no-checks", f"--checkpoint-interval={PARTS_EVERY}", *task.flags),
        *task.options.get("more", ()),
    ]


def run_job(task: Task) -> Outcome:
    """Run it to its end, then read the times that its manifest keeps.

    An engine is up when it receives its first lease, which it is sent at once.
    """
    started_at = time.time()
    subprocess.run(command(task), check=True, stdout=subprocess.DEVNULL)
    rows = pq.read_table(Path(task.output) / "manifest.parquet", columns=COLUMNS).to_pylist()
    finished_at = {row["file"]: row["finished_at"].timestamp() for row in rows}
    ready_at: dict[int, float] = {}
    for row in rows:
        begun_at = finished_at[row["file"]] - sum(row[stage] for stage in STAGES)
        ready_at[row["engine"]] = min(begun_at, ready_at.get(row["engine"], begun_at))
    captions = {row["file"]: row["caption"] for row in rows}
    return Outcome(started_at, list(ready_at.values()), finished_at, captions)
