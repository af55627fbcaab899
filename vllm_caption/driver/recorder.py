"""The recorder: leases → requests, answers → decisions → output.

It decides nothing: it carries out the decisions of the dispatcher, the caption rules and the search
for duplicates, and counts them.

Invariants: when a method returns, its decision is on disk, with three exceptions. Captions are
written together by `write`, before the driver waits for the next event. Failures that may be the
run's fault wait until later answers show who is to blame. Failures of items that keep an earlier
caption are recorded together. What follows from a caption (its count, its twins) follows once it is
on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from vllm_caption.captions.prompt import Prompt, render
from vllm_caption.captions.rules import CaptionRules, verdict
from vllm_caption.captions.structured import judge_answer
from vllm_caption.config import SamplingConfig
from vllm_caption.driver.resume import Batch
from vllm_caption.driver.row_maker import RowMaker
from vllm_caption.errors import ABSENT_KINDS, INPUT_KINDS, ItemError, RunStopped
from vllm_caption.formatting import printable
from vllm_caption.images.object_store import public_root
from vllm_caption.items import Item
from vllm_caption.messages import Captioned, CaptionRequest, Failed, ImageRead
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.scheduling.dispatcher import (
    Accept,
    Decision,
    Dispatcher,
    GiveUp,
    Leased,
    TryAgain,
)
from vllm_caption.scheduling.duplicates import Made, Twin, Twins
from vllm_caption.scheduling.same_errors import (
    AnswerError,
    Fault,
    SameErrors,
    caption_error,
    engine_error,
)
from vllm_caption.store.disk.folder_identity import FolderIdentity
from vllm_caption.store.output import NewCaption, Output
from vllm_caption.store.rows import Row, hash_of

MAX_KEPT = 1000
"""How many failures are written per pass over the manifest."""
MAX_UNWRITTEN = 64
"""Captions that are written together, at most."""


class _Unwritten(NamedTuple):
    """A caption to write, and what to do once it is written or has failed."""

    row: Row
    saved: Callable[[Row], None]
    refused: Callable[[ItemError], None]


class Recorder:
    """Writes the result of every item. Any method that writes may raise RunStopped."""

    def __init__(
        self,
        prompt: Prompt,
        rules: CaptionRules,
        sampling: SamplingConfig,
        images_root: Path | str,
        output: Output,
        make: RowMaker,
        dispatcher: Dispatcher[Item],
        stats: RunStats,
        twins: Twins,
        same_errors: SameErrors,
    ) -> None:
        self._sampling = sampling
        self._prompt = prompt
        self._rules = rules
        self._output = output
        self._make = make
        self._dispatcher = dispatcher
        self._stats = stats
        self._twins = twins
        self._same_errors = same_errors
        self._failed_before: set[str] = set()
        self._unwritten: list[_Unwritten] = []
        self._open: list[tuple[GiveUp[Item], int]] = []
        """Failures, each with its engine, that count as the run's fault unless a good answer
        comes."""
        self._replaced: dict[str, int | None] = {}
        """Pending items that already have a caption: see `Batch`."""
        self._kept: dict[str, tuple[GiveUp[Item], str | None]] = {}
        """Failures of items whose earlier caption stays, each with the text of its .txt."""
        self._flags_of_leaders: dict[str, tuple[str, ...]] = {}
        self._images_root = public_root(images_root)
        self._images = None if isinstance(images_root, str) else FolderIdentity(images_root)

    def take_in(self, batch: Batch) -> None:
        """Record what needs no engine, and queue what does."""
        for row in batch.rows:
            self._output.save_row(row)
            if row.status == "captioned":
                self._stats.adopted += 1
            else:
                example = f"{printable(row.file)}: {row.error}"
                self._stats.count_failure(row.error_kind or "", example)
        for failure in batch.refused:
            self._keep(failure, self._output.read_caption(failure.item.file))
        for kind, file in batch.failures_kept:
            self._stats.count_failure(kind, f"{printable(file)}: not tried again")
        for item, caption in batch.restored:
            self._restore(item, caption)
        self._stats.done_before += batch.num_done
        self._stats.kept.update(batch.kept)
        self._stats.spared += batch.num_spared
        self._stats.gone += batch.num_gone
        self._failed_before |= batch.failed_before
        self._replaced |= batch.replaced
        if batch.kept["current"] or batch.restored:
            self._same_errors.clear()
        self._dispatcher.add(batch.pending)

    def _restore(self, item: Item, caption: str) -> None:
        try:
            is_restored = self._output.restore_caption(item.file, caption)
        except ItemError as error:
            self._keep(GiveUp(item, 0, error.kind, error.reason), None)
            return
        self._stats.done_before += 1
        if is_restored:
            self._stats.restored += 1
        else:  # somebody else wrote it first
            self._stats.kept["edited"] += 1

    def requests(self, engine: int, window: int) -> tuple[CaptionRequest, ...]:
        """The requests that this engine should start now, if any."""
        while leased := self._dispatcher.take(engine, window):
            if requests := tuple(self._requests(engine, leased)):
                return requests
        return ()

    def _requests(self, engine: int, leased: list[Leased[Item]]) -> Iterator[CaptionRequest]:
        for lease in leased:
            try:
                text = render(self._prompt, lease.item)
            except ItemError as error:
                self.answered(engine, Failed(lease.lease, error.kind, error.reason))
                continue
            temperature, seed = self._resampling(lease.rejected)
            yield CaptionRequest(
                lease.lease, lease.item.file, text.user, text.system, temperature, seed
            )

    def _resampling(self, rejected: int) -> tuple[float | None, int | None]:
        """Temperature and seed of a retry after a caption that broke a rule."""
        if not rejected:
            return None, None
        seed = (self._sampling.seed or 0) + rejected
        return max(self._sampling.temperature, 0.2 + 0.2 * rejected), seed

    def answered(self, engine: int, answer: Captioned | Failed) -> str | None:
        """One attempt has ended. Returns what is wrong with the engine, if it is to blame. Raises
        RunStopped if every engine gives this error."""
        item = self._dispatcher.held(engine, answer.lease)
        error: AnswerError | None = None
        if isinstance(answer, Captioned):
            judged = judge_answer(answer.caption, answer.finish_reason, self._rules, self._prompt)
            caption, flags = judged.caption, judged.flags
            error = caption_error(answer.caption, flags)
            if item is not None:
                self._stats.rejections.count(item.file, caption, flags)
                if error is None:
                    self._same_errors.clear(engine)
                    self.settle_open()
            cleaned = msgspec.structs.replace(answer, caption=caption, structured=judged.structured)
            decision = self._dispatcher.captioned(engine, cleaned, flags, judged.problem)
        else:
            if answer.kind in ("engine_error", "timeout"):
                error = engine_error(answer.reason)
            decision = self._dispatcher.failed(engine, answer)
            if isinstance(decision, GiveUp) and self._all_gone(answer):
                raise RunStopped(
                    f"--images-root {self._images_root} is gone; mount it and run again"
                )
        if decision is None or item is None:
            return None
        fault = "items" if error is None else self._whose_fault(engine, item, error)
        if fault == "open" and isinstance(decision, GiveUp):
            self._open.append((decision, engine))
        else:
            if isinstance(answer, Captioned):
                self._stats.rejections.retried += isinstance(decision, TryAgain)
                self._stats.rejections.kept += (
                    isinstance(decision, Accept) and verdict(decision.flags) != "accept"
                )
            self.settle(decision, engine)
        return error.said if error is not None and fault == "engine" else None

    def _whose_fault(self, engine: int, item: Item, error: AnswerError) -> Fault:
        if item.file in self._failed_before:
            return "items"
        fault = self._same_errors.add(engine, item.file, error)
        if fault == "run":
            raise RunStopped(self._same_errors.conclusion(error))
        if fault == "items":
            self.settle_open()
        return fault

    def settle_open(self) -> None:
        """Record the waiting failures: their items are to blame."""
        waiting, self._open = self._open, []
        for failure, engine in waiting:
            self.settle(failure, engine)

    def _all_gone(self, answer: Failed) -> bool:
        """Check a folder here; an object store is checked by the worker, since it may be slow."""
        if self._images is None:
            return answer.root_gone
        return answer.kind in ABSENT_KINDS and not self._images.still_there()

    def image_read(self, engine: int, seen: ImageRead) -> bool:
        """An image was read; returns whether it is a twin whose attempt can be cancelled."""
        item = self._dispatcher.held(engine, seen.lease)
        if item is None:
            return True
        twin = Twin(item, seen.image)
        self._dispatcher.add(left.item for left in self._twins.changed(twin))
        standing = self._twins.claim(twin)
        if standing.place == "leads":
            return False
        if standing.of is not None:
            of, text_hash, kept, _ = standing.of
            caption = self._output.read_caption(of) if kept is None else kept
            if caption is None or hash_of(caption) != text_hash:  # somebody removed or changed it
                self._twins.lead(twin)
                return False
            self._fan_out(twin, standing.of, caption, self._flags_of_leaders.get(of, ()))
        self._dispatcher.withdraw(engine, seen.lease)
        return True

    def _fan_out(self, twin: Twin, of: Made, caption: str, flags: tuple[str, ...]) -> None:
        row = self._make.same_as(twin, of, caption, flags)
        saved = partial(self._twin_saved, flags)
        self._unwritten.append(_Unwritten(row, saved, partial(self._twin_refused, twin)))

    def _twin_refused(self, twin: Twin, error: ItemError) -> None:
        self._fail(GiveUp(twin.item, 0, error.kind, error.reason), None)

    def _twin_saved(self, flags: tuple[str, ...], saved: Row) -> None:
        if saved.recipe_id is None:
            self._stats.adopted += 1
            return
        self._stats.captioned += 1
        self._stats.twins += 1
        self._stats.flags.update(flags)

    def settle(self, decision: Decision[Item], engine: int) -> None:
        """Record the result of an item."""
        if isinstance(decision, Accept):
            row = self._make.captioned(decision, engine)
            saved = partial(self._caption_saved, decision, engine)
            refused = partial(self._caption_refused, decision, engine)
            self._unwritten.append(_Unwritten(row, saved, refused))
        elif isinstance(decision, GiveUp):
            self._stats.rejections.failed += decision.kind == "caption_rejected"
            self._fail(decision, engine)
            waited = self._twins.end(decision.item, None)
            if decision.kind in INPUT_KINDS or decision.kind == "timeout":
                # Its file is to blame, not the pixels that its twins share.
                self._dispatcher.add(twin.item for twin in waited)
                return
            reason = f"the same image as {decision.item.file}: {decision.reason}"
            for twin in waited:
                self._fail(GiveUp(twin.item, 0, decision.kind, reason), engine)
        else:
            self._stats.retried += 1

    def finish(self) -> None:
        """No more answers will come: write the failures that wait in memory."""
        self.settle_open()
        self._record_kept()

    def _record_kept(self) -> None:
        kept, self._kept = self._kept, {}
        rows = self._output.captioned_rows(kept) if kept else {}
        for file, (failure, caption) in kept.items():
            row = rows.get(file)
            if row is None and caption is not None:
                row = self._make.adopted(failure.item, caption)
            if row is None:  # somebody has changed the manifest
                self._output.save_row(self._make.given_up(failure, None))
            else:
                self._output.save_row(self._make.kept(row, failure))

    def _fail(self, failure: GiveUp[Item], engine: int | None) -> None:
        file = failure.item.file
        caption = self._output.read_caption(file)
        if caption is not None or file in self._replaced:
            self._keep(failure, caption)
        else:
            self._output.save_row(self._make.given_up(failure, engine))
            self._count(failure)

    def _keep(self, failure: GiveUp[Item], caption: str | None) -> None:
        """The item fails, but its earlier caption stays in its .txt or in its row."""
        self._kept[failure.item.file] = failure, caption
        if len(self._kept) == MAX_KEPT:
            self._record_kept()
        self._count(failure)

    def _count(self, failure: GiveUp[Item]) -> None:
        example = f"{printable(failure.item.file)}: {failure.reason}"
        self._stats.count_failure(failure.kind, example)

    @property
    def num_unwritten(self) -> int:
        """Captions that wait for `write`."""
        return len(self._unwritten)

    def write(self) -> None:
        """Write the captions that wait, and those of their twins."""
        while batch := self._unwritten[:MAX_UNWRITTEN]:
            del self._unwritten[: len(batch)]
            files = [new.row.file for new in batch]
            outcomes = self._output.save_captions(
                [
                    NewCaption(new.row, self._replaced.get(file), file in self._replaced)
                    for new, file in zip(batch, files, strict=True)
                ]
            )
            stopped: RunStopped | None = None
            for new, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, RunStopped):
                    stopped = outcome
                elif isinstance(outcome, ItemError):
                    new.refused(outcome)
                else:
                    self._replaced.pop(outcome.file, None)
                    new.saved(outcome)
            if stopped is not None:
                raise stopped

    def _caption_refused(self, accepted: Accept[Item], engine: int, error: ItemError) -> None:
        failure = GiveUp(
            accepted.item, accepted.attempts, error.kind, error.reason, accepted.result
        )
        self._fail(failure, engine)
        # Its name is to blame, not its pixels: caption the twins that waited for it.
        left = self._twins.end(accepted.item, None)
        self._dispatcher.add(twin.item for twin in left)

    def _caption_saved(self, accepted: Accept[Item], engine: int, saved: Row) -> None:
        result, now_s = accepted.result, asyncio.get_running_loop().time()
        if saved.recipe_id is None:  # somebody else wrote it first, and theirs stays
            self._stats.adopted += 1
        else:
            self._stats.count_caption(
                engine,
                result.prompt_tokens,
                result.output_tokens,
                now_s,
                result.timings,
            )
            self._stats.flags.update(accepted.flags)
            self._stats.keep_caption(saved.file, saved.caption or "")
        file, flags = accepted.item.file, accepted.flags
        if flags:
            self._flags_of_leaders[file] = flags
        kept = result.caption if self._output.files.naming == "none" else None
        made = Made(file, hash_of(result.caption), kept, result.structured)
        for twin in self._twins.end(accepted.item, made):
            self._fan_out(twin, made, result.caption, flags)
