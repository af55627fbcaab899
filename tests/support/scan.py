"""One pass over an input without engines: what a rerun leaves to do."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm_caption.captions.prompt import load_prompt
from vllm_caption.config import (
    EngineConfig,
    ImageConfig,
    InputConfig,
    ResumeConfig,
    SamplingConfig,
)
from vllm_caption.driver.resume import Batch, Pending, Wanted
from vllm_caption.driver.row_maker import RowMaker
from vllm_caption.store.caption_files import CaptionFiles
from vllm_caption.store.output import Output
from vllm_caption.store.recipe import make_recipe
from vllm_caption.store.rows import Row, hash_of

RECIPE = make_recipe(EngineConfig(), load_prompt("shape-brief"), SamplingConfig(), ImageConfig())


def row_of(file: str, **columns: Any) -> Row:
    """A captioned row of another recipe than the run's, unless ``columns`` say otherwise."""
    common = {"document": "d", "element_index": 0, "element_type": "SvgElement"}
    common |= {"status": "captioned", "recipe_id": "old recipe", "run_id": "earlier"}
    common |= {"finished_at": time.time_ns() // 1000}
    if columns.get("status", "captioned") == "captioned":
        common |= {"caption": f"caption of {file}", "caption_path": f"{file}.txt"}
    return Row(file=file, **(common | columns))  # type: ignore[arg-type]


def leave(folder: Path, *rows: Row) -> None:
    """Write what an earlier run leaves in ``folder/out``: each row with its .txt."""
    output = Output(folder / "out", 1000)
    for row in rows:
        if row.caption is None:
            output.save_row(row)
        else:
            present = output.files.read(row.file)
            output.save_caption(row, None if present is None else hash_of(present))
    output.close(complete=False)


def txt_of(folder: Path, file: str) -> Path:
    """The caption of an item in ``folder/out``."""
    return folder / "out" / f"{file}.txt"


def scan(
    folder: Path,
    rows: Iterable[Row] = (),
    resume: ResumeConfig | None = None,
) -> tuple[Batch, Pending]:
    """Everything that one pass over an input comes to, in one batch, after ``rows`` were left."""
    leave(folder, *rows)
    inputs = InputConfig(folder / "jsons", folder / "json_detail", folder / "raw")
    output = Output(folder / "out", 1000)
    reading = Pending(
        inputs,
        ImageConfig(),
        Wanted(resume or ResumeConfig(), frozenset({RECIPE.id})),
        output.item_states(),
        CaptionFiles(folder / "out"),
        RowMaker("run", str(folder / "raw"), RECIPE),
        output.captions_of,
    )
    whole = Batch()
    for batch in reading.batches():
        whole.pending += batch.pending
        whole.rows += batch.rows
        whole.refused += batch.refused
        whole.replaced |= batch.replaced
        whole.restored += batch.restored
        whole.failures_kept += batch.failures_kept
        whole.kept.update(batch.kept)
        whole.num_spared += batch.num_spared
        whole.num_gone += batch.num_gone
    output.close(complete=False)
    return whole, reading
