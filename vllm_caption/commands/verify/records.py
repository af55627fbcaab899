"""The rows of an output folder, as little of each as a comparison needs.

Parts are read in batches; of a caption only a hash is kept. A part that cannot be read whole is set
down as damaged, and the others count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.store.layout import all_parts
from vllm_caption.store.parts import SCHEMA
from vllm_caption.store.reader import read_beside_run, read_journals

COLUMNS: Final = ("file", "status", "caption", "error_kind", "error")
_BROKEN: Final = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
"""What pyarrow raises over damaged bytes, or over a file with other columns."""


class Failure(NamedTuple):
    """Why an item's last row says failed."""

    kind: str
    reason: str


class _Row(msgspec.Struct, frozen=True, gc=False):
    file: str
    status: str
    caption: str | None = None
    error_kind: str | None = None
    error: str | None = None


@dataclass(slots=True)
class Records:
    """The last row of every item: the hash of its caption, or its failure.

    Whoever compares takes rows out, so that what is left at the end has no item.
    """

    captioned: dict[str, int] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)
    journal_rows: int = 0
    torn_journal_lines: int = 0
    _failures: dict[Failure, Failure] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.captioned) + len(self.failed)

    def add(self, row: _Row) -> None:
        """A row that is newer than those before."""
        if row.status == "captioned":
            self.failed.pop(row.file, None)
            self.captioned[row.file] = hash_of(row.caption or "")
        else:
            self.captioned.pop(row.file, None)
            failure = Failure(row.error_kind or "unknown", row.error or "no reason is recorded")
            self.failed[row.file] = self._failures.setdefault(failure, failure)


def hash_of(caption: str) -> int:
    """64 bits, keyed per process, of a caption as a text file gives it back."""
    if "\r" in caption:
        caption = caption.replace("\r\n", "\n").replace("\r", "\n")
    return hash(caption)


def read_records(root: Path) -> Records:
    """The journal and every part; may stand beside a run. Raises PermissionError."""
    damaged: dict[Path, str] = {}
    while (records := read_beside_run(lambda: _read_records(root, damaged))) is None:
        pass  # again, without any row of the part that broke off
    return records


def _read_records(root: Path, damaged: dict[Path, str]) -> Records | None:
    """None when one more part turns out to be damaged, which is then added to those."""
    records = Records(damaged=damaged)
    journal, records.torn_journal_lines = read_journals(root, _Row)
    records.journal_rows = len(journal)
    for path in all_parts(root):
        if path in damaged:
            continue
        try:
            for row in _read_part(path):
                records.add(row)
        except (FileNotFoundError, PermissionError):
            raise
        except _BROKEN as error:
            damaged[path] = str(error).partition("\n")[0] or type(error).__name__
            return None
    for row in journal:
        records.add(row)
    return records


def _read_part(path: Path) -> Iterator[_Row]:
    with pq.ParquetFile(path) as part:
        left = part.metadata.num_rows
        schema = pa.schema([SCHEMA.field(n) for n in part.schema_arrow.names if n in SCHEMA.names])
        for batch in part.iter_batches():  # every column, so that damage anywhere is found
            batch.validate(full=True)
            left -= len(batch)
            batch = batch.select(schema.names).cast(schema)  # as every other reader will
            columns = [batch.column(name).to_pylist() for name in COLUMNS]
            for file, *values in zip(*columns, strict=True):
                if not isinstance(file, str):
                    raise TypeError("it has a row that names no file")
                yield _Row(file, *values)
    if left:  # where one column breaks off, all do, and nothing is raised
        raise ValueError(f"{left} of its rows cannot be read")


def read_captions(root: Path) -> Iterator[tuple[str, str]]:
    """(file, caption) of every captioned row that a part holds, oldest first."""
    for path in all_parts(root):
        for row in _read_part(path):
            if row.status == "captioned" and row.caption is not None:
                yield row.file, row.caption
