"""What an output folder holds already, and what it has room for, without writing a byte there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from vllm_caption.commands.plan.report import Disk
from vllm_caption.config import RunConfig
from vllm_caption.store.layout import all_parts
from vllm_caption.store.parts import Known, read_known
from vllm_caption.store.reader import read_beside_run, read_journals

BLOCK_BYTES: Final = 4096
"""What the smallest file takes on the common file systems; a caption is far smaller."""
ROW_BYTES: Final = 300
"""Of one row in a Parquet part, where no part tells. Measured 188 (515 rows of a real run on the
crello_like corpus with the bundled model, zstd); captions of a large model compress worse."""
JOURNAL_ROW_BYTES: Final = 1024
FEW_FILES: Final = 10
"""status.json, recipes.json, journal, lock and their like."""


class Recorded(NamedTuple):
    """The manifest of an output folder. ``row_bytes``: of a row in its parts."""

    known: dict[str, Known]
    row_bytes: float | None


class Rate(NamedTuple):
    """Captions per second of one engine in the folder's last run."""

    images_per_s: float
    source: str


class Room(NamedTuple):
    """What a file system has left; ``inodes`` is None where it has no such limit."""

    num_bytes: int
    inodes: int | None


class _JournalRow(msgspec.Struct, frozen=True):
    file: str
    status: str
    recipe_id: str | None = None
    flags: tuple[str, ...] = ()
    error_kind: str | None = None


class _Engine(msgspec.Struct, frozen=True):
    captioned: int = 0


class _Status(msgspec.Struct, frozen=True):
    updated_at: str = ""
    images_per_s: float = 0.0
    engines: tuple[_Engine, ...] = ()


def read_recorded(root: Path) -> Recorded:
    """The last row of every item; nothing where there is no output yet."""
    return read_beside_run(lambda: _read_recorded(root))


def _read_recorded(root: Path) -> Recorded:
    journal, _ = read_journals(root, _JournalRow)
    known: dict[str, Known] = {}
    num_rows = num_bytes = 0
    for path in all_parts(root):
        num_bytes += path.stat().st_size
        for file, entry in read_known(path):
            known[file] = entry
            num_rows += 1
    for row in journal:
        known[row.file] = Known(row.status, row.recipe_id, ",".join(row.flags), row.error_kind)
    return Recorded(known, num_bytes / num_rows if num_rows else None)


def read_rate(root: Path) -> Rate | None:
    """The rate in status.json; None where there is none."""
    try:
        status = msgspec.json.decode((root / "status.json").read_bytes(), type=_Status)
    except (OSError, ValueError):
        return None
    busy = sum(engine.captioned > 0 for engine in status.engines)
    if not busy or status.images_per_s <= 0:
        return None
    return Rate(status.images_per_s / busy, f"status.json of {status.updated_at}")


def room(path: Path) -> Room:
    """What an unprivileged process may still use of the file system that holds ``path``."""
    found = os.statvfs(path)
    inodes = found.f_favail if found.f_files else None
    return Room(found.f_bavail * found.f_frsize, inodes)


def disk_needs(
    config: RunConfig, recorded: Recorded, *, captions: int, rows: int, folders: Iterable[str]
) -> Disk:
    """``captions`` new .txt files in ``folders`` (relative, may exist) and ``rows`` more rows."""
    output = config.output.absolute()
    path = next(folder for folder in (output, *output.parents) if _exists(folder))
    new_folders = _missing(config.output, folders)
    row_bytes = recorded.row_bytes or ROW_BYTES
    # At its end a run writes all rows anew before it removes the old parts.
    parquet_bytes = int((2 * rows + len(recorded.known)) * row_bytes) if rows else 0
    journal_bytes = min(rows, config.checkpoint_interval) * JOURNAL_ROW_BYTES
    manifest_bytes = parquet_bytes + journal_bytes
    caption_bytes = (captions + new_folders) * BLOCK_BYTES
    num_parts = -(-rows // config.checkpoint_interval) + 1
    inodes = captions + new_folders + num_parts + FEW_FILES + config.engine.data_parallel_size
    free = room(path)
    needed = caption_bytes + manifest_bytes
    fits = needed <= free.num_bytes and (free.inodes is None or inodes <= free.inodes)
    return Disk(
        path=os.fspath(path),
        caption_bytes=caption_bytes,
        manifest_bytes=manifest_bytes,
        bytes_needed=needed,
        bytes_free=free.num_bytes,
        inodes_needed=inodes,
        inodes_free=free.inodes,
        fits=fits,
    )


def _missing(root: Path, folders: Iterable[str]) -> int:
    wanted: set[str] = set()
    for folder in folders:
        while folder and folder not in wanted:
            wanted.add(folder)
            folder = os.path.dirname(folder)  # noqa: PTH120 (a name, not yet a path)
    if not _exists(root):
        return len(wanted) + 3  # the output, its manifest.parquet and its logs
    return sum(not _exists(f"{root}/{folder}") for folder in wanted)


def _exists(path: Path | str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (a name too long is just not there)
