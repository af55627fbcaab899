"""The progress of a ``--redo``: which runs have worked on it, kept in the output folder.

A redo that was interrupted, or that takes N items at a time (``--limit``), resumes when the same
command runs again: items that a run of this redo has finished are not repeated. Once a redo has
read the whole input it is finished, and the same command starts a new one.

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
    ``runs``: the runs that have worked on it; ``overwrote``: whether the last of them replaced
    captions of people, too."""

    what: str
    recipe_id: str
    runs: tuple[str, ...] = ()
    is_finished: bool = False
    overwrote: bool = False


def what_is_redone(resume: ResumeConfig) -> str:
    """A redo as its flags, such as "--redo all"; empty if there is none."""
    if resume.redo_files:
        return f"--redo-file {' '.join(map(encodable_name, sorted(resume.redo_files)))}"
    if resume.redo_kinds:
        return f"--redo-kind {','.join(sorted(resume.redo_kinds))}"
    return f"--redo {resume.redo}" if resume.redo else ""


def earlier_runs(
    recorded: RedoProgress | None, resume: ResumeConfig, recipe_ids: frozenset[str]
) -> tuple[str, ...]:
    """The earlier runs that count as part of a redo; none if it is new."""
    what = what_is_redone(resume)
    if recorded is None or not what or recorded.what != what:
        return ()
    if recorded.recipe_id not in recipe_ids:
        return ()
    # Only what was spared the first time is left for --overwrite-edited.
    widened = resume.overwrite_edited and not recorded.overwrote
    return recorded.runs if not recorded.is_finished or widened else ()


def read_redo(folder: Path) -> RedoProgress | None:
    """The last redo of an output folder or a shard; None if unknown."""
    try:
        return msgspec.json.decode((folder / REDO).read_bytes(), type=RedoProgress)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def encode_redo(progress: RedoProgress) -> bytes:
    """The content of the file."""
    return msgspec.json.format(msgspec.json.encode(progress), indent=2)
