"""The progress of a ``--redo``: which runs have worked on it, kept in the output folder.

A redo that was interrupted, or that takes N items at a time (``--limit``), goes on when the same
line is run again: what a run of the same redo has settled is not taken again. Once a redo has seen
the whole input it is finished, and the same line begins a new one.

Invariant: rows decide what is done, so a kill at any moment repeats at most what was in flight.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from vllm_caption.config import ResumeConfig
from vllm_caption.formatting import encodable_name
from vllm_caption.store.layout import REDO


class RedoProgress(msgspec.Struct, frozen=True):
    """One redo. ``what``: what is captioned again; ``recipe_id``: what makes the captions;
    ``runs``: the runs that have worked on it; ``overwrote``: the last of them was to replace
    captions of people too."""

    what: str
    recipe_id: str
    runs: tuple[str, ...] = ()
    is_finished: bool = False
    overwrote: bool = False


def what_is_redone(resume: ResumeConfig) -> str:
    """A redo by its flags, as "--redo all"; empty where there is none."""
    if resume.redo_files:
        return f"--redo-file {' '.join(map(encodable_name, sorted(resume.redo_files)))}"
    if resume.redo_kinds:
        return f"--redo-kind {','.join(sorted(resume.redo_kinds))}"
    return f"--redo {resume.redo}" if resume.redo else ""


def earlier_runs(
    recorded: RedoProgress | None, resume: ResumeConfig, recipe_ids: frozenset[str]
) -> tuple[str, ...]:
    """The runs whose work on a redo counts; none where it begins."""
    what = what_is_redone(resume)
    if recorded is None or not what or recorded.what != what:
        return ()
    if recorded.recipe_id not in recipe_ids:
        return ()
    # What was spared the first time is all that is left for --overwrite-edited.
    widened = resume.overwrite_edited and not recorded.overwrote
    return recorded.runs if not recorded.is_finished or widened else ()


def read_redo(folder: Path) -> RedoProgress | None:
    """The last redo of an output folder or a shard; None where it is not known."""
    try:
        return msgspec.json.decode((folder / REDO).read_bytes(), type=RedoProgress)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def encode_redo(progress: RedoProgress) -> bytes:
    """The content of the file."""
    return msgspec.json.format(msgspec.json.encode(progress), indent=2)
