"""A million items, most of them done: what planning, resuming and compacting cost.

`python benchmarks/million.py [--items 10000 100000 1000000] [--done 0.9]`

Generates an input (documents of five items; of images, only the first that is looked for) and an
output folder with the .txt files of most items and a manifest that says that these are captioned;
then, each in a process of its own: `plan`, the scan that a resumed run makes, and the compaction of
the manifest. Prints seconds and peak memory, and when the first item was there for an engine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.store.rows import SCHEMA

PER_DOCUMENT = 5
ROW = {
    "document": "design_00000001",
    "element_index": 1,
    "element_type": "SvgElement",
    "status": "captioned",
    "finish_reason": "stop",
    "attempts": 1,
    "prompt_tokens": 90,
    "output_tokens": 24,
    "image_width": 256,
    "image_height": 256,
    "backdrop": "white",
    "recipe_id": "0123456789ab",
    "model": "Qwen/Qwen2.5-VL-7B-Instruct",
    "prompt_name": "shape-brief",
    "engine": 3,
    "queue_s": 0.01,
    "prepare_s": 0.01,
    "render_queue_s": 0.01,
    "render_s": 0.003,
    "generate_s": 0.5,
    "run_id": "20260101T000000-abcd",
}


def name_of(item: int) -> str:
    """A file name as designs have them."""
    return f"{item // 1000:04}/{item // PER_DOCUMENT:08}/element_{item}.png"


def make_input(folder: Path, num_items: int) -> None:
    """Two small JSON files per document."""
    for name in ("jsons", "json_detail", "raw"):
        (folder / name).mkdir(parents=True)
    detail = json.dumps({"images": [{}] * PER_DOCUMENT, "types": ["SvgElement"] * PER_DOCUMENT})
    for first in range(0, num_items, PER_DOCUMENT):
        files = [{"file": name_of(item)} for item in range(first, first + PER_DOCUMENT)]
        name = f"design_{first // PER_DOCUMENT:08}.json"
        manifest = {"images": files, "width": 800, "height": 600}
        (folder / "jsons" / name).write_text(json.dumps(manifest))
        (folder / "json_detail" / name).write_text(detail)


def make_output(folder: Path, num_done: int, per_part: int = 1000) -> None:
    """The captions and parts of a run that was killed: not compacted; and the image of the first
    item that is left, without which the next run would not start."""
    image = folder.parent / "raw" / name_of(num_done)
    image.parent.mkdir(parents=True, exist_ok=True)
    image.touch()
    parts = folder / "manifest.parquet"
    parts.mkdir(parents=True)
    for number, first in enumerate(range(0, num_done, per_part)):
        rows = [
            ROW
            | {
                "file": name_of(item),
                "caption": f"a large red circle with a thin blue outline, number {item}",
                "finished_at": time.time_ns() // 1000,
                "twin_key": os.urandom(16).hex(),
                "image_sha256": os.urandom(32).hex(),
            }
            for item in range(first, min(first + per_part, num_done))
        ]
        for row in rows:
            make_caption(folder, row)
        table = pa.Table.from_pylist(rows, SCHEMA)
        pq.write_table(table, parts / f"part-{number + 1:08}.parquet", compression="zstd")


def make_caption(folder: Path, row: dict[str, Any]) -> None:
    """The .txt of a row, of its time."""
    path = folder / f"{row['file']}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(row["caption"])
    os.utime(path, ns=(row["finished_at"] * 1000,) * 2)


def measured(what: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Seconds and peak memory of ``what`` in a process of its own."""
    began_s = time.monotonic()
    found = what()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.monotonic() - began_s, "peak_mib": peak, **found}


def config_of(folder: Path) -> Any:
    """The settings of a run over the generated input."""
    from vllm_caption.config import InputConfig, RunConfig

    inputs = InputConfig(folder / "jsons", folder / "json_detail", folder / "raw")
    return RunConfig(input=inputs, output=folder / "out")


def plan(folder: Path) -> dict[str, float]:
    """The `plan` command."""
    from vllm_caption.cli import main

    flags = [f"--{name}={folder / place}" for name, place in FOLDERS]
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    assert main(["plan", *flags]) == 0
    return {}


def scan(folder: Path) -> dict[str, float]:
    """What a resumed run does before and beside its engines."""
    from vllm_caption.captions.prompt import load_prompt
    from vllm_caption.driver.resume import Pending, Wanted
    from vllm_caption.driver.row_maker import RowMaker
    from vllm_caption.store.caption_files import CaptionFiles
    from vllm_caption.store.checkpoint import Checkpoint
    from vllm_caption.store.recipe import make_recipe

    began_s, config = time.monotonic(), config_of(folder)
    recipe = make_recipe(config.engine, load_prompt(config.prompt), config.sampling, config.image)
    make = RowMaker("run", str(folder / "raw"), recipe)
    known = Checkpoint(folder / "out", 1000).states()
    known_s, first_s, pending = time.monotonic() - began_s, 0.0, []
    reading = Pending(
        config.input,
        config.image,
        Wanted(config.resume, frozenset({recipe.id})),
        known,
        CaptionFiles(folder / "out"),
        make,
        lambda _: (),
    )
    for batch in reading.batches():
        pending += batch.pending
        if pending and not first_s:
            first_s = time.monotonic() - began_s
    return {"known_s": known_s, "first_pending_s": first_s, "pending": len(pending)}


def twins(folder: Path) -> dict[str, float]:
    """The index of earlier captions."""
    from vllm_caption.store.earlier_captions import read_earlier
    from vllm_caption.store.layout import parts
    from vllm_caption.store.reader import num_rows

    num_known = sum(num_rows(path) for path in parts(folder / "out/manifest.parquet"))
    read_earlier(folder / "out", [str(ROW["recipe_id"])], num_known)
    return {}


def compact(folder: Path) -> dict[str, float]:
    """The end of a run: one part with one row per item."""
    from vllm_caption.store.checkpoint import Checkpoint

    Checkpoint(folder / "out", 1000).compact()
    return {}


STEPS = {step.__name__: step for step in (plan, scan, twins, compact)}
FOLDERS = (
    ("jsons", "jsons"),
    ("json-detail", "json_detail"),
    ("images-root", "raw"),
    ("output", "out"),
)


def rows(sizes: list[int], done: float, work: Path) -> Iterator[dict[str, float | str]]:
    """Each step at each size."""
    for size in sizes:
        folder = work / str(size)
        make_input(folder, size)
        make_output(folder / "out", int(size * done))
        os.sync()  # else the first step shares the disk with the writing of all these files
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
            done_step = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            yield {"items": size, "step": step, **json.loads(done_step.stdout.splitlines()[-1])}
        shutil.rmtree(folder)


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--done", type=float, default=0.9)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        out = os.dup(1)
        found = measured(lambda: STEPS[arguments.step](arguments.folder))
        os.write(out, json.dumps({k: round(v, 2) for k, v in found.items()}).encode() + b"\n")
        return
    with tempfile.TemporaryDirectory() as work:
        for row in rows(arguments.items, arguments.done, Path(work)):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
