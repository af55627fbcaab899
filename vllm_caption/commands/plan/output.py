"""What an output folder holds already and what its disk has room for; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

from vllm_caption.commands.plan.report import Disk
from vllm_caption.commands.tune.record import TUNING, read_tuning, tune_folder
from vllm_caption.commands.tune.settings import SEQS
from vllm_caption.config import RunConfig
from vllm_caption.errors import UsageError
from vllm_caption.formatting import date_and_time
from vllm_caption.monitoring.status import read_status
from vllm_caption.store.disk.access import first_denied
from vllm_caption.store.layout import state_folders
from vllm_caption.store.reader import FolderRows, num_rows, read_folder
from vllm_caption.store.rows import KnownItems

BLOCK_BYTES: Final = 4096
"""Disk space of the smallest file on common file systems; a caption is far smaller."""
ROW_BYTES: Final = 300
"""Of one row in a Parquet part, where there is no part to measure. Measured 188 (515 rows of a real
run on the crello_like corpus with the bundled model, zstd); captions of a large model compress
worse."""
JOURNAL_ROW_BYTES: Final = 1024
KERNEL_FOLDERS: Final = ("/proc", "/sys")
FEW_FILES: Final = 10
"""Status, recipes, journal, lock and the like."""


class Recorded(NamedTuple):
    """The manifest of an output folder. ``row_bytes``: of a row in its parts."""

    states: KnownItems
    row_bytes: float | None


class Rate(NamedTuple):
    """Captions per second of one engine, from its first caption to its last. ``at``: when it was
    measured."""

    images_per_s: float
    source: str
    at: str = ""


class Room(NamedTuple):
    """What a file system has left: ``num_bytes`` is None where it does not say, ``inodes`` also
    where it has no such limit."""

    num_bytes: int | None
    inodes: int | None


def read_recorded(root: Path) -> Recorded:
    """The state of every item that has a row; none where there is no output yet. Raises UsageError
    where no run could make the folder."""
    if not (found := _existing(root)).is_dir():
        raise UsageError("--output", root, f"{found} is not a folder; choose another folder")
    return read_folder(root, _read_recorded)


def _read_recorded(rows: FolderRows) -> Recorded:
    in_parts = sum(map(num_rows, rows.parts))
    num_bytes = sum(path.stat().st_size for path in rows.parts)
    return Recorded(rows.states(), num_bytes / in_parts if in_parts else None)


def last_rate(config: RunConfig) -> Rate | None:
    """That of the last run or pilot in the output folder or of one of its shards, or what `tune`
    has measured at the same --max-num-seqs, whichever is newer."""
    found = [*map(read_rate, state_folders(config.output)), _read_tuned(config)]
    return max(filter(None, found), key=attrgetter("at"), default=None)


def read_rate(root: Path) -> Rate | None:
    """The rate that the folder's status knows; None where it knows none."""
    status = read_status(root)
    if status is None or (speed := status.speed) is None:
        return None
    return Rate(
        speed.images_per_s / speed.num_engines, f"run of {date_and_time(speed.at)}", speed.at
    )


def _read_tuned(config: RunConfig) -> Rate | None:
    tuning = read_tuning(tune_folder(config.output))
    if tuning is None or tuning.flag != SEQS:
        return None
    for setting in tuning.settings:
        if setting.figures and setting.value == str(config.engine.max_num_seqs):
            source = f"{TUNING} of {date_and_time(tuning.started_at)}, --{SEQS} {setting.value}"
            return Rate(setting.figures.images_per_s, source, tuning.started_at)
    return None


def is_writable(folder: Path) -> bool:
    """Whether this user may create files in a folder; in those of the kernel, not even root
    may, although `access` says so."""
    mounted = filter(Path.is_mount, map(Path, KERNEL_FOLDERS))
    is_kernels = folder.stat().st_dev in {path.stat().st_dev for path in mounted}
    return os.access(folder, os.W_OK | os.X_OK) and not is_kernels


def room(path: Path) -> Room:
    """What an unprivileged process may still use of the file system that holds ``path``."""
    found = os.statvfs(path)
    inodes = found.f_favail if found.f_files else None
    is_known = found.f_blocks > 0 and found.f_frsize > 0  # some network drives answer with zeros
    return Room(found.f_bavail * found.f_frsize if is_known else None, inodes)


def disk_needs(
    config: RunConfig, recorded: Recorded, *, captions: int, rows: int, folders: Iterable[str]
) -> Disk:
    """``captions`` new .txt files in ``folders`` (relative, may exist) and ``rows`` more rows."""
    path = _existing(config.output)
    new_folders = _missing(config.output, folders)
    row_bytes = recorded.row_bytes or ROW_BYTES
    # A run that ends writes all rows once more before it removes the old parts.
    parquet_bytes = int((2 * rows + len(recorded.states)) * row_bytes) if rows else 0
    journal_bytes = min(rows, config.checkpoint_interval) * JOURNAL_ROW_BYTES
    manifest_bytes = parquet_bytes + journal_bytes
    caption_bytes = (captions + new_folders) * BLOCK_BYTES
    num_parts = -(-rows // config.checkpoint_interval) + 1
    inodes = captions + new_folders + num_parts + FEW_FILES + config.engine.data_parallel_size
    free = room(path)
    needed = caption_bytes + manifest_bytes
    has_bytes = free.num_bytes is None or needed <= free.num_bytes
    fits = has_bytes and (free.inodes is None or inodes <= free.inodes)
    return Disk(
        path=os.fspath(path),
        caption_bytes=caption_bytes,
        manifest_bytes=manifest_bytes,
        bytes_needed=needed,
        bytes_free=free.num_bytes,
        inodes_needed=inodes,
        inodes_free=free.inodes,
        fits=fits,
        writable=is_writable(path) and (path != config.output.absolute() or not first_denied(path)),
    )


def _missing(root: Path, folders: Iterable[str]) -> int:
    wanted: set[str] = set()
    for folder in folders:
        while folder and folder not in wanted:
            wanted.add(folder)
            folder = os.path.dirname(folder)  # noqa: PTH120 (a name, not yet a path)
    if not _exists(root):
        return len(wanted) + 3  # the output, its manifest and its logs
    return sum(not _exists(f"{root}/{folder}") for folder in wanted)


def _existing(root: Path) -> Path:
    """The output folder, or the nearest folder above it that is there."""
    output = root.absolute()
    return next(folder for folder in (output, *output.parents) if _exists(folder))


def _exists(path: Path | str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (a name too long is just not there)
