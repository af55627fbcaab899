"""The rows of an output folder, read without its lock.

A run may be writing at the same time. Rows move from the journal to a part, so the journal is read
first: a row can be seen twice, never missed. A part that a run compacts away meanwhile makes the
reading start again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from vllm_caption.folders import state_folders

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


def read_journal(root: Path, kind: type[T]) -> tuple[list[T], int]:
    """Rows that no part holds yet, of the folder and its shards, as ``kind``; and how many lines
    are none (of a running run: one being written)."""
    decoder = msgspec.json.Decoder(kind)
    rows, torn = [], 0
    for folder in state_folders(root):
        for line in _lines(folder / "journal.jsonl"):
            try:
                rows.append(decoder.decode(line))
            except msgspec.DecodeError:
                torn += 1
    return rows, torn


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
