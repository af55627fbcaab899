"""The rows of an output folder, as little of each as a comparison needs.

Rows are read in batches; of a caption only a hash is kept. A part that cannot be read whole is
noted as damaged and passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from vllm_caption.store.reader import FolderRows, UnreadablePart, read_folder
from vllm_caption.store.rows import hash_of

COLUMNS: Final = ("file", "status", "caption", "error_kind", "error")


class Failure(NamedTuple):
    """Why an item's last row says failed."""

    kind: str
    reason: str


@dataclass(slots=True)
class Records:
    """The last row of every item: the hash of its caption, or its failure. ``nameless``: those
    with a caption that found the name of their .txt taken.

    Whoever compares takes rows out, so that what is left at the end has no item.
    """

    damaged: dict[Path, str]
    journal_rows: int
    torn_journal_lines: int
    captioned: dict[str, int] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    nameless: set[str] = field(default_factory=set)
    _failures: dict[Failure, Failure] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.captioned) + len(self.failed)

    def add(
        self, file: str, status: str, caption: str | None, kind: str | None, reason: str | None
    ) -> None:
        """A row that is newer than those before."""
        self.nameless.discard(file)
        if status == "captioned":
            if kind == "output_conflict":
                self.nameless.add(file)
            self.failed.pop(file, None)
            self.captioned[file] = hash_of(caption or "")
        else:
            self.captioned.pop(file, None)
            failure = Failure(kind or "unknown", reason or "no reason is recorded")
            self.failed[file] = self._failures.setdefault(failure, failure)


def read_records(root: Path) -> Records:
    """Every row; a run may be writing at the same time. Raises PermissionError where the user may
    not read some of them."""
    damaged: dict[Path, str] = {}
    while True:
        try:
            return read_folder(root, partial(_collect, damaged), without=damaged)
        except UnreadablePart as error:
            damaged[error.path] = error.reason  # and again, without any row of that part


def _collect(damaged: dict[Path, str], rows: FolderRows) -> Records:
    records = Records(damaged, len(rows.journal), rows.num_torn)
    for values in rows.tuples(COLUMNS):
        records.add(*values)
    return records


def read_captions(root: Path) -> Iterator[tuple[str, str]]:
    """(file, caption) of every captioned row, oldest first."""
    for file, status, caption in FolderRows(root).tuples(("file", "status", "caption")):
        if status == "captioned" and caption is not None:
            yield file, caption
