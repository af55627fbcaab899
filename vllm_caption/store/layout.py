"""Every name in an output folder: what each file and folder is, and which names are reserved.

Invariant: no other module spells out one of these names. A shard's folder is laid out like the
output folder, except for the captions, which are where a run without shards would write them.
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from vllm_caption.config import CaptionName, Shard

CAPTION_SUFFIX: Final = ".txt"
MANIFEST: Final = "manifest.parquet"
"""The folder of the manifest's parts."""
DAMAGED_PARTS: Final = "manifest.damaged"
JOURNAL: Final = "journal.jsonl"
DOCUMENTS: Final = "documents.parquet"
NAMING: Final = "naming.json"
"""How the captions are named."""
RECIPES: Final = "recipes.json"
DAMAGED_RECIPES: Final = "recipes.json.damaged"
STATUS: Final = "status.json"
REDO: Final = "redo.json"
INPUT: Final = "input.json"
"""What the last run captioned."""
SAMPLES: Final = "monitor.parquet"
REPORT: Final = "report.html"
COMPARISON: Final = "compare.html"
REWRITING: Final = ".rewriting.json"
"""Rows of captions that are being written."""
LOCK: Final = ".run.lock"
OWNER: Final = ".run.owner.json"
PROBE: Final = ".probe-é.tmp"
"""Shows which names the file system treats as equal; exists only for an instant."""
LOGS: Final = "logs"
PREFLIGHT_LOG: Final = "preflight.log"
SHARDS: Final = "shards"
_ROW_TIME: Final = "finished_at"

_REPLACED: Final = (DOCUMENTS, RECIPES, STATUS, REDO, INPUT, REWRITING, SAMPLES)
"""Files that a run replaces as a whole."""
_OTHERS: Final = (
    *(MANIFEST, DAMAGED_PARTS, JOURNAL, DAMAGED_RECIPES, NAMING, REPORT, COMPARISON),
    *(LOCK, OWNER, PROBE),
)


def temporary_name(name: str) -> str:
    """The name of a file while it is being written."""
    return f".{name}.tmp"


def numbered_temporary_name(name: str, number: int) -> str:
    """The same for a file that several processes may write at once, each with a different
    number."""
    return temporary_name(f"{name}.{number}")


_PATTERNS: Final = (
    *map(re.escape, (*_REPLACED, *map(temporary_name, _REPLACED), *_OTHERS)),
    rf"{LOGS}/[^/]*\.log",
    rf"{SHARDS}/\d+-of-\d+",
)
_RESERVED: Final = re.compile(f"(?:{'|'.join(_PATTERNS)})/")
TEMPORARY_FILES: Final = (*map(temporary_name, _REPLACED), PROBE)
"""Temporary names in the folder of a run, each with one writer at a time."""
_TEMPORARY: Final = re.compile(
    rf"(?:{SHARDS}/\d+-of-\d+/)?(?:{'|'.join(map(re.escape, TEMPORARY_FILES))})"
    rf"|\.(?:{'|'.join(map(re.escape, (REPORT, COMPARISON, NAMING)))})\.\d+\.tmp"
)
_TEMPORARY_CAPTION: Final = re.compile(r"\.[0-9a-f]{20}\.tmp")
_SHARD: Final = re.compile(r"(\d+)-of-(\d+)")


# --- captions --------------------------------------------------------------------------------


def caption_name(file: str, naming: CaptionName = "file") -> str:
    """The path of an item's caption in the output folder. By stem, x.png has x.txt; names without
    an ending, such as .png, are kept whole, and so is the name of an image called x.txt."""
    if naming == "stem":
        stem, ending = os.path.splitext(file)  # noqa: PTH122 (called a million times)
        if ending.lower() != CAPTION_SUFFIX:
            file = stem
    return file + CAPTION_SUFFIX


def is_reserved(file: str) -> bool:
    """Whether the caption of ``file`` needs a folder whose name is reserved."""
    return _RESERVED.match(file) is not None


def temporary_caption_name(digest: str) -> str:
    """The name of a caption while it is being written; short, since its final name may take all of
    the 255 bytes."""
    return f".{digest[:20]}.tmp"


def is_temporary(path: str) -> bool:
    """Whether a path in the output folder is a file that is being written or whose writer died.
    `temporary_parts` lists those of parts."""
    name = path.rpartition("/")[2]
    return bool(_TEMPORARY.fullmatch(path) or _TEMPORARY_CAPTION.fullmatch(name))


# --- parts of the manifest -------------------------------------------------------------------


def part_name(number: int) -> str:
    """The file name of one part."""
    return f"part-{number:08d}.parquet"


def part_number(path: Path) -> int:
    """The number in the name of a part; 0 if there is none."""
    digits = path.stem.removeprefix("part-")
    return int(digits) if digits.isdecimal() else 0


def parts(folder: Path) -> list[Path]:
    """The parts in one manifest folder, oldest first; none if there is no folder. Raises OSError if
    it cannot be listed: a run that saw no parts would overwrite them."""
    return sorted(_listed(folder, "part-*.parquet"), key=part_number)


def temporary_parts(folder: Path) -> list[Path]:
    """Parts in a manifest folder that are being written or whose writer died."""
    return _listed(folder, temporary_name("*"))


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Matching entries. Not pathlib's glob, which treats an unreadable folder as an empty one."""
    try:
        return [path for path in folder.iterdir() if fnmatchcase(path.name, pattern)]
    except (FileNotFoundError, NotADirectoryError):
        return []


# --- logs ------------------------------------------------------------------------------------


def engine_log(engine: int) -> str:
    """The log of one engine, in the log folder."""
    return f"engine-{engine}.log"


# --- shards ----------------------------------------------------------------------------------


def shard_folder(root: Path, shard: Shard) -> Path:
    """Where a shard keeps everything but its captions."""
    return root / SHARDS / f"{shard.index:04}-of-{shard.count:04}"


def state_folder(root: Path, shard: Shard | None) -> Path:
    """Where a run keeps everything but its captions."""
    return root if shard is None else shard_folder(root, shard)


def shard_folders(root: Path) -> dict[Shard, Path]:
    """The shards of an output folder, those with the newest rows last."""
    found = {}
    for path in _listed(root / SHARDS, "*-of-*"):
        if name := _SHARD.fullmatch(path.name):
            found[Shard(int(name[1]), int(name[2]))] = path
    return dict(sorted(found.items(), key=lambda entry: (_newest(entry[1]), entry[0])))


def state_folders(root: Path) -> list[Path]:
    """The folders with the rows of an output, older ones first: the output folder, then those of
    shards that are not merged yet."""
    return [root, *shard_folders(root).values()]


def all_parts(root: Path) -> list[Path]:
    """Every part of the manifests in an output folder, oldest first."""
    return [path for folder in state_folders(root) for path in parts(folder / MANIFEST)]


def _newest(folder: Path) -> float:
    """When the newest row of the last part was made, in seconds since 1970, according to the footer
    of the part; 0 if unknown. Not the file's mtime, which a copy changes."""
    import pyarrow as pa  # here, so that it is loaded only if there are shards
    import pyarrow.parquet as pq

    moments: list[datetime] = []
    try:
        for part in parts(folder / MANIFEST)[-1:]:
            footer = pq.read_metadata(part.absolute())
            place = footer.schema.names.index(_ROW_TIME)
            for group in range(footer.num_row_groups):
                statistics = footer.row_group(group).column(place).statistics
                if statistics is not None and isinstance(statistics.max, datetime):
                    moments.append(statistics.max)
    except (pa.ArrowException, OSError, ValueError):  # whoever reads the rows reports it
        return 0.0
    return max((moment.timestamp() for moment in moments), default=0.0)
