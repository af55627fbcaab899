"""The verdict as text: counts, a few examples of each kind, and what to do about them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vllm_caption.commands.verify.verdict import ITEM_KINDS, MAX_EXAMPLES, Divergence, Verdict
from vllm_caption.formatting import (
    INDENT,
    counted,
    join_lines,
    printable,
    section,
    tally,
    with_example,
)
from vllm_caption.store.layout import JOURNAL, MANIFEST

MAX_LINE_CHARS: Final = 160


def describe(verdict: Verdict) -> str:
    """The whole text."""
    return join_lines(_lines(verdict), MAX_LINE_CHARS)


def _lines(verdict: Verdict) -> Iterator[str]:
    yield from _output(verdict)
    yield from _documents(verdict)
    yield from _items(verdict)
    for divergence in verdict.divergences:
        if divergence.kind != "untried" or verdict.holder is None:
            yield from _divergence(divergence, repaired=verdict.repaired)
    yield from _leftovers(verdict)
    yield section("Verdict", _verdict(verdict))


def _output(verdict: Verdict) -> Iterator[str]:
    yield section("Output", f"{verdict.output}: {counted(verdict.rows, 'row')} in {MANIFEST}")
    if verdict.holder is not None:
        yield f"{INDENT}In use by {verdict.holder}."


def _documents(verdict: Verdict) -> Iterator[str]:
    skipped = sum(found.count for found in verdict.documents_skipped)
    text = f"{verdict.documents_read:,} read, {skipped:,} skipped"
    if skipped:
        text += "; their captions have no item here"
    yield section(f"{verdict.nouns.document.capitalize()}s", text)
    for found in verdict.documents_skipped:
        example = found.entries[0]
        shown = f"{printable(example.file)}: {example.detail}"
        yield INDENT + with_example(found.kind, found.count, shown)


def _items(verdict: Verdict) -> Iterator[str]:
    meanwhile = verdict.items_written_meanwhile
    of_items = [found for found in verdict.divergences if found.kind in ITEM_KINDS]
    repaired = sum(found.repaired for found in of_items)
    diverging = sum(found.left for found in of_items if not found.expected)
    untried = sum(found.left for found in of_items if found.kind == "untried")
    disagreeing = diverging - untried
    parts = [f"{verdict.items_agreeing:,} {'agrees' if verdict.items_agreeing == 1 else 'agree'}"]
    expected = (found for found in of_items if found.expected and found.left)
    parts += [f"{found.left:,} {found.kind}" for found in expected]
    if untried:
        parts.append(f"{untried:,} not tried yet")
    parts.append(f"{disagreeing:,} {'disagrees' if disagreeing == 1 else 'disagree'}")
    if repaired:
        parts.append(f"{repaired:,} repaired")
    if meanwhile:
        parts.append(f"{meanwhile:,} written by the run meanwhile")
    text = f"{verdict.items:,}: {', '.join(parts)}"
    yield section("Items", text)
    if not verdict.complete:
        yield f"{INDENT}--limit was reached, so orphans cannot be detected"


def _divergence(divergence: Divergence, *, repaired: bool) -> Iterator[str]:
    text = f"{divergence.count:,} × {divergence.meaning}"
    if repaired:
        text += f": {divergence.repaired:,} repaired, {divergence.left:,} left"
    yield f"{divergence.kind}: {text}"
    for entry in divergence.entries[:MAX_EXAMPLES]:
        detail = f": {entry.detail}" if entry.detail else ""
        yield f"{INDENT}{printable(entry.file)}{detail}"
    if divergence.left:
        yield f"{INDENT}→ {divergence.remedy}"


def _leftovers(verdict: Verdict) -> Iterator[str]:
    left = verdict.leftovers
    if left.num_temporary:
        text = f"{counted(left.num_temporary, 'temporary file')} of a killed run"
        done = "removed" if verdict.repaired else "to be removed by verify --repair"
        yield section("Leftovers", f"{text}: {done}")
        yield INDENT + ", ".join(printable(name) for name in left.temporary[:MAX_EXAMPLES])
    if left.journal_rows:
        text = f"{counted(left.journal_rows, 'row')} in {JOURNAL}, not yet in {MANIFEST}"
        yield section("Leftovers", f"{text}: to be moved by the next run or by verify --repair")
    if left.torn_journal_lines:
        torn = counted(left.torn_journal_lines, "torn line")
        yield section("Leftovers", f"{torn} in {JOURNAL}")


def _verdict(verdict: Verdict) -> str:
    left = sum(found.left for found in verdict.divergences if not found.expected)
    untried = sum(found.left for found in verdict.divergences if found.kind == "untried")
    if verdict.holder is not None and untried:
        process = verdict.holder.partition(" on ")[0]
        are = "item is" if untried == 1 else "items are"
        others = f"{counted(left - untried, 'divergence')}. " if left > untried else ""
        progress = f"A run is in progress ({process}): {untried:,} {are} not tried yet."
        return f"{others}{progress} Run verify again when it has ended."
    expected = {found.kind: found.left for found in verdict.divergences if found.expected}
    parts = [counted(left - untried, "divergence")] if left > untried else []
    if untried:
        parts.append(f"{counted(untried, 'item')} not tried yet: run again")
    text = ", ".join(parts) or "everything agrees"
    if not left and any(found.repaired for found in verdict.divergences):
        text += " now"
    shown = tally({kind: number for kind, number in expected.items() if number})
    return f"{text}, apart from what is expected: {shown}" if shown else text
