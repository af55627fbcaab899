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
from vllm_caption.driver.resume import Adopt, Caption, Keep, KeepFailure, Refuse, decide
from vllm_caption.errors import ItemError
from vllm_caption.formatting import printable
from vllm_caption.inputs.manifest import ManifestReader
from vllm_caption.items import BadEntry, Item, SkippedDocument
from vllm_caption.store.caption_files import CaptionFiles
from vllm_caption.store.disk.folding import look_at_disk
from vllm_caption.store.recipe import ids_of, make_recipe


class Survey:
    """One pass over the input (`read`), then its result (`plan`)."""

    def __init__(
        self, config: RunConfig, prompt: Prompt, recorded: Recorded, *, open_images: bool
    ) -> None:
        self._config = config
        self._recorded = recorded
        recipe = make_recipe(config.engine, prompt, config.sampling, config.image)
        self._recipe_id = recipe.id
        self._recipe_ids = ids_of(recipe, config.output)
        self._prompt_name = prompt.name
        self._files = CaptionFiles(config.output, folding=look_at_disk(config.output))
        captioned = (f for f, state in recorded.states.items() if state.status == "captioned")
        self._files.claims.record(captioned)
        self._reader = ManifestReader(config.input)
        self._document_problems, self._problems = Problems(), Problems()
        root = os.fspath(config.input.images_root)
        asked = prompt if open_images else None
        self._images = ImageSurvey(root, config.image, asked, self._refuse)
        self._items_by_type: Counter[str] = Counter()
        self._done = self._adopted = self._stale = self._redone = 0
        self._failed_before: Counter[str] = Counter()
        self._new_captions = 0
        self._folders: set[str] = set()

    def read(self, show: Callable[[int], None]) -> None:
        """Read the whole input once; ``show`` gets the number of documents read so far."""
        finished = False
        try:
            for entry in self._reader:
                if isinstance(entry, SkippedDocument):
                    self._document_problems.add(entry.kind, f"{entry.document}: {entry.reason}")
                elif isinstance(entry, BadEntry):
                    shown = f"{entry.document}[{entry.element_index}]: {entry.file}"
                    self._problems.add("bad_name", f"{shown}: {entry.reason}")
                else:
                    self._take(entry)
                show(self._reader.counts.documents)
            finished = True
        finally:
            self._images.close(finish=finished)

    def _take(self, item: Item) -> None:
        self._items_by_type[item.element_type] += 1
        state = self._recorded.states.get(item.file)
        match decide(item.file, state, self._files, self._config.resume, self._recipe_ids):
            case Keep(stale):
                self._done += 1
                self._stale += stale
            case KeepFailure(kind):
                reason = "not tried again (--redo-kind)"
                self._problems.add(kind, f"{printable(item.file)}: {reason}")
            case Adopt():
                self._done += 1
                self._adopted += 1
                self._stale += 1
            case Refuse(error):
                self._refuse(item, error)
            case Caption(again):
                if again:
                    self._redone += 1
                else:
                    self._new_captions += 1
                    self._folders.add(item.file.rpartition("/")[0])
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
        return Plan(
            version=VERSION,
            output=os.fspath(config.output),
            model=config.engine.model,
            prompt=self._prompt_name,
            recipe_id=self._recipe_id,
            no_type_was_skipped=self._reader.no_type_was_skipped,
            documents=self._documents(),
            element_types=self._element_types(),
            items=items,
            images=images,
            time=_time(config, to_engine, rate),
            disk=disk_needs(
                config,
                self._recorded,
                captions=min(self._new_captions, items.to_caption),
                rows=rows,
                folders=self._folders,
            ),
            seconds=round(time.monotonic() - started_s, 3),
        )

    def _documents(self) -> Documents:
        counts = self._reader.counts
        return Documents(
            read=counts.documents,
            skipped=counts.skipped,
            without_shapes=counts.documents_without_shapes,
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
        return Items(
            references=counts.shape_references,
            duplicates=counts.duplicates,
            total=total,
            done=self._done,
            adopted=self._adopted,
            stale=self._stale,
            to_caption=total - self._done - self._problems.count,
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
    )
