"""The comparison of input, rows and .txt files, in one pass over each.

Each item of the input takes its row out of the records; rows that are left have no item. A walk
over the folder then finds each .txt without an item. Memory grows with the names, not the texts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vllm_caption.commands.verify.records import Failure, Records, read_records
from vllm_caption.commands.verify.repair import Repair
from vllm_caption.commands.verify.verdict import (
    MAX_EXAMPLES,
    Findings,
    ItemKind,
    Leftovers,
    Verdict,
)
from vllm_caption.config import InputConfig
from vllm_caption.driver.nothing_taken import Unusable
from vllm_caption.driver.row_maker import bad_entry_name
from vllm_caption.errors import ItemError
from vllm_caption.formatting import encodable_name
from vllm_caption.images.files import check_name
from vllm_caption.inputs.reader import InputReader
from vllm_caption.items import BadEntry, Item, SkippedDocument
from vllm_caption.store.caption_files import Inspected, open_captions
from vllm_caption.store.disk.folding import infer_folding
from vllm_caption.store.layout import CAPTION_SUFFIX
from vllm_caption.store.lock import find_holder
from vllm_caption.store.naming import naming_of
from vllm_caption.store.rows import hash_of

SLACK_S: Final = 5.0
"""Between a .txt and its row, and between the clocks of this process and the file system."""


class Survey:
    """One comparison; `verdict` afterwards. With a ``repair``, it repairs as it goes."""

    def __init__(
        self, config: InputConfig, root: Path, repair: Repair | None, *, keep_all: bool
    ) -> None:
        self._config = config
        self._root = root
        self._repair = repair
        has_types = config.input is None or config.type_column is not None
        self._findings = Findings(keep_all=keep_all, has_types=has_types)
        self._keep_all = keep_all
        self._holder = None if repair else find_holder(root)
        self._started_s = time.time()
        self._records: Records = read_records(root)
        self._num_rows = len(self._records)
        self._reader = InputReader(config)
        self._files = (
            repair.files
            if repair
            else open_captions(root, naming_of(root), folding=infer_folding(root))
        )
        self._named: set[str] = set()
        """The names of the .txt files of items that cannot be known from these names."""
        records = self._records
        self._files.claims.record(f for f in records.captioned if f not in records.nameless)
        self._agreeing = self._meanwhile = self._bad_entries = 0
        self._leftovers = Leftovers(
            0 if self._holder else self._records.journal_rows,
            0 if self._holder else self._records.torn_journal_lines,
        )

    def compare(self, show: Callable[[int], None]) -> None:
        """Everything, once; ``show`` receives how many documents were read."""
        for path, reason in self._records.damaged.items():
            self._findings.add("damaged_part", os.fspath(path), reason)
            if self._repair is not None:
                self._repair.set_part_aside(path)
                self._findings.add_repaired("damaged_part")
        unusable = Unusable()
        for entry in self._reader:
            if not isinstance(entry, Item):
                unusable.add(entry)
            if isinstance(entry, SkippedDocument):
                self._findings.add_document(entry.kind, entry.document, entry.reason)
            elif isinstance(entry, BadEntry):
                self._take_bad_entry(entry)
            else:
                self._take(entry)
            show(self._reader.counts.documents)
        if self._reader.complete:
            unusable.check(self._config, self._reader.counts)
            for file in (*self._records.captioned, *self._records.failed):
                self._findings.add("orphan_row", file)
        self._walk()
        if self._repair is None:
            self._holder = self._holder or find_holder(self._root)  # it may have begun meanwhile
        else:
            for kind in self._repair.restore():
                self._findings.add_repaired(kind)

    def _take_bad_entry(self, entry: BadEntry) -> None:
        self._bad_entries += 1
        name = bad_entry_name(entry)
        if self._records.failed.pop(name, None) is not None:
            self._findings.add_failed(name, "bad_name", entry.reason)
        else:
            self._findings.add("untried", name)

    def _take(self, item: Item) -> None:
        caption_hash = self._records.captioned.pop(item.file, None)
        failure = self._records.failed.pop(item.file, None)
        if self._files.naming == "none" and caption_hash is not None:
            self._agreeing += 1  # the row is all there is
            return
        found = self._look(item.file)
        if found.state == "unreadable":
            self._findings.add("unreadable_txt", item.file, found.reason)
        elif caption_hash is None:
            self._judge_without_caption(item, failure, found)
        elif found.state != "gone" and hash_of(found.text) == caption_hash:
            self._agreeing += 1
        elif self._is_new(found):
            self._meanwhile += 1
        elif found.state == "there":
            self._findings.add("edited", item.file)
            self._adopt("edited", item, found)
        elif found.state == "empty":
            self._findings.add("empty_txt", item.file, "its row holds a caption")
            self._restore("empty_txt", item, caption_hash)
        else:
            self._findings.add("missing_txt", item.file, found.reason)
            self._restore("missing_txt", item, caption_hash)

    def _judge_without_caption(self, item: Item, failure: Failure | None, found: Inspected) -> None:
        add = self._findings.add
        if found.state == "there" and self._is_new(found):
            self._meanwhile += 1
        elif found.state == "there":
            add("missing_row", item.file, f"its row says {failure.kind}" if failure else "")
            self._adopt("missing_row", item, found)
        elif failure is not None:
            self._findings.add_failed(item.file, failure.kind, failure.reason)
        elif found.state == "empty":
            add("empty_txt", item.file, "there is no row, so the next run captions it")
        else:
            add("untried", item.file)

    def _look(self, file: str) -> Inspected:
        if self._files.naming == "stem":
            self._named.add(self._files.name(file))
        try:
            check_name(file)
            self._files.check_name(file)
        except ItemError as error:
            return Inspected("gone", reason=error.reason)  # such a name never reaches the disk
        return self._files.inspect(file)

    def _is_new(self, found: Inspected) -> bool:
        """A run that holds the folder wrote it after its rows were read here."""
        return self._holder is not None and found.written_s >= self._started_s - SLACK_S

    def _adopt(self, kind: ItemKind, item: Item, found: Inspected) -> None:
        if self._repair is not None:
            self._repair.adopt(item, found.text)
            self._findings.add_repaired(kind)

    def _restore(self, kind: ItemKind, item: Item, caption_hash: int) -> None:
        if self._repair is not None:
            self._repair.restore_later(kind, item.file, caption_hash)

    def _walk(self) -> None:
        for name, is_temporary in self._files.walk():
            if is_temporary:
                self._take_leftover(name)
            elif self._reader.complete and not self._is_of_item(name):
                self._findings.add("orphan_txt", name)

    def _is_of_item(self, name: str) -> bool:
        """Whether the input has an item with this .txt."""
        if self._files.naming == "stem":
            return name in self._named
        return name.removesuffix(CAPTION_SUFFIX) in self._reader

    def _take_leftover(self, name: str) -> None:
        if self._holder is not None:
            return  # it is being written
        self._leftovers.num_temporary += 1
        if self._keep_all or self._leftovers.num_temporary <= MAX_EXAMPLES:
            self._leftovers.temporary.append(encodable_name(name))
        if self._repair is not None:
            self._repair.remove_temporary(name)

    def verdict(self, seconds: float) -> Verdict:
        """The result of the pass."""
        counts = self._reader.counts
        return Verdict(
            output=encodable_name(os.fspath(self._root)),
            holder=self._holder,
            repaired=self._repair is not None,
            rows=self._num_rows,
            nouns=counts.nouns,
            documents_read=counts.documents,
            documents_skipped=self._findings.documents(),
            no_type_was_skipped=self._reader.no_type_was_skipped,
            complete=self._reader.complete,
            items=counts.items + self._bad_entries,
            items_agreeing=self._agreeing,
            items_written_meanwhile=self._meanwhile,
            divergences=self._findings.divergences(),
            leftovers=self._leftovers,
            seconds=round(seconds, 3),
        )
