"""The summary at the end of a run: counts that add up, reasons with examples, and the next step.

Invariant: all numbers are passed in; nothing is read or decided here.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vllm_caption.captions.rejection_alarm import Rejections
from vllm_caption.config import CaptionName, Shard
from vllm_caption.cost import Billing
from vllm_caption.flags import without_flags
from vllm_caption.formatting import (
    command_line,
    counted,
    duration,
    per_second,
    percentages,
    printable,
    tally,
    with_example,
)
from vllm_caption.inputs.reader import InputCounts, no_type_skipped
from vllm_caption.inputs.source import Nouns, files_left_out
from vllm_caption.items import SkippedDocument
from vllm_caption.monitoring.bottleneck import AS_IT_SHOULD_BE, remedy
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.store.layout import MANIFEST, caption_name

SHORT_PILOT_S: Final = 30.0
"""A pilot that generated for less than this says little about speed: most of it is warm-up and
tail."""
MAX_RECIPES: Final = 3
"""How many other recipes are described."""


@dataclass(frozen=True, slots=True)
class InputRead:
    """What a run read. ``is_complete``: up to the end of the input; ``unmatched_types``: the value
    of --skip-types if no element has one of these types; ``unmatched_files``: names from
    --redo-file that no item has; ``stale``: kept captions by what other settings made them."""

    counts: InputCounts
    is_complete: bool
    skipped: Sequence[SkippedDocument]
    unmatched_types: Sequence[str] = ()
    unmatched_files: Sequence[str] = ()
    stale: Mapping[str, int] = field(default_factory=dict)


def summarise(
    stats: RunStats,
    read: InputRead,
    seconds: float,
    *,
    output: Path,
    state: Path,
    shard: Shard | None = None,
    naming: CaptionName = "file",
    billing: Billing | None = None,
    interrupted: bool = False,
) -> str:
    """The whole text. ``output`` holds the captions, ``state`` the manifest (of the ``shard``)."""
    is_news = stats.captioned > 0  # a rerun that captions nothing repeats no advice
    lines = [*_documents(read, is_news=is_news), *_items(stats, read.counts.duplicates)]
    lines += _captions(stats, read.stale)
    if stats.captioned:
        lines += _speed(stats, seconds)
    held = any(engine.state != "waiting" for engine in stats.engines)
    if billing is not None and (stats.captioned or held):
        costs = billing.costs(
            gpu_s=seconds * billing.num_gpus,
            spent_on="for this run",
            num_left=stats.total - stats.finished,
            images_per_s=stats.mean_images_per_s,
        )
        lines.append(f"Cost: {costs}")
    lines += _where(output, state, shard, naming)
    if interrupted:
        lines.append("Interrupted: run the same command line again to resume; nothing is lost.")
    return "\n".join(lines)


def _documents(read: InputRead, *, is_news: bool) -> Iterator[str]:
    stopped = "" if read.is_complete else " (stopped before the end of the input)"
    noun = read.counts.nouns.document.capitalize()
    yield f"{noun}s: {read.counts.documents:,} read, {read.counts.skipped:,} skipped{stopped}"
    for kind, number in Counter(s.kind for s in read.skipped).most_common():
        first = next(s for s in read.skipped if s.kind == kind)
        example = f"{printable(first.document)}: {first.reason}"
        yield f"  {with_example(kind, number, example)}"
    if read.counts.left_out:
        yield f"  {files_left_out(read.counts.left_out)}"
    if read.unmatched_types and is_news:
        yield f"  {no_type_skipped(*read.unmatched_types)}"
    if read.unmatched_files:
        yield f"  {no_such_item(read.unmatched_files)}"


def named_again(references: int) -> str:
    """How often an image was named that had been named before."""
    to, are = ("an image", "is") if references == 1 else ("images", "are")
    number = counted(references, "further reference")
    return f"{number} to {to} named before, which {are} captioned once"


def _items(stats: RunStats, duplicates: int) -> Iterator[str]:
    captioned = stats.done_before + stats.adopted + stats.captioned
    left = stats.total - captioned - stats.failed
    yield (
        f"Items: {stats.total:,}, captioned {captioned:,} ({stats.captioned:,} in this run),"
        f" failed {stats.failed:,}" + (f", not tried {left:,}" if left else "")
    )
    if duplicates and stats.captioned:
        yield f"  {named_again(duplicates)}."
    for kind, number in stats.failures.most_common():
        yield f"  {with_example(kind, number, stats.examples[kind])}"
    if stats.twins:
        share = "shares" if stats.twins == 1 else "share"
        yield f"  {stats.twins:,} {share} the caption of a byte-identical image (see --no-dedup)."
    if errors := stats.retried - stats.rejections.retried:
        were = "was" if errors == 1 else "were"
        yield f"  {counted(errors, 'attempt')} ended with an error and {were} queued for a retry."
    if missing := stats.restored + stats.gone:
        how = f"{stats.restored:,} restored from their rows, {stats.gone:,} captioned again"
        yield f"  {counted(missing, 'caption file')} missing or empty: {how}."
    if stats.adopted:
        yield f"  {counted(stats.adopted, 'caption')} found without a row, and kept."


def _captions(stats: RunStats, made: Mapping[str, int]) -> Iterator[str]:
    if stats.flags:
        yield f"Flags: {tally(stats.flags)}"
    if rejected := stats.rejections.rejected:
        flags = tally(stats.rejections.by_flag)
        then = ", ".join(_after(stats.rejections))
        yield f"Rejected answers: {rejected:,} of {stats.rejections.answers:,} ({flags}): {then}"
    if stale := stats.kept["stale"]:
        yield from stale_captions(stale, made)
    if theirs := people_wrote(stats.kept["edited"], stats.kept["adopted"] + stats.adopted):
        yield f"{theirs}: kept, also by --redo."
    if stats.spared:
        yield f"{stats.spared:,} of these would be captioned again with --overwrite-edited."


def _after(rejections: Rejections) -> Iterator[str]:
    if rejections.retried:
        yield f"{rejections.retried:,} queued for a retry"
    if rejections.failed:
        yield f"{counted(rejections.failed, 'item')} failed"
    if rejections.kept:
        yield f"{counted(rejections.kept, 'caption')} kept with flags"
    if left := rejections.rejected - rejections.retried - rejections.failed - rejections.kept:
        yield f"{left:,} dropped when the run stopped"


def no_such_item(names: Sequence[str]) -> str:
    """The warning for names of --redo-file."""
    return f"No item has the name of --redo-file: {', '.join(map(printable, names))}"


def stale_captions(number: int, made: Mapping[str, int]) -> Iterator[str]:
    """How many kept captions are stale, and what made them."""
    are, them = ("is", "it") if number == 1 else ("are", "them")
    begin = f"{counted(number, 'kept caption')} {are} stale (--redo stale captions {them} again):"
    if len(made) == 1:
        yield f"{begin} made {', '.join(made)}"
        return
    yield begin
    shown = list(made.items())[:MAX_RECIPES]
    yield from (f"  {of_these:,} made {settings}" for settings, of_these in shown)
    if left := number - sum(of_these for _, of_these in shown):
        yield f"  {left:,} made with other settings"


def people_wrote(edited: int, adopted: int) -> str:
    """How many captions people wrote: "1 edited caption, 2 adopted captions"."""
    numbers = ((edited, "edited caption"), (adopted, "adopted caption"))
    return ", ".join(counted(number, noun) for number, noun in numbers if number)


def _speed(stats: RunStats, seconds: float) -> Iterator[str]:
    yield (
        f"Time: {duration(seconds)}, {per_second(stats.captioned / seconds)} images/s including"
        f" start-up, {stats.prompt_tokens:,} prompt tokens, {stats.output_tokens:,} output tokens"
    )
    if sum(stats.limits_s.values()):
        names = sorted(stats.limits_s, key=lambda name: -stats.limits_s[name])
        spent = zip(names, percentages([stats.limits_s[name] for name in names]), strict=True)
        named = [f"{name} {share}" for name, share in spent if share != "0%"]
        if names[0] == "engine":
            named[0] += f" ({AS_IT_SHOULD_BE})"
        yield f"Limited by: {', '.join(named)} of the time"
        if change := remedy(stats.limits_s):
            yield f"  Faster with: {change}"
    if len(stats.engines) > 1:
        shares = percentages([engine.captioned for engine in stats.engines])
        named = [f"engine {number} {share}" for number, share in enumerate(shares)]
        yield f"Share of the captions: {', '.join(named)}"


def _where(output: Path, state: Path, shard: Shard | None, naming: CaptionName) -> Iterator[str]:
    if naming == "none":
        yield f"Captions: in the manifest, {state}/{MANIFEST}"
    else:
        shown = "<file>" if naming == "file" else "<file without its ending>"
        yield f"Captions: {output}/{caption_name(shown)}, manifest: {state}/{MANIFEST}"
    if shard is not None:
        yield (
            f"This was shard {shard}. When all shards are done, merge their manifests with:"
            f" python -m vllm_caption merge --output={shlex.quote(str(output))}"
        )


def describe_pilot(
    stats: RunStats,
    *,
    chosen: Mapping[str, int],
    num_items: int,
    num_documents: int,
    nouns: Nouns,
    arguments: Iterable[str],
    billing: Billing | None = None,
) -> str:
    """After a pilot: what to look at, the command for the full run, and how long it may take.

    ``chosen``: element type → items in the pilot; ``num_items``, ``num_documents``: in the whole
    input; ``arguments``: the command line that started the pilot.
    """
    size = sum(chosen.values())
    types = ", ".join(f"{kind or 'others'} {n:,}" for kind, n in Counter(chosen).most_common())
    of_types = f": {types}" if any(chosen) else ""
    full = command_line(without_flags(arguments, ("--pilot",)))
    lines = [
        f"Pilot: {size:,} of {num_items:,} items in {counted(num_documents, nouns.document)},"
        f" across all file sizes{of_types}",
        f"  Full run (keeps these captions): {full}",
    ]
    left, images_per_s = num_items - size, stats.mean_images_per_s
    if images_per_s and left:
        time = duration(max(left / images_per_s, 1))
        lines.append(
            f"  It will take about {time} for {counted(left, 'other item')} at the pilot's"
            f" {per_second(images_per_s)} images/s, less if some have a caption already."
        )
        if billing is not None:
            costs = billing.costs(num_left=left, images_per_s=images_per_s)
            lines.append(f"  Its cost: {costs}.")
        if stats.generating_s < SHORT_PILOT_S:
            lines.append(
                f"  The pilot generated for only {duration(stats.generating_s)};"
                " a larger one gives a better estimate."
            )
    return "\n".join(lines)
