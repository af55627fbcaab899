"""The contents of output folders, read beside a run: rows, skipped documents, recipes, status and
samples.

Invariants: nothing is written and no lock is taken; of several rows of an item the last one counts;
rows that cannot be read stop the report with a sentence, so a page never shows only some of them.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from vllm_caption.commands.run_line import check_holds_output, check_is_folder
from vllm_caption.errors import CaptionJobError, RunStopped, UsageError
from vllm_caption.items import SkippedDocument
from vllm_caption.monitoring.samples import FAULTS, read_series
from vllm_caption.monitoring.status import RunStatus, look
from vllm_caption.store.documents import read_documents
from vllm_caption.store.layout import state_folders
from vllm_caption.store.reader import read_folder
from vllm_caption.store.recipe import Recipe, read_recipes
from vllm_caption.store.rows import SCHEMA

UNUSED: Final = ("caption_path", "twin_key", "finish_reason", "model", "prompt_name")
COLUMNS: Final = [name for name in SCHEMA.names if name not in UNUSED]


@dataclass(frozen=True, slots=True)
class Records:
    """One output folder. ``state``: as `monitoring.status` sees it, or unknown without
    a status.json; ``series``: samples over time, None where there are none; ``label``: short and
    unique."""

    label: str
    root: Path
    rows: pa.Table
    left_out: list[SkippedDocument]
    recipes: dict[str, Recipe]
    state: str
    status: RunStatus | None
    series: pa.Table | None


def read_all(roots: list[Path]) -> list[Records]:
    """The folders, in the order given. Raises UsageError and RunStopped."""
    labels = _labels(roots)
    return [_read(root, label) for root, label in zip(roots, labels, strict=True)]


def _labels(roots: list[Path]) -> list[str]:
    names = [root.absolute().name or "/" for root in roots]
    count = Counter(names)
    return [
        name if count[name] == 1 else str(root) for name, root in zip(names, roots, strict=True)
    ]


def _read(root: Path, label: str) -> Records:
    check_is_folder(root)
    rows = read_folder(root, lambda folder: folder.last(COLUMNS))
    if not len(rows):
        check_holds_output("--output", root)
        remedy = "holds no rows yet; run the job first, or wait for its first captions"
        raise UsageError("--output", root, remedy)
    state, status = _state(root)
    return Records(
        label=label,
        root=root,
        rows=rows,
        left_out=read_documents(root),
        recipes=_read_recipes(root),
        state=state,
        status=status,
        series=_read_series(root),
    )


def _state(root: Path) -> tuple[str, RunStatus | None]:
    try:
        view = look(root)
    except CaptionJobError:
        return "unknown", None
    return view.state, view.status


def _read_recipes(root: Path) -> dict[str, Recipe]:
    """Without those that are missing or damaged: the page then shows only their ids."""
    recipes: dict[str, Recipe] = {}
    for folder in state_folders(root):
        with suppress(OSError, RunStopped):
            recipes |= read_recipes(folder)
    return recipes


def _read_series(root: Path) -> pa.Table | None:
    """None where it is missing or damaged: its charts are then left out, or made from the rows."""
    try:
        table = read_series(root)
    except FAULTS:
        return None
    return table if table is not None and len(table) else None
