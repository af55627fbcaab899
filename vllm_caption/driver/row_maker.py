"""An item and its result → its row in the manifest."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from vllm_caption.config import CaptionName
from vllm_caption.items import BadEntry, Item
from vllm_caption.messages import ImageFacts, Timings
from vllm_caption.scheduling.dispatcher import Accept, GiveUp
from vllm_caption.scheduling.duplicates import Made, Twin
from vllm_caption.store.layout import caption_name
from vllm_caption.store.recipe import Recipe
from vllm_caption.store.rows import Row


@dataclass(frozen=True, slots=True)
class RowMaker:
    """Makes the rows of one run."""

    run_id: str
    images_root: str
    recipe: Recipe
    naming: CaptionName = "file"
    _made_by: dict[str, str] = field(init=False)

    def captioned(self, accepted: Accept[Item], engine: int) -> Row:
        """A caption that this run made."""
        result = accepted.result
        return self._row(
            accepted.item,
            status="captioned",
            caption_path=caption_path(accepted.item.file, self.naming),
            caption=result.caption,
            structured=result.structured,
            finish_reason=result.finish_reason,
            flags=accepted.flags,
            attempts=accepted.attempts,
            prompt_tokens=result.prompt_tokens,
            output_tokens=result.output_tokens,
            engine=engine,
            **self._made_by,
            **_facts(result.image),
            **_timings(result.timings),
        )

    def given_up(self, failure: GiveUp[Item], engine: int | None) -> Row:
        """An item that failed in this run."""
        last = failure.last
        return self._row(
            failure.item,
            status="failed",
            error_kind=failure.kind,
            error=failure.reason,
            attempts=failure.attempts,
            engine=engine,
            **self._made_by,
            **(_facts(last.image) if last else {}),
            **(_timings(last.timings) if last else {}),
        )

    def kept(self, row: Row, failure: GiveUp[Item]) -> Row:
        """A caption that stays, since a new one was requested but could not be made."""
        return msgspec.structs.replace(
            row, run_id=self.run_id, error_kind=failure.kind, error=failure.reason
        )

    def adopted(self, item: Item, caption: str) -> Row:
        """A .txt without a row, which is adopted."""
        return adopted(item, caption, self.images_root, self.run_id, self.naming)

    def same_as(self, twin: Twin, of: Made, caption: str, flags: tuple[str, ...]) -> Row:
        """The caption of a byte-identical image with the same prompt."""
        return self._row(
            twin.item,
            status="captioned",
            caption_path=caption_path(twin.item.file, self.naming),
            caption=caption,
            structured=of.structured,
            flags=flags,
            same_as=of.file,
            **self._made_by,
            **_facts(twin.image),
        )

    def bad_entry(self, entry: BadEntry) -> Row:
        """An element that names no file; it is identified by its index in its document."""
        return Row(
            file=bad_entry_name(entry),
            document=entry.document,
            element_index=entry.element_index,
            element_type=entry.element_type,
            status="failed",
            error_kind="bad_name",
            error=entry.reason,
            finished_at=_now_us(),
            run_id=self.run_id,
        )

    def _row(self, item: Item, *, status: str, **columns: object) -> Row:
        return Row(
            file=item.file,
            document=item.document.name,
            element_index=item.element_index,
            element_type=item.element_type,
            item_id=item.item_id,
            image_path=f"{self.images_root}/{item.file}",
            status=status,
            finished_at=_now_us(),
            run_id=self.run_id,
            **columns,  # type: ignore[arg-type]
        )

    def __post_init__(self) -> None:
        recipe = self.recipe
        made_by = {
            "recipe_id": recipe.id,
            "model": recipe.model,
            "prompt_name": recipe.prompt_name,
        }
        object.__setattr__(self, "_made_by", made_by)


def caption_path(file: str, naming: CaptionName) -> str | None:
    """The path of a row's .txt in the output folder; None if it has none."""
    return None if naming == "none" else caption_name(file, naming)


def adopted(
    item: Item, caption: str, images_root: str, run_id: str, naming: CaptionName = "file"
) -> Row:
    """The row of a .txt that no run made."""
    return Row(
        file=item.file,
        document=item.document.name,
        element_index=item.element_index,
        element_type=item.element_type,
        item_id=item.item_id,
        image_path=f"{images_root}/{item.file}",
        caption_path=caption_path(item.file, naming),
        status="captioned",
        caption=caption,
        finished_at=_now_us(),
        run_id=run_id,
    )


def bad_entry_name(entry: BadEntry) -> str:
    """The value of `file` in the row of an element that names none."""
    named = f": {entry.file}" if entry.file else ""
    return f"{entry.document}[{entry.element_index}]{named}"


def _facts(image: ImageFacts | None) -> dict[str, object]:
    if image is None:
        return {}
    return {
        "image_width": image.width,
        "image_height": image.height,
        "backdrop": image.backdrop,
        "image_sha256": image.sha256,
        "twin_key": image.twin_key.hex(),  # bytes cannot be JSON
    }


def _timings(timings: Timings) -> dict[str, object]:
    return msgspec.structs.asdict(timings)


def _now_us() -> int:
    return time.time_ns() // 1000
