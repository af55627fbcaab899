"""What is left to do: the input, against what earlier runs have done.

`decide` is the one place where a run, and its plan, find out what an item needs. Done is done,
whatever made it: a captioned row, or a .txt that is not empty. A failed item is tried again; what
else is captioned again is the user's choice.

Invariants: a caption that cannot be placed is refused before an engine sees its image; a rerun over
files that are still broken starts no engine; the end of the input is always reported, and a failure
never passes for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from vllm_caption.config import ImageConfig, InputConfig, ResumeConfig
from vllm_caption.driver.row_maker import RowMaker
from vllm_caption.errors import INPUT_KINDS, ItemError, RunStopped
from vllm_caption.images.decode import prepare_image
from vllm_caption.images.files import check_name
from vllm_caption.inputs.manifest import ManifestReader
from vllm_caption.items import BadEntry, Item, SkippedDocument
from vllm_caption.scheduling.dispatcher import GiveUp
from vllm_caption.store.caption_files import CaptionFiles
from vllm_caption.store.rows import ItemState, Row

BATCH_SIZE = 256


# --- one item ------------------------------------------------------------------------------------


class Keep(NamedTuple):
    """Its caption stays. ``stale``: another recipe made it."""

    stale: bool


class KeepFailure(NamedTuple):
    """It failed before, with this kind, and is not tried now."""

    kind: str


class Adopt(NamedTuple):
    """The text of its .txt becomes its caption; nothing is recorded of what made it."""

    caption: str


class Caption(NamedTuple):
    """An engine captions it. ``again``: it has a caption, which the new one replaces."""

    again: bool


class Refuse(NamedTuple):
    """It fails: no caption can have its name or its place."""

    error: ItemError


FRESH, STALE = Keep(stale=False), Keep(stale=True)
"""One of these is most of a resumed input, a million times over."""

Need = Keep | KeepFailure | Adopt | Caption | Refuse


def decide(
    file: str,
    state: ItemState | None,
    files: CaptionFiles,
    resume: ResumeConfig,
    recipe_ids: frozenset[str],
) -> Need:
    """What an item needs, by its last row and, where that does not settle it, by what is on disk.

    ``recipe_ids``: those of this run's recipe.
    """
    if state is not None and is_settled(state, resume, recipe_ids):
        if state.status == "failed":
            return KeepFailure(state.error_kind or "")
        return FRESH if state.recipe_id in recipe_ids else STALE
    again = state is not None and state.status == "captioned"
    try:
        check_name(file)
        files.check_name(file)
        if not again and resume.redo not in ("all", "stale"):
            caption = files.read(file)
            if caption is not None:
                return Adopt(caption)
        files.check_place(file)
    except ItemError as error:
        return Refuse(error)
    return Caption(again)


def is_settled(state: ItemState, resume: ResumeConfig, recipe_ids: frozenset[str]) -> bool:
    """Whether the last row of an item stays its last."""
    if resume.redo_kinds:  # these and no others
        return {state.error_kind, *state.flags.split(",")}.isdisjoint(resume.redo_kinds)
    if state.status != "captioned" or resume.redo == "all":
        return False
    if resume.redo == "stale":
        return state.recipe_id in recipe_ids
    return resume.redo != "flagged" or not state.flags


# --- the whole input -----------------------------------------------------------------------------


@dataclass(slots=True)
class Batch:
    """A stretch of the input, decided: items for the engines, rows that need no engine, and counts.

    ``failed_before``: files that are pending and have failed in an earlier run.
    ``failures_kept``: kind and file. ``num_found``: items found so far, here and before.
    """

    pending: list[Item] = field(default_factory=list)
    failed_before: set[str] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    failures_kept: list[tuple[str, str]] = field(default_factory=list)
    num_done: int = 0
    num_stale: int = 0
    num_found: int = 0

    @property
    def size(self) -> int:
        """Items and entries decided."""
        return len(self.pending) + len(self.rows) + len(self.failures_kept) + self.num_done


@dataclass(frozen=True, slots=True)
class InputEnded:
    """There is no more input, or reading it failed."""

    failure: RunStopped | None


class Pending:
    """One pass over the input."""

    def __init__(
        self,
        config: InputConfig,
        image: ImageConfig,
        resume: ResumeConfig,
        recipe_ids: frozenset[str],
        states: dict[str, ItemState],
        files: CaptionFiles,
        make: RowMaker,
    ) -> None:
        """``states``: of every item that has a row; changed by the pass and empty at its end."""
        self.reader = ManifestReader(config, lambda: _NamesRead(states))
        self.skipped: list[SkippedDocument] = []
        self._images_root = os.fspath(config.images_root)
        self._image = image
        self._resume = resume
        self._recipe_ids = recipe_ids
        self._states = states
        self._files = files
        self._make = make
        self._left = False

    def start(self, put: Callable[[Batch | InputEnded], None]) -> None:
        """Read in a thread, since reading blocks on files. ``put`` is called in the running loop,
        with every batch and then the end."""
        loop = asyncio.get_running_loop()

        def send(event: Batch | InputEnded) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
                loop.call_soon_threadsafe(put, event)

        threading.Thread(target=self._read, args=(send,), name="input", daemon=True).start()

    def leave(self) -> None:
        """Read no further. The thread ends when it can, and must not be waited for."""
        self._left = True

    def _read(self, send: Callable[[Batch | InputEnded], None]) -> None:
        failure: RunStopped | None = RunStopped(
            "internal error while reading the input (traceback above)"
        )
        try:
            for batch in self.batches():
                send(batch)
            failure = None
        except OSError as error:
            failure = RunStopped(f"{error.filename or 'the input'} cannot be read: {error}")
        finally:
            send(InputEnded(failure))

    def batches(self) -> Iterator[Batch]:
        """The whole input, in its order."""
        batch, started = Batch(), False
        for entry in self.reader:
            if self._left:
                return
            if isinstance(entry, SkippedDocument):
                self.skipped.append(entry)
            elif isinstance(entry, BadEntry):
                batch.rows.append(self._make.bad_entry(entry))
            else:
                self._take(entry, batch)
            # The first pending item goes at once: an engine can start while the rest is read.
            if batch.size >= BATCH_SIZE or (batch.pending and not started):
                started = started or bool(batch.pending)
                yield self._counted(batch)
                batch = Batch()
        self._states.clear()  # a million names are not needed any more
        yield self._counted(batch)

    def _counted(self, batch: Batch) -> Batch:
        batch.num_found = self.reader.counts.items + self.reader.counts.bad_entries
        return batch

    def _take(self, item: Item, batch: Batch) -> None:
        state = self._states.get(item.file)
        need = decide(item.file, state, self._files, self._resume, self._recipe_ids)
        if isinstance(need, Caption) and state is not None and state.error_kind in INPUT_KINDS:
            need = self._look_again(item) or need
        match need:
            case Keep():
                batch.num_done += 1
                batch.num_stale += need.stale
            case KeepFailure():
                batch.failures_kept.append((need.kind, item.file))
            case Adopt():
                batch.rows.append(self._make.adopted(item, need.caption))
                batch.num_stale += 1
            case Refuse():
                failure = GiveUp(item, 1, need.error.kind, need.error.reason)
                batch.rows.append(self._make.given_up(failure, engine=None))
            case Caption():
                batch.pending.append(item)
                if state is not None and state.status == "failed":
                    batch.failed_before.add(item.file)

    def _look_again(self, item: Item) -> Refuse | None:
        """Whether an image that was at fault still is."""
        try:
            prepare_image(self._images_root, item.file, self._image)
        except ItemError as error:
            return Refuse(error)
        return None


class _NamesRead:
    """The names that were read. Those that have a row are marked there: a second copy of a million
    names would take 150 MB."""

    def __init__(self, states: dict[str, ItemState]) -> None:
        self._states = states
        self._others: set[str] = set()
        self._marked: dict[ItemState, ItemState] = {}

    def __contains__(self, file: str) -> bool:
        state = self._states.get(file)
        return file in self._others if state is None else bool(state.read)

    def add(self, file: str) -> None:
        state = self._states.get(file)
        if state is None:
            self._others.add(file)
        elif (marked := self._marked.get(state)) is not None:
            self._states[file] = marked
        else:
            self._states[file] = self._marked[state] = state._replace(read=True)
