"""Any source → items, streamed: what to caption, and what cannot be captioned, with the reason.

Invariants: one ``Item`` per distinct ``file``, with the metadata of the first document that names
it; every document is accepted as a whole or skipped with a kind and a sentence; whatever an input
contains, the iteration does not raise; all text that leaves this module can be encoded as UTF-8.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from vllm_caption.config import InputConfig
from vllm_caption.errors import ItemError
from vllm_caption.formatting import JSON_TYPES, printable
from vllm_caption.inputs.choice import open_source
from vllm_caption.inputs.documents import LONE_SURROGATE, MAX_TEXT_CHARS
from vllm_caption.inputs.source import Element, Group, Nouns
from vllm_caption.items import BadEntry, Document, Item, SkippedDocument


@dataclass(slots=True)
class InputCounts:
    """How much has been read so far. ``references`` = ``items`` + ``duplicates`` +
    ``bad_entries`` + the references in other shards."""

    documents: int = 0
    skipped: int = 0
    documents_without_items: int = 0
    elements: int = 0
    references: int = 0
    items: int = 0
    duplicates: int = 0
    bad_entries: int = 0
    elements_by_type: Counter[str] = field(default_factory=Counter)
    skipped_elements: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    """Files that are not named like an image, by ending; without sidecars."""
    nouns: Nouns = field(default_factory=Nouns)
    """What documents and elements are called in this input."""


class Names(Protocol):
    """A set of file names."""

    def __contains__(self, file: str, /) -> bool:
        """Whether ``file`` is in the set."""

    def add(self, file: str, /) -> None:
        """Add a name that is not in the set."""


class InputReader:
    """Each ``iter()`` is a pass over the whole input; ``counts`` and ``complete`` describe the last
    pass so far."""

    def __init__(self, config: InputConfig, seen: Callable[[], Names] = set[str]) -> None:
        """``seen`` makes the set of names that a pass has read."""
        self.config = config
        self.source = open_source(config)
        self._new_seen = seen
        self.counts = InputCounts(nouns=self.source.nouns)
        self._empty: set[str] = set()
        self.complete = False
        self._shard = config.shard
        self._skip_types = frozenset(name.casefold() for name in config.skip_types)
        self._seen = seen()
        self._patterns = _Patterns(config.patterns) if config.patterns else None

    @property
    def unmatched_patterns(self) -> tuple[str, ...]:
        """The patterns that no item matched, once the whole input has been read."""
        if self._patterns is None or not self.complete:
            return ()
        return self._patterns.unmatched

    @property
    def no_type_was_skipped(self) -> bool:
        """Whether the whole input was read and its elements have types, but none to be skipped."""
        wanted = bool(self._skip_types) and any(self.counts.elements_by_type)
        return self.complete and wanted and not self.counts.skipped_elements

    def __contains__(self, file: str) -> bool:
        """Whether the last pass read an item with this name."""
        return file in self._seen

    def __iter__(self) -> Iterator[Item | BadEntry | SkippedDocument]:
        self.counts = InputCounts(nouns=self.counts.nouns, left_out=self.source.left_out)
        self._empty = set()
        self.complete, self._seen = False, self._new_seen()
        limit = self.config.limit
        if limit is not None and limit <= 0:
            return
        for group in self.source.documents():
            for found in self._read(group):
                yield found
                if self.counts.items == limit:
                    return
        self.complete = True

    def _read(self, group: Group | SkippedDocument) -> Iterator[Item | BadEntry | SkippedDocument]:
        if isinstance(group, SkippedDocument):
            self.counts.documents += 1
            self.counts.skipped += 1
            yield group
            return
        self.counts.documents += group.first_index == 0
        references_before = self.counts.references
        for index, element in enumerate(group.elements, group.first_index):
            found = self._take(group.document, index, element)
            if found is not None:
                yield found
        self._count_empty(group, has_items=self.counts.references > references_before)

    def _count_empty(self, group: Group, *, has_items: bool) -> None:
        """A document may come in several groups, with others in between."""
        if has_items:
            self._empty.discard(group.document.name)
        elif group.first_index == 0:
            self._empty.add(group.document.name)
        self.counts.documents_without_items = len(self._empty)

    def _take(self, document: Document, index: int, element: Element) -> Item | BadEntry | None:
        counts, kind = self.counts, element.element_type
        counts.elements += 1
        counts.elements_by_type[kind] += 1
        if kind.casefold() in self._skip_types:
            counts.skipped_elements[kind] += 1
            return None
        only = self.config.only
        if only is not None and not _is_named(element.entry, only):
            return None
        if self._patterns is not None and not self._patterns.match(_named(element.entry)):
            return None
        counts.references += 1
        try:
            file = usable_name(element.entry)
        except ItemError as error:
            if self._shard is not None and not self._shard.takes(f"{document.name}[{index}]"):
                return None
            counts.bad_entries += 1
            shown = printable(_named(element.entry))
            return BadEntry(document.name, index, kind, shown, element.fault or error.reason)
        if self._shard is not None and not self._shard.takes(file):
            return None
        if file in self._seen:
            counts.duplicates += 1
            return None
        self._seen.add(file)
        counts.items += 1
        row = None if element.row is None else {k: _cut(v) for k, v in element.row.items()}
        return Item(file, document, index, kind, row, element.item_id, element.fault)


def _cut(value: object) -> object:
    """Keep no more of a text than a prompt prints: a million items wait in memory."""
    return value[:MAX_TEXT_CHARS] if isinstance(value, str) else value


def no_type_skipped(*skip_types: str) -> str:
    """The note for `InputReader.no_type_was_skipped`, naming the given types."""
    given = f" {','.join(skip_types)}" if skip_types else ""
    return (
        f"No element has a type of --skip-types{given}: the input may name its types differently."
    )


def usable_name(entry: object) -> str:
    """The `file` of an element's entry, unchanged. Raises ItemError if it cannot be used."""
    if not isinstance(entry, dict):
        found = JSON_TYPES[type(entry)]
        raise ItemError("bad_name", f"the element is {found}, not an object with `file`")
    if "file" not in entry:
        raise ItemError("bad_name", "the element has no `file`")
    file = entry["file"]
    if not isinstance(file, str):
        raise ItemError("bad_name", f"`file` is {JSON_TYPES[type(file)]}, not a string")
    if not file:
        raise ItemError("bad_name", "`file` is empty")
    if "\0" in file:
        raise ItemError("bad_name", "`file` holds a NUL character")
    if LONE_SURROGATE.search(file):
        raise ItemError("bad_name", "the name is not UTF-8, or holds half a surrogate pair")
    return file


class _Patterns:
    """Names, matched literally or as globs in which `*` also matches slashes."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._left = dict.fromkeys(patterns)
        self._names = frozenset(patterns)
        self._globs = re.compile("|".join(map(fnmatch.translate, patterns)))

    @property
    def unmatched(self) -> tuple[str, ...]:
        return tuple(self._left)

    def match(self, file: object) -> bool:
        if not isinstance(file, str):
            return False
        if file not in self._names and not self._globs.match(file):
            return False
        for pattern in [p for p in self._left if p == file or fnmatch.fnmatchcase(file, p)]:
            del self._left[pattern]
        return True


def _is_named(entry: object, files: frozenset[str]) -> bool:
    file = _named(entry)
    return isinstance(file, str) and file in files


def _named(entry: object) -> object:
    return entry.get("file", "") if isinstance(entry, dict) else entry
