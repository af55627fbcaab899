"""How the captions of an output folder are named: recorded there once, and never changed.

Invariant: all captions of a folder have the same naming. A run with another one would find every
caption missing, so it is refused; a later choice is possible only while there is no .txt (nothing
was captioned, or --no-txt).
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

import msgspec

from vllm_caption.config import CaptionName
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.formatting import printable
from vllm_caption.store.atomic import write_file
from vllm_caption.store.caption_files import CaptionFiles
from vllm_caption.store.journal import read_journal
from vllm_caption.store.layout import (
    CAPTION_SUFFIX,
    NAMING,
    all_parts,
    caption_name,
    numbered_temporary_name,
    shard_folders,
    state_folders,
)
from vllm_caption.store.lock import has_rows, is_held_by_another
from vllm_caption.store.reader import FolderRows

_BY_FILE: Final = re.compile(
    rf".*\.(png|jpe?g|gif|bmp|webp|tiff?|ico|avif){re.escape(CAPTION_SUFFIX)}", re.IGNORECASE
)


class _Naming(msgspec.Struct, frozen=True):
    """The content of the file."""

    caption_name: CaptionName


def read_naming(root: Path) -> CaptionName | None:
    """How the captions of a folder are named; None if it has none. Raises OSError, and RunStopped
    if the record is damaged."""
    if (recorded := _recorded(root)) is not None:
        return recorded
    if not all_parts(root) and not any(read_journal(f).rows for f in state_folders(root)):
        return None
    # Written by a version that knew only one naming, or somebody removed the record.
    return "stem" if _has_rows_by_stem(root) else "file"


def _has_rows_by_stem(root: Path) -> bool:
    with contextlib.suppress(RunStopped, FileNotFoundError):  # whoever needs these rows reports it
        for file, path in FolderRows(root).tuples(("file", "caption_path")):
            if path is not None and path != caption_name(file):
                return bool(path == caption_name(file, "stem"))
    return False


def _recorded(root: Path) -> CaptionName | None:
    path = root / NAMING
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Naming).caption_name
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:  # msgspec's, or bytes that are not UTF-8
        remedy = (
            'write {"caption_name": "file"} there if captions are named as x.png.txt, or "stem"'
        )
        raise RunStopped(f"{path} is damaged ({error}); {remedy} if as x.txt") from error


def naming_of(root: Path) -> CaptionName:
    """The naming of a folder; the default if it has none yet."""
    return read_naming(root) or "file"


def naming_of_run(root: Path, asked: CaptionName | None) -> CaptionName:
    """The naming of a run. Raises UsageError if the folder has captions named otherwise, recorded
    or not."""
    known = read_naming(root)
    try:
        chosen = settle(root, known, asked)
    except UsageError:
        if _is_bound(root):
            raise
        known, chosen = None, settle(root, None, asked)
    if known == "none" and chosen == "stem" and any(map(_is_open, shard_folders(root).values())):
        # Items whose captions would have the same name are in the same shard, so naming decides
        # which shard an item is in.
        problem = f"but {root} has shards that ran with --no-txt, which divide the input otherwise"
        raise UsageError("--caption-name", asked, f"{problem}; merge them first, or leave it out")
    if known is None and chosen == "stem" and (found := _named_by_file(root)) is not None:
        problem = f"but {root} has captions named by file, as {printable(found)}"
        remedy = "leave the flag out to keep them, or choose another --output"
        raise UsageError("--caption-name", asked, f"{problem}; {remedy}")
    return chosen


def settle(root: Path, known: CaptionName | None, asked: CaptionName | None) -> CaptionName:
    """The naming that results if the flags ask for ``asked`` (None: nothing) in a folder whose
    naming is ``known`` (None: a new folder)."""
    if known in (None, "none"):
        return asked or "file"
    assert known is not None
    if asked in (None, known):
        return known
    if asked == "none":
        remedy = (
            f"would leave old .txt files in {root} beside new captions; choose another --output"
        )
        raise UsageError("--no-txt", None, remedy)
    example = caption_name("x.png", known)
    problem = f"but the captions in {root} are named by {known}, as {example}"
    remedy = "leave the flag out, or choose another --output"
    raise UsageError("--caption-name", asked, f"{problem}; {remedy}")


def record_naming(root: Path, naming: CaptionName, number: int) -> None:
    """Record the naming of a folder. ``number``: unique among concurrent writers."""
    if _recorded(root) == naming:
        return
    content = msgspec.json.encode(_Naming(naming)) + b"\n"
    temporary = os.fspath(root / numbered_temporary_name(NAMING, number))
    write_file(root / NAMING, content, temporary=temporary, sync_content=True, sync_name=True)


def _is_open(shard: Path) -> bool:
    return is_held_by_another(shard) or has_rows(shard)


def _is_bound(root: Path) -> bool:
    """Whether the folder has a caption, or a shard is running and may be about to write one. A run
    that captioned nothing, as over a wrong images root, does not fix the naming."""
    if any(map(is_held_by_another, shard_folders(root).values())):
        return True
    try:
        if any("captioned" in row for row in FolderRows(root).tuples(("status",))):
            return True
    except (RunStopped, FileNotFoundError):  # damaged, or replaced meanwhile: there are captions
        return True
    return any(not is_temporary for _, is_temporary in CaptionFiles(root).walk())


def _named_by_file(root: Path) -> str | None:
    """A caption in the folder that is named after a whole file, as older scripts wrote them."""
    names = (name for name, is_temporary in CaptionFiles(root).walk() if not is_temporary)
    return next(filter(_BY_FILE.fullmatch, names), None)
