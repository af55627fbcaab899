"""The input against what is done: yields what an engine must do, and rows that need no engine.

Done is done whatever made it: a captioned row, or a .txt that is not empty (which gets its row
here). A failed item is tried again; if its file was at fault, it is looked at here first, so that
a rerun over the same broken files starts no engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from vllm_caption.config import Redo, RunConfig
from vllm_caption.driver.row_maker import RowMaker
from vllm_caption.errors import INPUT_KINDS, ItemError
from vllm_caption.images.decode import prepare_image
from vllm_caption.images.files import check_name
from vllm_caption.inputs.manifest import ManifestReader
from vllm_caption.items import BadEntry, Item, SkippedDocument
from vllm_caption.scheduling.dispatcher import GiveUp
from vllm_caption.store.caption_files import CaptionFiles
from vllm_caption.store.rows import ItemState, Row

BATCH_SIZE = 256


@dataclass(slots=True)
class Batch:
    """What a stretch of the input comes to. ``failures_kept``: kind and file of items that failed
    before and are not to be tried now."""

    pending: list[Item] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    failures_kept: list[tuple[str, str]] = field(default_factory=list)
    num_done: int = 0
    num_stale: int = 0

    @property
    def size(self) -> int:
        """Items and entries decided."""
        return len(self.pending) + len(self.rows) + len(self.failures_kept) + self.num_done


class Scan:
    """One pass over the input. Iterate over `batches` in a thread; it blocks on files.

    ``known`` is the scan's to change; it is emptied at the end.
    """

    def __init__(
        self,
        config: RunConfig,
        known: dict[str, ItemState],
        files: CaptionFiles,
        make: RowMaker,
    ) -> None:
        self.reader = ManifestReader(config.input, lambda: _NamesRead(known))
        self.skipped: list[SkippedDocument] = []
        self._config = config
        self._known = known
        self._files = files
        self._make = make
        self._images_root = os.fspath(config.input.images_root)
        self._recipe_id = make.recipe.id
        self._left = False

    @property
    def total(self) -> int:
        """Items found so far, with those that have no usable name."""
        return self.reader.counts.items + self.reader.counts.bad_entries

    def leave(self) -> None:
        """Read no further; may be called from another thread."""
        self._left = True

    def batches(self) -> Iterator[Batch]:
        """Everything in the input, in its order."""
        batch, started = Batch(), False
        for entry in self.reader:
            if self._left:
                return
            if isinstance(entry, SkippedDocument):
                self.skipped.append(entry)
            elif isinstance(entry, BadEntry):
                batch.rows.append(self._make.bad_entry(entry))
            else:
                self._decide(entry, batch)
            # The first pending item leaves at once: an engine may start while the rest is read.
            if batch.size >= BATCH_SIZE or (batch.pending and not started):
                started = started or bool(batch.pending)
                yield batch
                batch = Batch()
        self._known.clear()  # a million names are not needed any more
        yield batch

    def _decide(self, item: Item, batch: Batch) -> None:
        known = self._known.get(item.file)
        if known is not None and stands(known, self._config, self._recipe_id):
            if known.status == "failed":
                batch.failures_kept.append((known.error_kind or "", item.file))
            else:
                batch.num_done += 1
                batch.num_stale += known.recipe_id != self._recipe_id
            return
        try:
            check_name(item.file)
            self._files.check_name(item.file)
            if known is None or known.status == "failed":
                if may_adopt(known, self._config.redo) and self._adopt(item, batch):
                    return
                self._files.check_place(item.file)
                if known is not None and known.error_kind in INPUT_KINDS:
                    prepare_image(self._images_root, item.file, self._config.image)
        except ItemError as error:
            failure = GiveUp(item, 1, error.kind, error.reason)
            batch.rows.append(self._make.given_up(failure, engine=None))
            return
        batch.pending.append(item)

    def _adopt(self, item: Item, batch: Batch) -> bool:
        caption = self._files.read(item.file)
        if caption is None:
            return False
        batch.rows.append(self._make.adopted(item, caption))
        batch.num_stale += 1
        return True


class _NamesRead:
    """The names that were read. Those that have a row are marked there: a second copy of a million
    names would take 150 MB."""

    def __init__(self, known: dict[str, ItemState]) -> None:
        self._known = known
        self._others: set[str] = set()
        self._marked: dict[ItemState, ItemState] = {}

    def __contains__(self, file: str) -> bool:
        entry = self._known.get(file)
        return file in self._others if entry is None else bool(entry.read)

    def add(self, file: str) -> None:
        entry = self._known.get(file)
        if entry is None:
            self._others.add(file)
        elif (marked := self._marked.get(entry)) is not None:
            self._known[file] = marked
        else:
            self._known[file] = self._marked[entry] = entry._replace(read=True)


def stands(known: ItemState, config: RunConfig, recipe_id: str) -> bool:
    """Whether an item's row stays as it is; ``recipe_id`` is this run's."""
    redo = config.redo
    if config.redo_kinds:  # these and no others
        return not {known.error_kind, *known.flags.split(",")} & {*config.redo_kinds}
    if known.status != "captioned" or redo == "all":
        return False
    if redo == "stale":
        return known.recipe_id == recipe_id
    return redo != "flagged" or not known.flags


def may_adopt(known: ItemState | None, redo: Redo | None) -> bool:
    """Whether a .txt of an item without a caption's row is taken as its caption."""
    return (known is None or known.status == "failed") and redo not in ("all", "stale")
