"""Running the job from tests: in this process (vLLM stays imported) or as a user's command."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from support.forked_job import ForkedJob, can_fork
from vllm_caption.cli import main
from vllm_caption.store.layout import parts
from vllm_caption.store.rows import SCHEMA

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
WAIT_S = 180.0
FAKE = ("-m", "support.fake_job")
"""For `start` and `run`: the job with engines that answer at once."""
QUICK = ("-dp=2", "--max-num-seqs=2", "--quiet")
"""Flags of a job with two small engines."""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def run_here(*arguments: str, meanwhile: Callable[[io.StringIO], object] | None = None) -> Result:
    """The command line in this process: engines start from a fork server that stays.

    ``meanwhile`` does something to the run from a thread of its own, given what it tells.
    """
    out, err = io.StringIO(), io.StringIO()
    with ThreadPoolExecutor(1) as beside:
        other = beside.submit(meanwhile, err) if meanwhile else None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            exit_code = main(arguments)
        if other:
            other.result()
    return Result(exit_code, out.getvalue(), err.getvalue())


def start(
    *arguments: str,
    environment: dict[str, str] | None = None,
    command: tuple[str, ...] = ("-m", "vllm_caption"),
    **options: Any,
) -> subprocess.Popen[str]:
    """Start the command line as a process in its own process group."""
    variables = environment or {}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if command == FAKE and not options and can_fork(variables):
        return ForkedJob(arguments, env=ENVIRONMENT | variables, **pipes)
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        env=ENVIRONMENT | variables,
        start_new_session=True,
        **pipes,
        **options,
    )


def run(*arguments: str, **options: Any) -> Result:
    """Run the command line as a process to its end."""
    process = start(*arguments, **options)
    stdout, stderr = process.communicate(timeout=WAIT_S)
    return Result(process.returncode, stdout, stderr)


def input_flags(folder: Path) -> list[str]:
    """The flags for an input in the usual layout."""
    return [
        f"--jsons={folder / 'jsons'}",
        f"--json-detail={folder / 'json_detail'}",
        f"--images-root={folder / 'raw'}",
    ]


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """The first true value of ``condition``; fails if it takes too long or the process ends."""
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended early: {process.communicate()}")
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.01)
    return value


def status(output: Path) -> dict[str, Any]:
    """status.json, empty while there is none."""
    try:
        return json.loads((output / "status.json").read_bytes())  # type: ignore[no-any-return]
    except FileNotFoundError:
        return {}


def captions(output: Path) -> dict[str, str]:
    """file → caption, from the .txt files."""
    found = (path for path in output.rglob("*.txt") if path.is_file())
    return {str(p.relative_to(output))[: -len(".txt")]: p.read_text("utf-8") for p in found}


def rows(output: Path) -> dict[str, dict[str, Any]]:
    """file → its last row in the manifest."""
    tables = (pq.read_table(path, schema=SCHEMA) for path in parts(output / "manifest.parquet"))
    return {row["file"]: row for table in tables for row in table.to_pylist()}


def as_older_version(folder: Path, *columns: str) -> None:
    """Take columns out of a manifest and its journal, as where the version that made them did not
    know them yet."""
    for part in parts(folder / "manifest.parquet"):
        pq.write_table(pq.read_table(part).drop_columns(list(columns)), part)
    journal = folder / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
    kept = [{name: line[name] for name in line if name not in columns} for line in lines]
    journal.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")


def make_input(folder: Path, count: int) -> list[str]:
    """An input of ``count`` distinct drawn images in documents of ten; returns their files."""
    files = [f"d{number // 10}/shape_{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        path = folder / "raw" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_shape(number).save(path)
    for name in ("jsons", "json_detail"):
        (folder / name).mkdir(exist_ok=True)
    for first in range(0, count, 10):
        chunk = files[first : first + 10]
        write_document(folder, f"design_{first // 10:03}", chunk, ["SvgElement"] * len(chunk))
    return files


def write_document(
    folder: Path, name: str, files: list[str], types: list[str], title: str = "Spring sale"
) -> None:
    """One document and its detail."""
    for side in ("jsons", "json_detail"):
        (folder / side).mkdir(parents=True, exist_ok=True)
    manifest = {"images": [{"file": file} for file in files], "width": 800, "height": 600}
    detail = {"images": [{} for _ in files], "types": types, "title": title}
    (folder / "jsons" / f"{name}.json").write_text(json.dumps(manifest))
    (folder / "json_detail" / f"{name}.json").write_text(json.dumps(detail))


def make_gated(folder: Path) -> list[str]:
    """One more item, which no fake engine finishes before `raw/gate` exists; returns its file."""
    draw_shape(999).save(folder / "raw" / "gated.png")
    write_document(folder, "z_gated", ["gated.png"], ["SvgElement"])
    return ["gated.png"]


def draw_shape(number: int) -> Image.Image:
    """A transparent image, different for each number."""
    colours = ("red", "blue", "green", "orange", "purple", "black", "gray")
    image = Image.new("RGBA", (168, 168 - 28 * (number % 3)), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    left, top, size = 10 + number % 5 * 16, 10 + number % 3 * 14, 40 + number % 4 * 10
    box = (left, top, left + size, top + size)
    shape = (draw.ellipse, draw.rectangle)[number % 2]
    shape(box, fill=colours[number % 7])
    draw.point((number % 168, 0), fill="red")
    return image
