"""The failures that reach the user; the class decides the exit code and the wording.

    CaptionJobError
    ├── UsageError      the user can fix it before anything starts         exit 2
    ├── RunStopped      the run cannot continue; what is done is saved     exit 3
    ├── DocumentError   one document is left out, with a kind and a sentence
    └── ItemError       one item fails, with a kind and a sentence

Invariant: every kind and flag that appears in an output column is listed here.
"""

from __future__ import annotations

import os
from typing import Final, Literal, get_args

DocumentKind = Literal[
    "missing_detail",
    "invalid_json",
    "bad_encoding",
    "not_object",
    "missing_key",
    "bad_type",
    "length_mismatch",
    "types_length",
    "not_a_file",
    "unreadable",
]
InputKind = Literal[
    "bad_name",
    "path_escape",
    "missing_file",
    "not_a_file",
    "unreadable",
    "not_an_image",
    "decode_error",
    "too_large",
    "output_conflict",
]
SlowKind = Literal["timeout"]
EngineKind = Literal["engine_error", "poison"]
CaptionKind = Literal["caption_rejected"]
ItemKind = InputKind | SlowKind | EngineKind | CaptionKind
CaptionFlag = Literal[
    "empty",
    "reasoning",
    "bad_json",
    "loop",
    "refusal",
    "prompt_echo",
    "wrong_script",
    "preface",
    "code_fence",
    "punctuation_tail",
    "forbidden_opening",
    "too_long",
    "cut_off",
]
"""What is wrong with a caption; see `captions.rules`."""

ITEM_KINDS: Final[tuple[str, ...]] = tuple(
    kind for kinds in (InputKind, SlowKind, EngineKind, CaptionKind) for kind in get_args(kinds)
)
ABSENT_KINDS: Final[frozenset[str]] = frozenset({"missing_file", "unreadable", "not_a_file"})
"""The kinds with which every image fails when its folder or bucket is gone."""
INPUT_KINDS: Final[frozenset[str]] = frozenset(get_args(InputKind))
"""Kinds that can be checked again without an engine."""
CAPTION_FLAGS: Final[tuple[CaptionFlag, ...]] = get_args(CaptionFlag)
"""Worst first: the order of every tuple of flags."""

EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, EXIT_STOPPED = 0, 1, 2, 3
EXIT_INTERRUPTED, EXIT_NO_READER = 130, 141
"""Exit codes of a run; `status`, `verify` and `merge` give some of them another meaning."""


class CaptionJobError(Exception):
    """Base class of the errors that end a run, leave out a document or fail an item."""


class UsageError(CaptionJobError):
    """A mistake that the user can fix; names the field, the value and the remedy.

    Exit code 2, printed as one line, never as a traceback.
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(field, value, remedy)
        self.field, self.value, self.remedy = field, value, remedy

    def __str__(self) -> str:
        shown = "" if self.value is None else f" {self.value}"
        return f"{self.field}{shown}: {self.remedy}"


class RunStopped(CaptionJobError):
    """The run cannot continue (no engine left, disk full); what is done is saved. Exit code 3."""


def of_system(error: OSError) -> RunStopped | UsageError:
    """An error of the operating system, in one line. The user can fix a missing permission."""
    if isinstance(error, PermissionError) and error.filename:
        remedy = f"{error.strerror or error}; give this user the rights, or name another path"
        return UsageError(os.fsdecode(error.filename), None, remedy)
    where = f"{error.filename}: " if error.filename else ""
    return RunStopped(f"{where}{error.strerror or error}")


class DocumentError(CaptionJobError):
    """One document cannot be used; the run continues without it."""

    def __init__(self, kind: DocumentKind, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind: DocumentKind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class ItemError(CaptionJobError):
    """One item cannot be captioned; ``kind`` and ``reason`` become columns of its row.

    ``transient``: a retry may succeed, for example when a network file system was unavailable.
    """

    def __init__(self, kind: ItemKind, reason: str, *, transient: bool = False) -> None:
        super().__init__(kind, reason)
        self.kind: ItemKind = kind
        self.reason = reason
        self.transient = transient

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"
