"""The manifest's Parquet parts: their columns, and how they are read.

Parts are ordered by their number; of several rows of one item the last one counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from vllm_caption.errors import RunStopped

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("document", pa.string()),
        ("element_index", pa.int32()),
        ("element_type", pa.string()),
        ("image_path", pa.string()),
        ("caption_path", pa.string()),
        ("status", pa.string()),
        ("caption", pa.string()),
        ("finish_reason", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("error_kind", pa.string()),
        ("error", pa.string()),
        ("attempts", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("backdrop", pa.string()),
        ("image_sha256", pa.string()),
        ("same_as", pa.string()),
        ("twin_key", pa.string()),
        ("recipe_id", pa.string()),
        ("model", pa.string()),
        ("prompt_name", pa.string()),
        ("engine", pa.int32()),
        ("queue_s", pa.float32()),
        ("prepare_s", pa.float32()),
        ("generate_s", pa.float32()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("run_id", pa.string()),
    ]
)


ROW_GROUP = 8192
"""Rows that are held at a time when parts are merged."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One finished item. Names as in SCHEMA; ``finished_at`` in microseconds since 1970, UTC."""

    file: str
    document: str
    element_index: int
    element_type: str
    status: str
    finished_at: int
    run_id: str
    image_path: str | None = None
    caption_path: str | None = None
    caption: str | None = None
    finish_reason: str | None = None
    flags: tuple[str, ...] = ()
    error_kind: str | None = None
    error: str | None = None
    attempts: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    image_width: int | None = None
    image_height: int | None = None
    backdrop: str | None = None
    image_sha256: str | None = None
    same_as: str | None = None
    twin_key: str | None = None
    recipe_id: str | None = None
    model: str | None = None
    prompt_name: str | None = None
    engine: int | None = None
    queue_s: float | None = None
    prepare_s: float | None = None
    generate_s: float | None = None

    def of_unknown_making(self, caption: str) -> Row:
        """The same item with a caption whose making nothing records."""
        return msgspec.structs.replace(
            self,
            caption=caption,
            flags=(),
            same_as=None,
            twin_key=None,
            recipe_id=None,
            model=None,
            prompt_name=None,
        )


class Known(NamedTuple):
    """What a rerun needs to know of an item's last row; ``flags`` with commas between them,
    ``read``: the item was met in this run's input."""

    status: str
    recipe_id: str | None
    flags: str
    error_kind: str | None
    read: bool = False


def read_part(path: Path, columns: list[str] | None = None) -> pa.Table:
    """One part of the dataset. Raises RunStopped where it is damaged, FileNotFoundError where it
    was compacted away."""
    try:
        return pq.read_table(path, columns=columns, schema=SCHEMA)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:  # damaged pages are OSErrors
        raise damaged(path, error) from error


def num_rows(path: Path) -> int:
    """Rows of one part, from its footer. Raises as `read_part`."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> RunStopped:
    """What a part that cannot be read comes to."""
    if isinstance(error, PermissionError):
        return RunStopped(f"{path} may not be read by this user; it is not damaged")
    remedy = "`verify --repair` moves it aside and rebuilds its rows from the .txt files"
    return RunStopped(f"{path} is damaged ({error}); {remedy}")


def last_rows(files: pa.ChunkedArray) -> np.ndarray:
    """Which rows are the last of their file: booleans, as many as ``files``, oldest first."""
    numbered = pa.table({"file": files, "row": np.arange(len(files))})
    last = numbered.group_by("file").aggregate([("row", "max")])["row_max"]
    kept = np.zeros(len(files), dtype=bool)
    kept[last.to_numpy()] = True
    return kept


def merged(paths: list[Path]) -> Iterator[pa.Table]:
    """The last row of every item of several parts, a few thousand rows at a time."""
    names = pa.concat_tables(read_part(path, ["file"]) for path in paths)["file"]
    kept, begin = last_rows(names), 0
    rows = ds.dataset([os.fspath(path) for path in paths], schema=SCHEMA, format="parquet")
    waiting: list[pa.RecordBatch] = []
    for batch in rows.to_batches(batch_size=ROW_GROUP, batch_readahead=2, fragment_readahead=2):
        waiting.append(batch.filter(kept[begin : begin + len(batch)]))
        begin += len(batch)
        if sum(map(len, waiting)) >= ROW_GROUP:
            yield pa.Table.from_batches(waiting, SCHEMA)
            waiting = []
    yield pa.Table.from_batches(waiting, SCHEMA)


def merged_rows(paths: list[Path]) -> Iterator[Row]:
    """The last row of every item of several parts, one by one."""
    for table in merged(paths) if paths else ():
        place = table.schema.get_field_index("finished_at")
        micros = table["finished_at"].cast(pa.int64())
        for values in table.set_column(place, "finished_at", micros).to_pylist():
            yield msgspec.convert(values | {"flags": values["flags"] or ()}, Row)


def read_known(path: Path) -> Iterator[tuple[str, Known]]:
    """File and what a rerun needs to know, for each row of one part."""
    table = read_part(path, ["file", "status", "recipe_id", "flags", "error_kind"])
    flags = pc.fill_null(pc.binary_join(table["flags"], ","), "")
    columns = (table["file"], table["status"], table["recipe_id"], flags, table["error_kind"])
    try:
        lists = [column.to_pylist() for column in columns]
    except UnicodeDecodeError as error:
        raise damaged(path, error) from error
    shared: dict[Known, Known] = {}  # a million rows, a handful of distinct values
    for file, *rest in zip(*lists, strict=True):
        entry = Known(*rest)
        yield file, shared.setdefault(entry, entry)
