"""What is left to do: compares the input with the results of earlier runs.

`decide` alone says what an item needs, both for a run and for `plan`. An item is done when it has a
caption: a .txt that is not empty, whoever wrote it. A "captioned" row whose .txt is gone is not
done, unless no .txt files are written (--no-txt). Failed items are tried again; the user chooses
what else is captioned again.

Invariants: what a person wrote is replaced only if the user explicitly asks for it; an item whose
caption cannot be written is refused before an engine sees its image; a rerun over files that are
still broken starts no engine; the end of the input is always reported, and never confused with a
failure to read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeGuard

from vllm_caption.config import ImageConfig, InputConfig, ResumeConfig, is_remote
from vllm_caption.driver.nothing_taken import Unusable, no_image
from vllm_caption.driver.row_maker import RowMaker
from vllm_caption.errors import INPUT_KINDS, CaptionJobError, ItemError, RunStopped, UsageError
from vllm_caption.images.decode import prepare_image
from vllm_caption.images.files import check_name, num_bytes
from vllm_caption.inputs.reader import InputReader, Names
from vllm_caption.items import BadEntry, Item, SkippedDocument
from vllm_caption.scheduling.dispatcher import GiveUp
from vllm_caption.store.caption_files import CaptionFiles
from vllm_caption.store.rows import ItemState, KnownItems, Row, hash_of

BATCH_SIZE = 256
MAX_MISSING = 1000
MAX_MISSING_REMOTE = 100
"""If this many images are missing before one is found, the images root must be wrong."""


# --- one item ------------------------------------------------------------------------------------

Origin = Literal["current", "stale", "edited", "adopted"]
"""Where a kept caption comes from: this run's recipe; another recipe; a person who changed its .txt
afterwards; or elsewhere, with no record of what made it."""
THEIRS: frozenset[Origin] = frozenset({"edited", "adopted"})


class Keep(NamedTuple):
    """Its caption stays. ``spared``: the user asked for all captions, or named this one, but not to
    replace what people wrote."""

    origin: Origin
    spared: bool = False


class KeepFailure(NamedTuple):
    """It failed before, with this kind, and is not retried now."""

    kind: str


class Adopt(NamedTuple):
    """The text of its .txt becomes its caption, with no record of what made it."""

    caption: str
    spared: bool = False


class Restore(NamedTuple):
    """Its .txt is gone and is written again from its row, since this run would make the same text;
    or there never was one (--no-txt)."""


class Caption(NamedTuple):
    """An engine captions it: it is "new" (or has failed), its .txt is "gone" and the caption in its
    row is of another recipe, or the user wants it "again". ``replaces``: the hash of the text in
    its .txt; None if there is none."""

    cause: Literal["new", "gone", "again"]
    replaces: int | None = None


class Refuse(NamedTuple):
    """It fails: its caption cannot be named or written, or its image is still broken.
    ``keeps_row``: its row holds a caption, which stays."""

    error: ItemError
    keeps_row: bool = False


KEPT: dict[Origin, Keep] = {
    "current": Keep("current"),
    "stale": Keep("stale"),
    "edited": Keep("edited"),
    "adopted": Keep("adopted"),
}
"""Shared instances, since a resumed input needs one for almost every item."""

Need = Keep | KeepFailure | Adopt | Restore | Caption | Refuse


class Decided(NamedTuple):
    """An item of the input and what it needs."""

    item: Item
    need: Need


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants captioned again. ``recipe_ids``: the ids of this run's recipe;
    ``redo_runs``: earlier runs of this redo."""

    resume: ResumeConfig
    recipe_ids: frozenset[str]
    redo_runs: frozenset[str] = frozenset()

    @property
    def names_all(self) -> bool:
        """Whether every item of the input is captioned again, whatever its state."""
        return self.resume.redo == "all" or bool(self.resume.redo_files)

    def again(self, state: ItemState) -> bool:
        """Whether an item with this row, which holds a caption, is captioned again."""
        redo = self.resume.redo
        if self.is_settled(state):
            return False
        if self.resume.redo_kinds:
            return self._is_of_kinds(state)
        if redo == "stale":
            return state.recipe_id not in self.recipe_ids
        return self.names_all or (redo == "flagged" and bool(state.flags))

    def retried(self, state: ItemState) -> bool:
        """Whether an item with this row, which holds no caption, is retried."""
        if self.is_settled(state):
            return False
        return not self.resume.redo_kinds or self._is_of_kinds(state)

    def is_settled(self, state: ItemState) -> bool:
        """Whether this redo made this row: it has captioned the item, or failed to."""
        if state.run_id not in self.redo_runs:
            return False
        return state.recipe_id in self.recipe_ids or state.error_kind is not None

    def _is_of_kinds(self, state: ItemState) -> bool:
        kinds = {state.error_kind, *state.flags.split(",")}
        return not kinds.isdisjoint(self.resume.redo_kinds)


def decide(file: str, known: KnownItems, files: CaptionFiles, wanted: Wanted) -> Need:
    """What an item needs, judged by its last row and what is on disk."""
    state = known.get(file)
    try:
        check_name(file)
        files.check_name(file)
    except ItemError as error:
        # Its caption may only be in its row (--no-txt); a .txt would be another item's.
        return Refuse(error, _has_caption(state) and not state.has_txt)
    try:
        if state is None or state.status != "captioned":
            need = _without_caption(file, state, files, wanted)
        else:
            need = _with_caption(file, state, known, files, wanted)
        if isinstance(need, Caption | Restore):
            files.check_place(file)
    except ItemError as error:
        return Refuse(error, _has_caption(state))
    return need


def _has_caption(state: ItemState | None) -> TypeGuard[ItemState]:
    return state is not None and state.status == "captioned"


def _with_caption(
    file: str, state: ItemState, known: KnownItems, files: CaptionFiles, wanted: Wanted
) -> Need:
    again, is_current = wanted.again(state), state.recipe_id in wanted.recipe_ids
    text = files.compare(file, known.trace(file), surely=again)
    if text == "gone":
        # If there never was a .txt (--no-txt), nobody has removed it.
        if (is_current or not state.has_txt) and not again:
            return Restore()
        if state.error_kind is not None and wanted.is_settled(state):
            return KeepFailure(state.error_kind)
        return Caption("gone")
    if text == "unreadable":
        if again and wanted.resume.overwrite_edited:
            raise ItemError("output_conflict", "its .txt cannot be read, so it is not replaced")
        return KEPT["edited"]
    if text == "edited":
        origin: Origin = "edited"
    elif state.recipe_id is None:
        origin = "adopted"
    else:
        origin = "current" if is_current else "stale"
    if not again:
        return KEPT[origin]
    if origin in THEIRS and not wanted.resume.overwrite_edited:
        return Keep(origin, spared=wanted.names_all)
    if text == "same":
        return Caption("again", known.trace(file).text_hash)
    theirs = files.read(file)
    return Caption("again", None if theirs is None else hash_of(theirs))


def _without_caption(
    file: str, state: ItemState | None, files: CaptionFiles, wanted: Wanted
) -> Need:
    text = files.read(file)
    if text is not None:
        if wanted.names_all and wanted.resume.overwrite_edited:
            return Caption("again", hash_of(text))
        return Adopt(text, spared=wanted.names_all)
    if state is not None and not wanted.retried(state):
        return KeepFailure(state.error_kind or "")
    return Caption("new")


# --- the whole input -----------------------------------------------------------------------------


@dataclass(slots=True)
class Batch:
    """A stretch of the input with its decisions: items for the engines, rows and .txt files that
    need no engine, and counts.

    ``failed_before``: pending files that have failed in an earlier run. ``replaced``: pending files
    that have a caption in a row or a .txt, with the hash of the text that may be replaced; None if
    the .txt is gone. ``refused``: failures of items whose row holds a caption. ``restored``: items
    whose .txt is written again, with the caption of their row. ``failures_kept``: kind and file.
    ``kept``: captions that stay, by what made them; ``num_spared``: captions that
    --overwrite-edited would replace. ``num_gone``: pending items whose .txt is gone. ``num_found``:
    items found so far, here and before.
    """

    pending: list[Item] = field(default_factory=list)
    failed_before: set[str] = field(default_factory=set)
    replaced: dict[str, int | None] = field(default_factory=dict)
    refused: list[GiveUp[Item]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    restored: list[tuple[Item, str]] = field(default_factory=list)
    failures_kept: list[tuple[str, str]] = field(default_factory=list)
    kept: Counter[Origin] = field(default_factory=Counter)
    num_spared: int = 0
    num_gone: int = 0
    num_found: int = 0

    @property
    def num_done(self) -> int:
        """The number of captions that stay."""
        return self.kept.total()


@dataclass(frozen=True, slots=True)
class InputEnded:
    """The input has ended, or reading it failed."""

    failure: CaptionJobError | None


class Pass:
    """One pass over the input, in order: every item with what it needs.

    A pass that finds nothing to caption raises UsageError: at once if the first images are all
    missing, at its end if there was no item. With ``--redo``, ``--limit`` counts only items for an
    engine, so that the same command takes the next ones, whatever is refused each time.
    """

    def __init__(
        self,
        config: InputConfig,
        known: KnownItems,
        files: CaptionFiles,
        wanted: Wanted,
        seen: Callable[[], Names] = set[str],
    ) -> None:
        self._limit = config.limit if wanted.resume.is_redo else None
        self._config = replace(config, limit=None) if wanted.resume.is_redo else config
        self.reader = InputReader(self._config, seen)
        self._known = known
        self._files = files
        self._wanted = wanted
        self._images_root = os.fspath(config.images_root)

    def __iter__(self) -> Iterator[Decided | BadEntry | SkippedDocument]:
        unusable, num_taken = Unusable(), 0
        max_missing = MAX_MISSING_REMOTE if is_remote(self._images_root) else MAX_MISSING
        unnamed: list[BadEntry] | None = []
        """Held back until there is an item: until then, the folders may be wrong."""
        missing: list[Decided] | None = None if self._wanted.resume.redo_files else []
        """Held back until an image is found; None from then on."""
        only_missing = True
        for entry in self.reader:
            if isinstance(entry, SkippedDocument):
                unusable.add(entry)
                yield entry
                continue
            if isinstance(entry, BadEntry):
                unusable.add(entry)
                if unnamed is None:
                    yield entry
                else:
                    unnamed.append(entry)
                continue
            if unnamed is not None:
                yield from unnamed
                unnamed = None
            found = Decided(entry, decide(entry.file, self._known, self._files, self._wanted))
            if entry.fault is not None and isinstance(found.need, Caption):
                error = ItemError("engine_error", entry.fault)  # e.g. no prompt can be made
                keeps_row = _has_caption(self._known.get(entry.file))
                found = Decided(entry, Refuse(error, keeps_row))
            num_taken += isinstance(found.need, Caption)
            if missing is None:
                yield found
            elif not self._looks_for_image(found):
                # A name that is refused says nothing about the folder.
                only_missing = only_missing and isinstance(found.need, Refuse)
                yield found
            elif self._has_no_image(entry):
                missing.append(found)
            else:
                yield from missing
                missing = None
                yield found
            if num_taken == self._limit or (missing and len(missing) == max_missing):
                break
        if missing and (only_missing or len(missing) == max_missing):
            raise no_image(self._config.images_root, [found.item.file for found in missing])
        if self.reader.complete:
            unusable.check(self._config, self.reader.counts)
        yield from unnamed or ()
        yield from missing or ()

    def _looks_for_image(self, found: Decided) -> bool:
        """Whether an engine needs the image, which was not recorded as missing before."""
        if not isinstance(found.need, Caption):
            return False
        state = self._known.get(found.item.file)
        return state is None or state.error_kind != "missing_file"

    def _has_no_image(self, item: Item) -> bool:
        try:
            num_bytes(self._images_root, item.file)
        except ItemError as error:
            return error.kind == "missing_file"
        return False


class Pending:
    """One pass over the input, in batches for the driver."""

    def __init__(
        self,
        config: InputConfig,
        image: ImageConfig,
        wanted: Wanted,
        known: KnownItems,
        files: CaptionFiles,
        make: RowMaker,
        captions_of: Callable[[Container[str]], Iterable[tuple[str, str]]],
    ) -> None:
        """``known`` is changed by the pass and empty at its end. ``captions_of`` gives (file,
        caption) of files, from their rows."""
        self._pass = Pass(config, known, files, wanted, lambda: _NamesRead(known))
        self.reader = self._pass.reader
        self.skipped: list[SkippedDocument] = []
        self.stale: Counter[str] = Counter()
        """Stale captions that stay, by recipe id."""
        self._images_root = os.fspath(config.images_root)
        self._image = image
        self._known = known
        self._make = make
        self._captions_of = captions_of
        self._gone: dict[str, Item] = {}
        """Items whose .txt is restored, all in one pass over the rows."""
        self._left = False

    def start(self, put: Callable[[Batch | InputEnded], None]) -> None:
        """Read in a thread, since reading blocks on files. ``put`` is called in the running loop
        for every batch, and then with the end."""
        loop = asyncio.get_running_loop()

        def send(event: Batch | InputEnded) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
                loop.call_soon_threadsafe(put, event)

        threading.Thread(target=self._read, args=(send,), name="input", daemon=True).start()

    def leave(self) -> None:
        """Stop reading. The thread ends when it can; do not wait for it."""
        self._left = True

    def _read(self, send: Callable[[Batch | InputEnded], None]) -> None:
        failure: CaptionJobError | None = RunStopped(
            "internal error while reading the input (traceback above)"
        )
        try:
            for batch in self.batches():
                send(batch)
            failure = None
        except UsageError as error:
            failure = error
        except OSError as error:
            failure = RunStopped(f"{error.filename or 'the input'} cannot be read: {error}")
        finally:
            send(InputEnded(failure))

    def batches(self) -> Iterator[Batch]:
        """Read the whole input in order."""
        batch, num_entries, started = Batch(), 0, False
        for entry in self._pass:
            if self._left:
                return
            if isinstance(entry, SkippedDocument):
                self.skipped.append(entry)
            elif isinstance(entry, BadEntry):
                batch.rows.append(self._make.bad_entry(entry))
            else:
                self._take(*entry, batch)
            num_entries += 1
            # The first pending item is sent at once, so that an engine can start during the scan.
            if num_entries == BATCH_SIZE or (batch.pending and not started):
                started = started or bool(batch.pending)
                yield self._counted(batch)
                batch, num_entries = Batch(), 0
        self._known.clear()  # a million names are no longer needed
        yield self._counted(batch)
        yield from map(self._counted, self._restored())

    def _restored(self) -> Iterator[Batch]:
        """The items whose .txt is gone, with the captions of their rows."""
        gone, batch = self._gone, Batch()
        if not gone:
            return
        for file, caption in self._captions_of(gone):
            batch.restored.append((gone.pop(file), caption))
            if len(batch.restored) == BATCH_SIZE:
                yield batch
                batch = Batch()
        batch.pending.extend(gone.values())  # somebody has changed the manifest
        batch.num_gone = len(batch.pending)
        yield batch

    def _counted(self, batch: Batch) -> Batch:
        batch.num_found = self.reader.counts.items + self.reader.counts.bad_entries
        return batch

    def _take(self, item: Item, need: Need, batch: Batch) -> None:
        state = self._known.get(item.file)
        failed_with = None if state is None else state.error_kind
        if isinstance(need, Caption) and failed_with in INPUT_KINDS:
            need = self._look_again(item, keeps_row=_has_caption(state)) or need
        match need:
            case Keep():
                batch.kept[need.origin] += 1
                batch.num_spared += need.spared
                if need.origin == "stale" and state is not None:
                    self.stale[state.recipe_id or ""] += 1
            case KeepFailure():
                batch.failures_kept.append((need.kind, item.file))
            case Adopt():
                batch.rows.append(self._make.adopted(item, need.caption))
                batch.num_spared += need.spared
            case Refuse():
                failure = GiveUp(item, 0, need.error.kind, need.error.reason)
                if need.keeps_row:
                    batch.refused.append(failure)
                else:
                    batch.rows.append(self._make.given_up(failure, engine=None))
            case Restore():
                self._gone[item.file] = item
            case Caption():
                batch.pending.append(item)
                batch.num_gone += need.cause == "gone"
                if failed_with is not None:
                    batch.failed_before.add(item.file)
                if _has_caption(state) or need.replaces is not None:
                    batch.replaced[item.file] = need.replaces

    def _look_again(self, item: Item, *, keeps_row: bool) -> Refuse | None:
        """Refuse an image that was broken before and still is."""
        try:
            prepare_image(self._images_root, item.file, self._image)
        except ItemError as error:
            return Refuse(error, keeps_row)
        return None


class _NamesRead:
    """The names that were read. Those with a row are marked there, since a second copy of a
    million names would take 150 MB."""

    def __init__(self, known: KnownItems) -> None:
        self._known = known
        self._others: set[str] = set()

    def __contains__(self, file: str) -> bool:
        return self._known.is_read(file) if file in self._known else file in self._others

    def add(self, file: str) -> None:
        if file in self._known:
            self._known.mark_read(file)
        else:
            self._others.add(file)
