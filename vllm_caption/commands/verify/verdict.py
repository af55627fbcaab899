"""What `verify` found, as one structure: the content of ``--json``, and the source of the text.

KINDS explains every kind. Invariant: an item of the input is ``items_agreeing`` or counts
in exactly one of the kinds of ITEM_KINDS, unless a run wrote its caption meanwhile.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

import msgspec

from vllm_caption.formatting import encodable_name, printable
from vllm_caption.inputs.source import Nouns
from vllm_caption.store.layout import DAMAGED_PARTS

VERSION: Final = 1
"""Increased when a field changes its name or its meaning, not when fields are added."""
MAX_EXAMPLES: Final = 3

ItemKind = Literal[
    "missing_row", "missing_txt", "empty_txt", "edited", "unreadable_txt", "failed", "untried"
]
Kind = ItemKind | Literal["orphan_txt", "orphan_row", "damaged_part"]
ITEM_KINDS: Final[tuple[ItemKind, ...]] = get_args(ItemKind)


class Explanation(NamedTuple):
    """What a kind means, and what to do about it. ``expected``: people and runs leave it on
    purpose, and the records do not contradict each other, so it is only reported."""

    meaning: str
    remedy: str
    expected: bool = False


KINDS: Final[dict[Kind, Explanation]] = {
    "missing_row": Explanation(
        "a .txt without a captioned row",
        "verify --repair, or a run, makes the row from the .txt",
    ),
    "missing_txt": Explanation(
        "a captioned row without its .txt",
        "verify --repair writes it from the row; a run does, too, unless the row is stale",
    ),
    "empty_txt": Explanation(
        "a .txt with nothing in it",
        "verify --repair writes it from the row, if there is one; a run does, too, unless the row"
        " is stale",
    ),
    "edited": Explanation(
        "a .txt that somebody changed: it differs from its row",
        "kept unless a run is told to replace it; verify --repair records its text in the manifest",
        expected=True,
    ),
    "unreadable_txt": Explanation(
        "a .txt that cannot be read",
        "give this user permission to read it, then verify again",
    ),
    "failed": Explanation(
        "a failed row and no caption",
        "fix the image or its entry if it is at fault, then run again",
        expected=True,
    ),
    "untried": Explanation("neither a row nor a .txt", "run again"),
    "orphan_txt": Explanation(
        "a .txt whose item is not in the input",
        "it is kept: another input of this output may own it, or its image is gone",
        expected=True,
    ),
    "orphan_row": Explanation(
        "a row whose item is not in the input",
        "it does no harm: another input of this output may own it, or its image is gone",
        expected=True,
    ),
    "damaged_part": Explanation(
        "a part of the manifest that cannot be read",
        f"verify --repair moves it to {DAMAGED_PARTS}/ and rebuilds its rows from the .txt files;"
        " where there are none (--no-txt), run again",
    ),
}
"""In the order in which they are reported."""
_IF_REJECTED: Final = "run again, change the prompt, or accept such captions with --no-checks"
_ALSO_REJECTED: Final = "if captions were rejected, change the prompt, or add --no-checks"
_IF_SKIPPED: Final = "; or its type is one of --skip-types"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One thing that diverges. ``file``: as in the manifests; of an ``orphan_txt`` the path below
    the output folder, of a ``damaged_part`` the whole path."""

    file: str
    detail: str = ""


class Divergence(msgspec.Struct):
    """All of one kind. ``repaired``: how many of ``count`` are fixed now; ``expected``: it is only
    reported; ``entries``: the first few, or all."""

    kind: Kind
    count: int = 0
    repaired: int = 0
    meaning: str = ""
    remedy: str = ""
    expected: bool = False
    entries: list[Entry] = []

    @property
    def left(self) -> int:
        """How many still diverge."""
        return self.count - self.repaired


class SkippedDocuments(msgspec.Struct):
    """Skipped documents of one kind."""

    kind: str
    count: int = 0
    entries: list[Entry] = []


class Leftovers(msgspec.Struct):
    """What a killed run left. It is harmless: ``--repair`` removes the temporary files, and it or
    the next run turns the journal into a part."""

    journal_rows: int = 0
    torn_journal_lines: int = 0
    num_temporary: int = 0
    temporary: list[str] = []


class Verdict(msgspec.Struct):
    """The whole comparison. ``holder``: who holds the folder, in words. ``complete``: false where
    --limit was reached, so that orphans cannot be detected. ``nouns``: what documents and elements
    of this input are called."""

    output: str
    version: int = VERSION
    holder: str | None = None
    repaired: bool = False
    rows: int = 0
    nouns: Nouns = Nouns()
    documents_read: int = 0
    documents_skipped: list[SkippedDocuments] = []
    no_type_was_skipped: bool = False
    complete: bool = True
    items: int = 0
    items_agreeing: int = 0
    items_written_meanwhile: int = 0
    divergences: list[Divergence] = []
    leftovers: Leftovers = msgspec.field(default_factory=Leftovers)
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Nothing diverges any more, apart from what is expected."""
        return not any(found.left for found in self.divergences if not found.expected)


class Findings:
    """Collects what diverges; of each kind the first few are kept, or everything. ``has_types``:
    the elements of the input have types, some of which are skipped."""

    def __init__(self, *, keep_all: bool, has_types: bool = False) -> None:
        self._has_types = has_types
        self._num_rejected = 0
        self._max = None if keep_all else MAX_EXAMPLES
        self._by_kind: dict[Kind, Divergence] = {}
        self._documents: dict[str, SkippedDocuments] = {}

    def add(self, kind: Kind, file: str, detail: str = "") -> None:
        """One more of a kind."""
        found = self._by_kind.get(kind)
        if found is None:
            found = self._by_kind[kind] = Divergence(kind, 0, 0, *KINDS[kind])
        found.count += 1
        if self._has_room(found.entries):
            found.entries.append(Entry(encodable_name(file), printable(detail)))

    def add_failed(self, file: str, kind: str, reason: str) -> None:
        """An item whose last row says failed."""
        self.add("failed", file, f"{kind}: {reason}")
        self._num_rejected += kind == "caption_rejected"

    def add_repaired(self, kind: Kind) -> None:
        """One of those that were added is fixed."""
        self._by_kind[kind].repaired += 1

    def add_document(self, kind: str, name: str, reason: str) -> None:
        """A skipped document."""
        found = self._documents.setdefault(kind, SkippedDocuments(kind))
        found.count += 1
        if self._has_room(found.entries):
            found.entries.append(Entry(name, reason))

    def divergences(self) -> list[Divergence]:
        """In the order of KINDS, each with what to do about it."""
        found = [self._by_kind[kind] for kind in KINDS if kind in self._by_kind]
        for each in found:
            each.remedy = self._remedy(each)
        return found

    def _remedy(self, found: Divergence) -> str:
        remedy = KINDS[found.kind].remedy
        if found.kind == "failed" and self._num_rejected == found.count:
            return _IF_REJECTED
        if found.kind == "failed" and self._num_rejected:
            return f"{remedy}; {_ALSO_REJECTED}"
        is_orphan = found.kind in ("orphan_txt", "orphan_row")
        return remedy + _IF_SKIPPED if is_orphan and self._has_types else remedy

    def documents(self) -> list[SkippedDocuments]:
        """Most frequent kind first."""
        return sorted(self._documents.values(), key=lambda found: -found.count)

    def _has_room(self, entries: list[Entry]) -> bool:
        return self._max is None or len(entries) < self._max
