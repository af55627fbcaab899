"""What `verify` found, as one structure: what ``--json`` writes and what the text is made from.

docs/verify.md explains every kind. Invariant: an item of the input is ``items_agreeing`` or counts
in exactly one of the kinds of ITEM_KINDS, unless a run wrote its caption meanwhile.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from vllm_caption.formatting import encodable_name, printable
from vllm_caption.store.layout import DAMAGED_PARTS

VERSION: Final = 1
"""Changes when a field changes its name or its meaning; new fields may come without."""
MAX_EXAMPLES: Final = 3

ItemKind = Literal[
    "missing_row", "missing_txt", "empty_txt", "changed", "unreadable_txt", "failed", "untried"
]
Kind = ItemKind | Literal["orphan_txt", "orphan_row", "damaged_part"]
ITEM_KINDS: Final[tuple[ItemKind, ...]] = get_args(ItemKind)
KINDS: Final[tuple[Kind, ...]] = (*ITEM_KINDS, "orphan_txt", "orphan_row", "damaged_part")

MEANING: Final[dict[Kind, str]] = {
    "missing_row": "a .txt without a captioned row",
    "missing_txt": "a captioned row without its .txt",
    "empty_txt": "a .txt with nothing in it",
    "changed": "a .txt that differs from its row",
    "unreadable_txt": "a .txt that cannot be read",
    "failed": "a row that says failed, and no caption",
    "untried": "neither a row nor a .txt",
    "orphan_txt": "a .txt whose item is not in the input",
    "orphan_row": "a row whose item is not in the input",
    "damaged_part": "a part of the manifest that cannot be read",
}
REMEDY: Final[dict[Kind, str]] = {
    "missing_row": "verify --repair, or a run, makes the row from the .txt",
    "missing_txt": "verify --repair writes the row's caption again",
    "empty_txt": "verify --repair writes the row's caption again; without one, run again",
    "changed": "verify --repair: the .txt counts, and its row is made anew from it",
    "unreadable_txt": "give this user the right to read it, then verify again",
    "failed": "run again; where the image is at fault, mend it first",
    "untried": "run again",
    "orphan_txt": "does no harm: are --jsons and --skip-types right? delete it if not needed",
    "orphan_row": "does no harm: are --jsons and --skip-types right?",
    "damaged_part": f"verify --repair moves it to {DAMAGED_PARTS}/ and makes rows from the .txt",
}


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One thing that diverges. ``file`` as in the manifests, but the path below the output folder
    of an ``orphan_txt``, and the path of a ``damaged_part``."""

    file: str
    detail: str = ""


class Divergence(msgspec.Struct):
    """One kind. ``repaired`` of ``count`` are mended now; ``entries`` are the first few, or all."""

    kind: Kind
    count: int = 0
    repaired: int = 0
    meaning: str = ""
    remedy: str = ""
    entries: list[Entry] = []

    @property
    def left(self) -> int:
        """What still diverges."""
        return self.count - self.repaired


class SkippedDocuments(msgspec.Struct):
    """Documents that were not taken, of one kind."""

    kind: str
    count: int = 0
    entries: list[Entry] = []


class Leftovers(msgspec.Struct):
    """What a killed run left. It harms nothing: ``--repair`` removes the temporary files, and the
    journal goes into a part with it or with the next run."""

    journal_rows: int = 0
    torn_journal_lines: int = 0
    num_temporary: int = 0
    temporary: list[str] = []


class Verdict(msgspec.Struct):
    """Everything. ``holder``: who holds the folder, in words. ``complete``: false when --limit
    ended the reading, so that orphans cannot be told."""

    output: str
    version: int = VERSION
    holder: str | None = None
    repaired: bool = False
    rows: int = 0
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
        """Nothing diverges any more."""
        return not any(divergence.left for divergence in self.divergences)


class Findings:
    """Collects what diverges; of each kind the first few are kept, or everything."""

    def __init__(self, *, keep_all: bool) -> None:
        self._max = None if keep_all else MAX_EXAMPLES
        self._by_kind: dict[Kind, Divergence] = {}
        self._documents: dict[str, SkippedDocuments] = {}

    def add(self, kind: Kind, file: str, detail: str = "") -> None:
        """One more of a kind."""
        found = self._by_kind.get(kind)
        if found is None:
            found = Divergence(kind, meaning=MEANING[kind], remedy=REMEDY[kind])
            self._by_kind[kind] = found
        found.count += 1
        if self._has_room(found.entries):
            found.entries.append(Entry(encodable_name(file), printable(detail)))

    def add_repaired(self, kind: Kind) -> None:
        """One of those that were added is mended."""
        self._by_kind[kind].repaired += 1

    def add_document(self, kind: str, name: str, reason: str) -> None:
        """A document that was not taken."""
        found = self._documents.setdefault(kind, SkippedDocuments(kind))
        found.count += 1
        if self._has_room(found.entries):
            found.entries.append(Entry(name, reason))

    def divergences(self) -> list[Divergence]:
        """In the order of KINDS."""
        return [self._by_kind[kind] for kind in KINDS if kind in self._by_kind]

    def documents(self) -> list[SkippedDocuments]:
        """Most frequent kind first."""
        return sorted(self._documents.values(), key=lambda found: -found.count)

    def _has_room(self, entries: list[Entry]) -> bool:
        return self._max is None or len(entries) < self._max
