"""One pass over the input → the plan: each item is decided as in a run, and nothing is done."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable

from vllm_caption.captions.prompt import Prompt
from vllm_caption.commands.plan.images import ImageSurvey
from vllm_caption.commands.plan.output import Rate, Recorded, disk_needs
from vllm_caption.commands.plan.report import (
    VERSION,
    Documents,
    ElementType,
    Items,
    Plan,
    Problems,
    Time,
)
from vllm_caption.config import RunConfig
from vllm_caption.cost import Costs
from vllm_caption.driver.redo import earlier_runs, read_redo
from vllm_caption.driver.resume import (
    Adopt,
    Caption,
    Keep,
    KeepFailure,
    Need,
    Origin,
    Pass,
    Refuse,
    Restore,
    Wanted,
)
from vllm_caption.driver.row_maker import bad_entry_name
from vllm_caption.errors import ItemError
from vllm_caption.formatting import command_line, encodable_name, printable
from vllm_caption.images.object_store import public_root
from vllm_caption.items import BadEntry, Item, SkippedDocument
from vllm_caption.monitoring.samples import read_gpu_s
from vllm_caption.store.caption_files import open_captions
from vllm_caption.store.disk.folding import infer_folding
from vllm_caption.store.layout import state_folder
from vllm_caption.store.lock import find_holder
from vllm_caption.store.naming import naming_of_run
from vllm_caption.store.recipe import ids_of, made_with, make_recipe


class Survey:
    """One pass over the input (`read`), then its result (`plan`)."""

    def __init__(
        self, config: RunConfig, prompt: Prompt, recorded: Recorded, *, open_images: bool
    ) -> None:
        self._config = config
        self._recorded = recorded
        recipe = make_recipe(config.engine, prompt, config.sampling, config.image)
        self._recipe = recipe
        ids = ids_of(recipe, config.output)
        redo = read_redo(state_folder(config.output, config.input.shard))
        runs = frozenset(earlier_runs(redo, config.resume, ids))
        self._prompt_name = prompt.name
        self._naming = naming_of_run(config.output, config.caption_name)
        files = open_captions(config.output, self._naming, folding=infer_folding(config.output))
        files.claims.record(recorded.states.txt_owners())
        wanted = Wanted(config.resume, ids, runs)
        self._pass = Pass(config.input.named(self._naming), recorded.states, files, wanted)
        self._reader = self._pass.reader
        self._document_problems, self._problems = Problems(), Problems()
        root = os.fspath(config.input.images_root)
        asked = prompt if open_images else None
        self._images = ImageSurvey(root, config.image, asked, self._refuse)
        self._items_by_type: Counter[str] = Counter()
        self._kept: Counter[Origin] = Counter()
        self._stale: Counter[str] = Counter()
        self._adopted = self._restored = self._spared = self._gone = self._redone = 0
        self._failed_before: Counter[str] = Counter()
        self._new_captions = 0
        self._folders: set[str] = set()

    def read(self, show: Callable[[int], None]) -> None:
        """Read the whole input once; ``show`` gets the number of documents read so far."""
        finished = False
        try:
            for entry in self._pass:
                if isinstance(entry, SkippedDocument):
                    example = f"{printable(entry.document)}: {entry.reason}"
                    self._document_problems.add(entry.kind, example)
                elif isinstance(entry, BadEntry):
                    self._problems.add("bad_name", f"{bad_entry_name(entry)}: {entry.reason}")
                else:
                    self._take(*entry)
                show(self._reader.counts.documents)
            finished = True
        finally:
            self._images.close(finish=finished)

    def _take(self, item: Item, need: Need) -> None:
        self._items_by_type[item.element_type] += 1
        match need:
            case Keep(origin, spared):
                self._kept[origin] += 1
                self._spared += spared
                if origin == "stale" and (state := self._recorded.states.get(item.file)):
                    self._stale[state.recipe_id or ""] += 1
            case KeepFailure(kind):
                reason = "not tried again"
                self._problems.add(kind, f"{printable(item.file)}: {reason}")
            case Adopt(_, spared):
                self._adopted += 1
                self._spared += spared
            case Restore():
                self._restored += 1
                self._folders.add(item.file.rpartition("/")[0])
            case Refuse(error):
                self._refuse(item, error)
            case Caption(cause):
                if cause == "again":
                    self._redone += 1
                else:
                    self._gone += cause == "gone"
                    self._new_captions += 1
                    self._folders.add(item.file.rpartition("/")[0])
                state = self._recorded.states.get(item.file)
                if state is not None and state.status == "failed":
                    self._failed_before[state.error_kind or "unknown"] += 1
                self._images.add(item)

    def _refuse(self, item: Item, error: ItemError) -> None:
        self._problems.add(error.kind, f"{printable(item.file)}: {error.reason}")

    def plan(self, rate: Rate | None, started_s: float) -> Plan:
        """The result of the pass."""
        config, items = self._config, self._items()
        images = self._images.report(dedup=config.dedup)
        to_engine = items.to_caption - (images.twins.saved if images.twins else 0)
        rows = items.to_caption + self._adopted + self._problems.count
        num_txt = self._num_txt(items.to_caption)
        return Plan(
            version=VERSION,
            command=command_line(config.arguments),
            output=os.fspath(config.output),
            images_root=public_root(config.input.images_root),
            unmatched_files=list(self._reader.unmatched_patterns),
            holder=find_holder(config.output),
            model=config.engine.model,
            prompt=self._prompt_name,
            recipe_id=self._recipe.id,
            no_type_was_skipped=self._reader.no_type_was_skipped,
            nouns=self._reader.counts.nouns,
            documents=self._documents(),
            element_types=self._element_types(),
            items=items,
            images=images,
            time=_time(config, to_engine, rate),
            disk=disk_needs(
                config,
                self._recorded,
                captions=num_txt,
                rows=rows,
                folders=self._folders if num_txt else (),
            ),
            seconds=round(time.monotonic() - started_s, 3),
        )

    def _num_txt(self, to_caption: int) -> int:
        """.txt files that a run would add."""
        if self._naming == "none":
            return 0
        return self._restored + min(self._new_captions, to_caption)

    def _documents(self) -> Documents:
        counts = self._reader.counts
        return Documents(
            read=counts.documents,
            skipped=counts.skipped,
            without_items=counts.documents_without_items,
            left_out={encodable_name(k): n for k, n in counts.left_out.most_common()},
            complete=self._reader.complete,
            problems=self._document_problems.listed(),
        )

    def _element_types(self) -> list[ElementType]:
        counts = self._reader.counts
        return [
            ElementType(name, number, counts.skipped_elements[name], self._items_by_type[name])
            for name, number in counts.elements_by_type.most_common()
        ]

    def _items(self) -> Items:
        counts = self._reader.counts
        total = counts.items + counts.bad_entries
        done = self._kept.total() + self._adopted + self._restored
        return Items(
            references=counts.references,
            duplicates=counts.duplicates,
            total=total,
            done=done,
            adopted=self._adopted,
            adopted_before=self._kept["adopted"],
            edited=self._kept["edited"],
            stale=self._kept["stale"],
            stale_made_with=made_with(self._stale, self._recipe, self._config.output),
            restored=self._restored,
            spared=self._spared,
            to_caption=total - done - self._problems.count,
            gone=self._gone,
            redone=self._redone,
            failed_before=dict(self._failed_before.most_common()),
            problems=self._problems.listed(),
        )


def _time(config: RunConfig, images: int, rate: Rate | None) -> Time:
    engines, gpus = config.engine.data_parallel_size, config.engine.gpus_per_engine
    wall_hours = images / (rate.images_per_s * engines) / 3600 if rate else None
    return Time(
        images=images,
        engines=engines,
        gpus_per_engine=gpus,
        images_per_s=round(rate.images_per_s, 3) if rate else None,
        source=rate.source if rate else None,
        wall_hours=None if wall_hours is None else round(wall_hours, 4),
        gpu_hours=None if wall_hours is None else round(wall_hours * engines * gpus, 4),
        costs=_costs(config, images, rate),
    )


def _costs(config: RunConfig, images: int, rate: Rate | None) -> Costs | None:
    if (billing := config.billing) is None:
        return None
    num_engines = config.engine.data_parallel_size
    return billing.costs(
        gpu_s=read_gpu_s(config.output, config.engine.gpus_per_engine),
        spent_on="for earlier runs",
        num_left=images,
        images_per_s=None if rate is None else rate.images_per_s * num_engines,
    )
