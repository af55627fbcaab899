"""What a run says at its end: counts that add up, reasons with examples, and what to do next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator

from vllm_caption.config import RunConfig
from vllm_caption.driver.pending import Pending
from vllm_caption.formatting import printable
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.store.layout import MANIFEST, caption_name, state_folder


def summarise(stats: RunStats, scan: Pending, config: RunConfig, seconds: float) -> str:
    """The closing text of a run, several lines."""
    return "\n".join(_lines(stats, scan, config, seconds))


def _lines(stats: RunStats, scan: Pending, config: RunConfig, seconds: float) -> Iterator[str]:
    counts = scan.reader.counts
    read = "" if scan.reader.complete else " (the input was not read to its end)"
    yield f"Documents: {counts.documents} read, {counts.skipped} skipped{read}"
    for reason, number in Counter(s.kind for s in scan.skipped).most_common():
        example = next(s for s in scan.skipped if s.kind == reason)
        yield f"  {reason} {number}, e.g. {printable(example.document)}: {example.reason}"
    if scan.reader.no_type_was_skipped:
        names = ",".join(config.input.skip_types)
        yield f"  No element has a type of --skip-types {names}: the type names may differ."
    captioned = stats.done_before + stats.adopted + stats.captioned
    left = stats.total - captioned - stats.failed
    yield (
        f"Items: {stats.total}, captioned {captioned} ({stats.captioned} in this run),"
        f" failed {stats.failed}" + (f", not tried {left}" if left else "")
    )
    for kind, number in stats.failures.most_common():
        yield f"  {kind} {number}, e.g. {stats.examples[kind]}"
    if stats.twins:
        yield f"  {stats.twins} have the caption of a byte-identical image (--no-dedup: their own)."
    if stats.retried:
        yield f"  {stats.retried} attempts gave no caption and were made again."
    if stats.adopted:
        yield f"  {stats.adopted} captions without a record were found and kept."
    if stats.flags:
        yield "Flags: " + ", ".join(f"{flag} {n}" for flag, n in stats.flags.most_common())
    if rejected := stats.rejections.rejected:
        kinds = ", ".join(f"{flag} {n}" for flag, n in stats.rejections.by_flag.most_common())
        answers = stats.rejections.answers
        yield f"Rejected answers: {rejected} of {answers} ({kinds})"
    if stats.stale:
        yield (
            f"{stats.stale} kept captions were made with another recipe;"
            " --redo stale makes them anew."
        )
    if stats.captioned:
        yield from _speed(stats, seconds)
    yield from _where(config)


def _where(config: RunConfig) -> Iterator[str]:
    shard, root = config.input.shard, config.output
    state = state_folder(root, shard)
    yield f"Captions: {root}/{caption_name('<file>')}, manifest: {state}/{MANIFEST}"
    if shard is not None:
        yield (
            f"This was shard {shard}; when all are done, one manifest of them is made by:"
            f" python -m vllm_caption merge --output={shlex.quote(str(root))}"
        )


def _speed(stats: RunStats, seconds: float) -> Iterator[str]:
    yield (
        f"Time: {seconds:.1f} s, {stats.captioned / seconds:.1f} images/s with start-up,"
        f" {stats.prompt_tokens} prompt tokens, {stats.output_tokens} output tokens"
    )
    if total_s := sum(stats.limits_s.values()):
        longest_first = sorted(stats.limits_s.items(), key=lambda limit: -limit[1])
        named = (f"{name} {spent_s / total_s:.0%}" for name, spent_s in longest_first)
        yield f"Limited by: {', '.join(named)} of the time"
    own = max(stats.captioned - stats.twins, 1)
    shares = (f"{i}: {e.captioned / own:.0%}" for i, e in enumerate(stats.engines))
    yield "Share of each engine: " + ", ".join(shares)
