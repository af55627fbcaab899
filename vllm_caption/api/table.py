"""The manifest of an output folder as one table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vllm_caption.api.arguments import as_path
from vllm_caption.config import check_folder
from vllm_caption.errors import RunStopped, of_system

if TYPE_CHECKING:
    import pyarrow as pa


def read(output: str | os.PathLike[str]) -> pa.Table:
    """The last row of every item in an output folder, in the order of the documents.

    One row per item that was captioned or has failed, with the columns of `store.rows.Row`:
    `file`, `status` (`captioned` or `failed`), `caption` (null if it failed), `error_kind`, ….
    Sizes are in pixels, times in seconds, and `finished_at` is UTC. Even during a run, the table
    has every row that is finished at this moment, including those of shards that are not merged
    yet; it is empty if nothing has finished.

    A million rows take about 0.6 GB of memory, twice that while they are read. `pyarrow.dataset`
    or DuckDB on `OUTPUT/manifest.parquet` reads parts of a larger manifest.

    Raises:
        UsageError: there is no such folder.
        RunStopped: a part of the manifest is damaged or cannot be read.
    """
    from vllm_caption.store.reader import FolderRows, read_folder
    from vllm_caption.store.rows import SCHEMA

    root = as_path("output", output)
    check_folder("output", root, "the folder that a run wrote")
    try:
        return read_folder(root, lambda folder: FolderRows.last(folder, SCHEMA.names))
    except RunStopped:
        raise
    except OSError as error:
        raise of_system(error) from error
