"""What lies where a caption should be, and every .txt and temporary file below the output folder.

Invariant: nothing here waits (a FIFO is no caption) or follows a link to another folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from vllm_caption.store.caption_files import SUFFIX, TEMPORARY, TEMPORARY_OF_RUN

MAX_BYTES: Final = 64 * 2**20
"""More is no caption."""
_PARTS: Final = "manifest.parquet"

State = Literal["there", "empty", "gone", "unreadable"]


class Found(NamedTuple):
    """``text`` where there is a caption, ``reason`` where it is gone or unreadable."""

    state: State
    text: str = ""
    reason: str = ""
    written_s: float = 0.0


def look(path: str) -> Found:
    """The caption at a path, as `CaptionFiles.read` would give it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return Found("gone")
    except OSError as error:
        kind: State = "unreadable" if isinstance(error, PermissionError) else "gone"
        return Found(kind, reason=error.strerror or str(error))
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            return Found("gone", reason="a folder is in its place")
        if not stat.S_ISREG(facts.st_mode):
            return Found("unreadable", reason="it is not a regular file")
        if facts.st_size > MAX_BYTES:
            return Found("unreadable", reason=f"it has {facts.st_size:,} bytes; no caption does")
        with open(descriptor, encoding="utf-8", errors="replace", closefd=False) as file:
            text = file.read()
    except OSError as error:
        return Found("unreadable", reason=error.strerror or str(error))
    finally:
        os.close(descriptor)
    return Found("there" if text.strip() else "empty", text, written_s=facts.st_mtime)


def walk(root: Path) -> Iterator[tuple[str, bool]]:
    """(path below the root, whether it is temporary) of every .txt and temporary file."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = os.scandir(f"{root}/{folder}")
        except OSError:
            continue  # gone, or not ours to read: its .txt files show as unreadable
        with entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    if name != _PARTS:
                        folders.append(f"{name}/")
                elif entry.name.endswith(SUFFIX):
                    yield name, False
                elif TEMPORARY.fullmatch(entry.name) or TEMPORARY_OF_RUN.fullmatch(name):
                    yield name, True
    for path in (root / _PARTS).glob(".*.tmp"):
        yield f"{_PARTS}/{path.name}", True
