"""Where rows lie in an output folder: parts by their number, and the folders of its shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from vllm_caption.shards import FOLDER, Shard

_SHARD: Final = re.compile(r"(\d+)-of-(\d+)")


def parts(folder: Path) -> list[Path]:
    """The files of one manifest, oldest first."""
    return sorted(folder.glob("part-*.parquet"), key=part_number)


def part_number(path: Path) -> int:
    """The number in a part's name, 0 where there is none."""
    digits = path.stem.removeprefix("part-")
    return int(digits) if digits.isdecimal() else 0


def shard_folders(root: Path) -> dict[Shard, Path]:
    """The shards of an output folder, those last whose rows are newest."""
    found = {}
    for path in (root / FOLDER).glob("*-of-*"):
        if name := _SHARD.fullmatch(path.name):
            found[Shard(int(name[1]), int(name[2]))] = path
    return dict(sorted(found.items(), key=lambda entry: (_newest(entry[1]), entry[0])))


def state_folders(root: Path) -> list[Path]:
    """Where the rows of an output folder lie, older ones first: its own, then those of shards that
    are not merged yet."""
    return [root, *shard_folders(root).values()]


def all_parts(root: Path) -> list[Path]:
    """Every part of an output folder's manifests, oldest first."""
    return [path for folder in state_folders(root) for path in parts(folder / "manifest.parquet")]


def _newest(folder: Path) -> float:
    return max((path.stat().st_mtime for path in parts(folder / "manifest.parquet")), default=0.0)
