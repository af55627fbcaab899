"""The plan as text: one screen, the next step last."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Final

from vllm_caption.commands.plan.report import (
    Disk,
    Images,
    Items,
    Plan,
    Problem,
    Size,
    Time,
    TwinFiles,
)
from vllm_caption.formatting import (
    INDENT,
    byte_size,
    counted,
    duration,
    join_lines,
    section,
    tally,
)
from vllm_caption.inputs.reader import no_type_skipped
from vllm_caption.inputs.source import files_left_out
from vllm_caption.monitoring.summary import (
    named_again,
    no_such_item,
    people_wrote,
    stale_captions,
)

MAX_TYPES: Final = 8
MAX_NAME_CHARS: Final = 32
MIN_LINE_CHARS: Final = 120
PILOTS: Final = (2000, 200, 20)
"""Sizes to suggest."""


def describe(plan: Plan) -> str:
    """The whole text. The command at its end is never cut off."""
    max_chars = max(MIN_LINE_CHARS, shutil.get_terminal_size().columns)
    return "\n".join((join_lines(_lines(plan), max_chars), *_next(plan)))


def _lines(plan: Plan) -> Iterator[str]:
    yield from _documents(plan)
    yield from _element_types(plan)
    yield from _items(plan.items, in_use=plan.holder is not None)
    if plan.holder is not None:
        yield f"{INDENT}the output is in use by {plan.holder}: these numbers change meanwhile"
    yield from _images(plan.images)
    yield from _time(plan.time)
    yield from _cost(plan.time)
    yield from _disk(plan.disk)


def _documents(plan: Plan) -> Iterator[str]:
    documents = plan.documents
    text = f"{documents.read:,} read, {documents.skipped:,} skipped"
    if documents.without_items:
        text += f", {documents.without_items:,} with nothing to caption"
    if not documents.complete:
        text += " (stopped by --limit)"
    yield section(f"{plan.nouns.document.capitalize()}s", text)
    yield from _problems(documents.problems)
    if documents.left_out:
        yield INDENT + files_left_out(documents.left_out)
    if plan.unmatched_files:
        yield INDENT + no_such_item(plan.unmatched_files)


def _element_types(plan: Plan) -> Iterator[str]:
    types = plan.element_types
    if not any(kind.name for kind in types):  # the input has none
        return
    noun = plan.nouns.element
    skipped = sum(kind.skipped for kind in types)
    number = sum(kind.elements for kind in types)
    have = "has" if skipped == 1 else "have"
    text = f"{number:,}, of which {skipped:,} {have} a type that is skipped"
    yield section(f"{noun.capitalize()}s", text)
    names = [(kind.name or "no type")[:MAX_NAME_CHARS] for kind in types[:MAX_TYPES]]
    width = max(map(len, names), default=0)
    for name, kind in zip(names, types, strict=False):
        what = "skipped" if kind.skipped else counted(kind.items, "item")
        yield f"{INDENT}{name:{width}}  {kind.elements:>11,}  {what}"
    if rest := types[MAX_TYPES:]:
        left = sum(kind.elements for kind in rest)
        yield f"{INDENT}{counted(len(rest), 'more type')}, {counted(left, noun)}"
    if plan.no_type_was_skipped:
        yield INDENT + no_type_skipped()


def _items(items: Items, *, in_use: bool) -> Iterator[str]:
    refused = sum(problem.count for problem in items.problems)
    kept = "to keep" if items.redone else "captioned already"
    yield section(
        "Items",
        f"{items.total:,} = {items.done:,} {kept} + {items.to_caption:,} to caption"
        f" + {refused:,} known to fail",
    )
    if items.duplicates:
        yield INDENT + named_again(items.duplicates)
    without_row = counted(items.adopted, "caption")
    if items.adopted and in_use:  # the run has just written most of them
        yield f"{INDENT}{without_row} without a row yet"
    elif items.adopted:
        yield f"{INDENT}{without_row} without a row will be kept"
    if items.stale:
        lines = stale_captions(items.stale, items.stale_made_with)
        yield from (f"{INDENT}{line}" for line in lines)
    adopted = items.adopted_before + (0 if in_use else items.adopted)
    if theirs := people_wrote(items.edited, adopted):
        yield f"{INDENT}{theirs}: kept, also by --redo"
    if items.spared:
        text = "of these would be captioned again with --overwrite-edited"
        yield f"{INDENT}{items.spared:,} {text}"
    if missing := items.restored + items.gone:
        how = f"{items.restored:,} to write again from their rows, {items.gone:,} to caption again"
        yield f"{INDENT}{counted(missing, 'caption file')} missing or empty: {how}"
    if items.redone:
        yield f"{INDENT}{counted(items.redone, 'caption')} will be replaced (--redo)"
    if items.failed_before:
        yield f"{INDENT}failed before and will be retried: {tally(items.failed_before)}"
    yield from _problems(items.problems)


def _problems(problems: list[Problem]) -> Iterator[str]:
    width = max((len(problem.kind) for problem in problems), default=0)
    for problem in problems:
        yield f"{INDENT}{problem.kind:{width}} {problem.count:>6,}, e.g. {problem.examples[0]}"


def _images(images: Images) -> Iterator[str]:
    if not images.found:
        return
    text = f"{images.found:,} found, {byte_size(images.bytes)}"
    yield section("Images", text + ("" if images.opened else " (not opened)"))
    if (sizes := images.sizes) is not None:
        ordered = (sizes.smallest, sizes.median, sizes.largest)
        small, median, large = (_pixels(size) for size in ordered)
        yield f"{INDENT}width × height, ordered by area: {small} to {large}, median {median}"
    if (tokens := images.vision_tokens) is not None:
        yield (
            f"{INDENT}vision tokens: {tokens.min:,} to {tokens.max:,}, median {tokens.median:,},"
            f" mean {tokens.mean:,}, {tokens.total:,} in all (Qwen2.5-VL)"
        )
    if images.backdrops:
        yield f"{INDENT}backdrops: {tally(images.backdrops)}"
    if images.twins is not None and images.twins.files:
        yield INDENT + _twins(images.twins, images.found)
    if images.equal_size and images.dedup and not images.opened:
        text = "have the same size as another; --images finds the copies among them"
        yield f"{INDENT}{images.equal_size:,} {text}"


def _twins(twins: TwinFiles, found: int) -> str:
    """Why fewer images than items reach an engine, or why not."""
    groups = "" if twins.groups == 1 else f" in {twins.groups:,} groups"
    same = f"{twins.files:,} files{groups} have the same content: "
    if not twins.saved:
        return f"{same}all are captioned (--no-dedup, or different prompts)"
    copies = "is a copy" if twins.saved == 1 else "are copies"
    left = counted(found - twins.saved, "image")
    return f"{same}{twins.saved:,} {copies}, so the engines caption {left}"


def _time(times: Time) -> Iterator[str]:
    if not times.images:
        return
    engines, images = counted(times.engines, "engine"), counted(times.images, "image")
    if times.wall_hours is None or times.gpu_hours is None or times.images_per_s is None:
        yield section(
            "Time", f"unknown for {images} on {engines}: the speed has not been measured yet"
        )
        how = next((f" with --pilot {n}" for n in PILOTS if 2 * n <= times.images), "")
        yield f"{INDENT}a run{how} or `tune` measures it; then plan again"
        yield f"{INDENT}(or give --images-per-s N, the captions per second of one engine)"
        return
    wall = duration(max(3600 * times.wall_hours, 1))
    yield section("Time", f"{wall}, {_figure(times.gpu_hours)} GPU hours, excluding start-up")
    gpus = "" if times.gpus_per_engine == 1 else f" of {times.gpus_per_engine} GPUs"
    in_all = times.images_per_s * times.engines
    together = f", {_speed(in_all)} images/s in all" if times.engines > 1 else ""
    yield (
        f"{INDENT}{images} at {_speed(times.images_per_s)} images/s ({times.source})"
        f" on {'each of ' if times.engines > 1 else ''}{engines}{gpus}{together}"
    )


def _cost(times: Time) -> Iterator[str]:
    if times.costs is None:
        return
    parts = [str(times.costs)] if str(times.costs) else []
    if times.images and times.images_per_s is None:
        left = "what is left is" if parts else ""
        parts.append(f"{left} not known without the speed: --pilot or `tune` measures it".strip())
    if parts:
        yield section("Cost", "; ".join(parts))


def _disk(disk: Disk) -> Iterator[str]:
    free = "an unknown amount" if disk.bytes_free is None else byte_size(disk.bytes_free)
    inodes = "no limit" if disk.inodes_free is None else f"{disk.inodes_free:,} free"
    yield section(
        "Disk",
        f"{byte_size(disk.bytes_needed)} needed, {free} free;"
        f" {disk.inodes_needed:,} inodes needed, {inodes}",
    )
    if not disk.writable:
        yield f"{INDENT}CANNOT BE WRITTEN: {disk.path}"
    if not disk.fits:
        yield f"{INDENT}DOES NOT FIT on {disk.path}: free some space, or choose another --output"


def _next(plan: Plan) -> Iterator[str]:
    items, disk, output = plan.items, plan.disk, plan.output
    failing = sum(problem.count for problem in items.problems)
    missing = sum(problem.count for problem in items.problems if problem.kind == "missing_file")
    command, step = plan.command, "run:"
    if 2 * missing > items.total:
        what = f"{missing:,} of {counted(items.total, 'image')} are not below {plan.images_root}"
        command, step = "", f"{what}; name their folder with --images-root, then plan again"
    elif not items.to_caption and not items.restored:
        command, step = "", "nothing is left to caption"
        if failing:
            step = f"fix the {counted(failing, 'item')} known to fail, then plan again"
        elif items.stale and "--redo" not in plan.command:
            command = f"{plan.command} --redo stale"
            step = f"{step}; to caption the {counted(items.stale, 'stale one')} again:"
    elif plan.holder is not None:
        step = "wait for the run that is at work; if it does not finish, run:"
    elif not disk.writable:
        step = f"fix the permissions of {output}, or choose another folder with --output; then run:"
    elif not disk.fits:
        step = "free some disk space, then run:"
    elif not items.to_caption:
        step = "run; it only writes the missing .txt files:"
    elif not plan.images.opened:
        step = "run (or plan with --images, which opens every image):"
    yield section("Next", step)
    if command:
        yield INDENT + command


def _pixels(size: Size) -> str:
    return f"{size.width} × {size.height}"


def _speed(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.4g}"


def _figure(number: float) -> str:
    return f"{number:,.1f}" if number >= 1 else f"{number:.2g}" if number else "under 0.0001"
