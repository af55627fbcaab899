"""The recorder: leases → requests, answers → decisions → output.

It decides nothing: it carries out the decisions of the dispatcher, the caption rules and the search
for duplicates, and counts them. Invariant: when a method returns, its decision is on disk; only
failures that may be the run's fault wait in memory, until later answers show who is to blame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vllm_caption.captions.prompt import Prompt, render
from vllm_caption.captions.rules import CaptionRules
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
from vllm_caption.scheduling.dispatcher import Accept, Decision, Dispatcher, GiveUp, Leased
from vllm_caption.scheduling.duplicates import Made, Twin, Twins
from vllm_caption.scheduling.same_errors import (
    AnswerError,
    Fault,
    SameErrors,
    caption_error,
    engine_error,
)
from vllm_caption.store.disk.folder_identity import FolderIdentity
from vllm_caption.store.output import Output
from vllm_caption.store.rows import Row, hash_of

MAX_KEPT = 1000
"""How many failures are written per pass over the manifest."""


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
        self._open: list[tuple[GiveUp[Item], int]] = []
        """Failures, each with its engine, that the run is blamed for unless a good answer comes."""
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
            self._keep(GiveUp(item, 1, error.kind, error.reason), None)
            return
        self._stats.done_before += 1
        if is_restored:
            self._stats.restored += 1
        else:  # somebody was quicker
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
                self._stats.rejections.count(printable(item.file), caption, flags)
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
                raise RunStopped(f"--images-root {self._images_root} is gone; mount it, run again")
        if decision is None or item is None:
            return None
        fault = "items" if error is None else self._whose_fault(engine, item, error)
        if fault == "open" and isinstance(decision, GiveUp):
            self._open.append((decision, engine))
        else:
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
            if caption is None or hash_of(caption) != text_hash:  # somebody took or changed it
                self._twins.lead(twin)
                return False
            self._fan_out(twin, standing.of, caption, self._flags_of_leaders.get(of, ()))
        self._dispatcher.withdraw(engine, seen.lease)
        return True

    def _fan_out(self, twin: Twin, of: Made, caption: str, flags: tuple[str, ...]) -> None:
        try:
            saved = self._save(self._make.same_as(twin, of, caption, flags))
        except ItemError as error:
            self._fail(GiveUp(twin.item, 0, error.kind, error.reason), None)
            return
        if saved.recipe_id is None:
            self._stats.adopted += 1
            return
        self._stats.captioned += 1
        self._stats.twins += 1
        self._stats.flags.update(flags)

    def settle(self, decision: Decision[Item], engine: int) -> None:
        """Write the result of an item."""
        if isinstance(decision, Accept):
            self._save_caption(decision, engine)
        elif isinstance(decision, GiveUp):
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

    def _save(self, row: Row) -> Row:
        had_caption = row.file in self._replaced
        saved = self._output.save_caption(row, self._replaced.get(row.file), had_caption)
        self._replaced.pop(row.file, None)
        return saved

    def _save_caption(self, accepted: Accept[Item], engine: int) -> None:
        try:
            saved = self._save(self._make.captioned(accepted, engine))
        except ItemError as error:
            kind, reason = error.kind, error.reason
            self._fail(
                GiveUp(accepted.item, accepted.attempts, kind, reason, accepted.result), engine
            )
            # Its name is to blame, not its pixels: caption the twins that waited for it.
            left = self._twins.end(accepted.item, None)
            self._dispatcher.add(twin.item for twin in left)
            return
        result, now_s = accepted.result, asyncio.get_running_loop().time()
        if saved.recipe_id is None:  # somebody was faster, and theirs stays
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
