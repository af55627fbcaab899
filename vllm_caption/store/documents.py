"""documents.parquet: which documents the last run left out, and why."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.errors import RunStopped
from vllm_caption.items import SkippedDocument
from vllm_caption.store.atomic import write_file
from vllm_caption.store.layout import DOCUMENTS

_COLUMNS: Final = SkippedDocument.__struct_fields__
_SCHEMA: Final = pa.schema([(name, pa.string()) for name in _COLUMNS])
_FAULTS: Final = (pa.ArrowException, OSError, ValueError, KeyError)


def write_documents(root: Path, skipped: Sequence[SkippedDocument]) -> None:
    """Replace the file. It is not synced, since the next run replaces it."""
    columns = [pa.array([getattr(s, name) for s in skipped], pa.string()) for name in _COLUMNS]
    table = pa.table(columns, schema=_SCHEMA)

    def fill(file: BinaryIO) -> None:
        pq.write_table(table, file)

    write_file(root / DOCUMENTS, fill)


def read_documents(root: Path) -> list[SkippedDocument]:
    """The content of the file; empty if there is none. Raises RunStopped if it is damaged, and
    PermissionError."""
    path = root / DOCUMENTS
    if not path.exists():
        return []
    try:
        table = pq.read_table(path.absolute(), columns=list(_COLUMNS))
        columns = [table[name].to_pylist() for name in _COLUMNS]
    except PermissionError as error:  # pyarrow's, which has no file name
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path)) from error
    except _FAULTS as error:
        remedy = "remove it: the next run writes it again"
        raise RunStopped(f"{path} is damaged ({error}); {remedy}") from error
    return [SkippedDocument(*values) for values in zip(*columns, strict=True)]
