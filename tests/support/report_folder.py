"""Output folders of any size for tests of the report, made without an engine."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.config import ImageConfig, SamplingConfig
from vllm_caption.monitoring.samples import SCHEMA as SERIES_SCHEMA
from vllm_caption.store.recipe import Recipe
from vllm_caption.store.rows import SCHEMA, Row

START = datetime(2026, 11, 24, 4, 0, tzinfo=UTC)
START_US = int(START.timestamp()) * 1_000_000
COLOURS = ("red", "blue", "green", "orange", "purple", "black", "gray", "white")
WORDS = [a + b for a in COLOURS for b in ("circle", "square", "star", "line", "frame", "dot")]
WORDS += [f"{a}{b}" for a in ("soft", "wide", "thin", "flat", "bold", "curved") for b in WORDS]
TYPES = ("SvgElement", "SvgElement", "SvgElement", "ColoredBackground", "SvgMaskElement")
RECIPE = Recipe(
    model="demo",
    prompt_name="shape-brief",
    prompt="Describe this shape in at most 30 words.",
    sampling=msgspec.to_builtins(SamplingConfig()),
    image=msgspec.to_builtins(ImageConfig()),
    engine={"dtype": "float32"},
)


def row(file: str = "a.png", **columns: Any) -> Row:
    """A captioned row; ``error_kind`` makes it a failed one."""
    failed = "error_kind" in columns
    made = {} if failed else {"caption": f"A shape of {file}.", "output_tokens": 7}
    common = {
        "document": "design_000",
        "element_index": 0,
        "element_type": "SvgElement",
        "status": "failed" if failed else "captioned",
        "finished_at": START_US,
        "run_id": "run-1",
        "image_path": f"/nowhere/{file}",
        "attempts": 1,
        "recipe_id": RECIPE.id,
        "engine": 0,
        "generate_s": 0.5,
        "prepare_s": 0.01,
        "render_queue_s": 0.02,
        "render_s": 0.005,
        "queue_s": 0.2,
    }
    return Row(file=file, **(common | made | columns))


def many_rows(count: int) -> list[Row]:
    """Rows as of a design library: one in a hundred failed, one in fifty flagged."""
    return [_one_of_many(number) for number in range(count)]


def _one_of_many(number: int) -> Row:
    document = number // 7
    common: dict[str, Any] = {
        "document": f"{document:08x}c0ffee",
        "element_index": number % 7,
        "element_type": TYPES[number % 5],
        "finished_at": START_US + number * 10_000,
        "engine": number % 8,
        "image_width": 200 + number % 800,
        "image_height": 150 + number % 700,
        "backdrop": ("white", "white", "black", "none")[number % 4],
        "generate_s": 0.3 + number % 97 / 100,
    }
    chance = Random(number)
    file = f"{document % 256:02x}/{chance.getrandbits(96):024x}.png"
    if number % 100 == 7:
        kind = ("decode_error", "engine_error", "missing_file")[number // 100 % 3]
        return row(file, error_kind=kind, error=f"what went wrong with number {number}", **common)
    caption = f"A {COLOURS[number % 8]} shape: {' '.join(chance.choices(WORDS, k=16))}."
    flags = {11: ("too_long",), 61: ("cut_off",)}.get(number % 100, ())
    return row(file, caption=caption, flags=flags, output_tokens=20 + number % 40, **common)


def write_folder(
    root: Path, rows: list[Row], *, journal: list[Row] | None = None, recipe: Recipe = RECIPE
) -> Path:
    """An output folder with one part of these rows, and a journal."""
    (root / "manifest.parquet").mkdir(parents=True)
    if rows:
        table = pa.Table.from_pylist([msgspec.structs.asdict(r) for r in rows], SCHEMA)
        pq.write_table(table, root / "manifest.parquet" / "part-00000001.parquet")
    lines = [msgspec.json.encode(r) + b"\n" for r in journal or []]
    (root / "journal.jsonl").write_bytes(b"".join(lines))
    (root / "recipes.json").write_bytes(msgspec.json.encode({recipe.id: recipe}))
    return root


def write_series(root: Path, count: int, num_engines: int = 2, runs: int = 2) -> None:
    """Write a monitor.parquet as a run on GPUs would."""
    samples = []
    for number in range(count):
        engines = [
            {
                "engine": engine,
                "state": "up",
                "captioned": number,
                "output_tokens": number * 9,
                "in_flight": 16,
                "restarts": 0,
                "rss_mib": 4000.0 + 100 * engine,
                "gpu_percent": 80.0 + engine,
                "gpu_memory_percent": 90.0,
                "gpu_temperature_c": 60.0 + number % 7,
            }
            for engine in range(num_engines)
        ]
        run = number * runs // count
        samples.append(
            {
                "at": START + timedelta(seconds=10 * number, days=run),
                "run_id": f"run-{run}",
                "images_per_s": 50.0 + number % 5,
                "tokens_per_s": 450.0 + number % 50,
                "captioned": number * 500,
                "failed": 3,
                "in_flight": 32,
                "cpu_percent": 40.0,
                "ram_percent": 30.0,
                "driver_rss_mib": 200.0,
                "disk_free_gib": 80.0,
                "engines": engines,
            }
        )
    pq.write_table(pa.Table.from_pylist(samples, SERIES_SCHEMA), root / "monitor.parquet")


def chromium() -> str | None:
    """The browser, if there is one."""
    places = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
    return next((place for place in places if os.access(place, os.X_OK)), None)
