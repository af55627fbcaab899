"""The rows of an output folder, read without its lock.

A run may be writing at the same time. Rows move from the journal to a part, so the journal is read
first: a row can be seen twice, never missed. A part that a run compacts away meanwhile makes the
reading start again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from vllm_caption.store.checkpoint import read_journal
from vllm_caption.store.layout import state_folders

T = TypeVar("T")
_ATTEMPTS: Final = 5


def read_beside_run(read: Callable[[], T]) -> T:
    """What ``read`` returns once no part vanishes under it."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return read()
        except FileNotFoundError:
            continue  # compacted meanwhile
    return read()


def read_journals(root: Path, kind: type[T]) -> tuple[list[T], int]:
    """As `read_journal`, of the folder and its shards."""
    rows: list[T] = []
    torn = 0
    for folder in state_folders(root):
        found, broken = read_journal(folder / "journal.jsonl", kind)
        rows += found
        torn += broken
    return rows, torn
