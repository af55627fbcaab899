"""One pass over an input, without engines: what a rerun leaves to them."""

from __future__ import annotations

from pathlib import Path

from vllm_caption.captions.prompt import load_prompt
from vllm_caption.config import (
    EngineConfig,
    ImageConfig,
    InputConfig,
    Redo,
    ResumeConfig,
    SamplingConfig,
)
from vllm_caption.driver.resume import Batch, Pending
from vllm_caption.driver.row_maker import RowMaker
from vllm_caption.store.caption_files import CaptionFiles
from vllm_caption.store.recipe import make_recipe
from vllm_caption.store.rows import ItemState

RECIPE = make_recipe(EngineConfig(), load_prompt("shape-brief"), SamplingConfig(), ImageConfig())


def scan(
    folder: Path,
    known: dict[str, ItemState] | None = None,
    redo: Redo | None = None,
    redo_kinds: tuple[str, ...] = (),
    resume: ResumeConfig | None = None,
) -> tuple[Batch, Pending]:
    """Everything that one pass over an input comes to, in one batch."""
    inputs = InputConfig(folder / "jsons", folder / "json_detail", folder / "raw")
    reading = Pending(
        inputs,
        ImageConfig(),
        resume or ResumeConfig(redo, redo_kinds),
        frozenset({RECIPE.id}),
        known or {},
        CaptionFiles(folder / "out"),
        RowMaker("run", str(folder / "raw"), RECIPE),
    )
    whole = Batch()
    for batch in reading.batches():
        whole.pending += batch.pending
        whole.rows += batch.rows
        whole.failures_kept += batch.failures_kept
        whole.num_done += batch.num_done
        whole.num_stale += batch.num_stale
    return whole, reading
