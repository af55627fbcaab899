"""The numbers of one output folder: plain counting over its rows, nothing estimated.

Invariant: captioned + failed is the number of rows, and one line of SQL over the manifest gives
each count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vllm_caption.captions.rules import WORD_RE2
from vllm_caption.commands.report.records import Records
from vllm_caption.errors import CAPTION_FLAGS
from vllm_caption.items import SkippedDocument

NUM_EXAMPLES: Final = 3
NUM_REPEATED: Final = 10


@dataclass(frozen=True, slots=True)
class Group:
    """Rows, or documents, that share a kind or a flag; examples are (name, text)."""

    name: str
    count: int
    examples: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Share:
    """Rows of one element type, engine or recipe; ``generate_s`` is the median."""

    name: str
    captioned: int
    failed: int
    flagged: int
    output_tokens: int
    generate_s: float | None


@dataclass(frozen=True, slots=True)
class Facts:
    """Every number on the page. ``repeated``: captions that several items share;
    ``generate_s``: median and 99th percentile in seconds, None where nothing was timed; ``words``:
    the number of words of each caption."""

    rows: int
    captioned: int
    failed: int
    flagged: int
    adopted: int
    twins: int
    retried: int
    prompt_tokens: int
    output_tokens: int
    distinct_captions: int
    kinds: list[Group]
    flags: list[Group]
    documents: list[Group]
    types: list[Share]
    engines: list[Share]
    recipes: list[Share]
    backdrops: list[tuple[str, int]]
    repeated: list[tuple[str, int]]
    generate_s: tuple[float, float] | None
    words: np.ndarray

    @property
    def mean_words(self) -> float:
        """Of a caption; 0 where there is none."""
        return float(self.words.mean()) if len(self.words) else 0.0


def count(records: Records) -> Facts:
    """The numbers of one folder."""
    rows = records.rows
    done = rows.filter(pc.equal(rows["status"], "captioned"))
    distinct = pc.value_counts(done["caption"])
    return Facts(
        rows=len(rows),
        captioned=len(done),
        failed=len(rows) - len(done),
        flagged=_total(is_flagged(done)),
        adopted=_total(pc.is_null(done["recipe_id"])),
        twins=_total(pc.is_valid(done["same_as"])),
        retried=_total(pc.greater(rows["attempts"], 1)),
        prompt_tokens=_total(rows["prompt_tokens"]),
        output_tokens=_total(rows["output_tokens"]),
        distinct_captions=len(distinct),
        kinds=_kinds(rows),
        flags=_flags(done),
        documents=_documents(records.left_out),
        types=shares(rows, "element_type"),
        engines=shares(rows.filter(pc.is_valid(rows["engine"])), "engine"),
        recipes=shares(rows, "recipe_id"),
        backdrops=_counts(rows["backdrop"]),
        repeated=[(text, n) for text, n in _counts(done["caption"], NUM_REPEATED) if n > 1],
        generate_s=_median_and_most(rows["generate_s"]),
        words=num_words(done["caption"]),
    )


def is_flagged(rows: pa.Table) -> pa.ChunkedArray:
    """Which rows have a flag."""
    return pc.greater(pc.fill_null(pc.list_value_length(rows["flags"]), 0), 0)


def num_words(texts: pa.ChunkedArray) -> np.ndarray:
    """How many `words` each text has; 0 where there is no text."""
    return np.asarray(pc.fill_null(pc.count_substring_regex(texts, WORD_RE2), 0), dtype=np.int64)


def _median_and_most(column: pa.ChunkedArray) -> tuple[float, float] | None:
    values = measured(column)
    if not len(values):
        return None
    middle, nearly_all = np.quantile(values, (0.5, 0.99), method="inverted_cdf")
    return float(middle), float(nearly_all)


def measured(column: pa.ChunkedArray) -> np.ndarray:
    """The numbers of a column."""
    values: np.ndarray = np.asarray(column.drop_null(), dtype=float)
    known: np.ndarray = values[np.isfinite(values)]
    return known


def shares(rows: pa.Table, column: str) -> list[Share]:
    """The rows by the values of a column, the most frequent first; numbers in ascending order."""
    is_done = pc.equal(rows["status"], "captioned")
    table = pa.table(
        {
            "name": rows[column],
            "captioned": pc.cast(is_done, pa.int64()),
            "failed": pc.cast(pc.invert(is_done), pa.int64()),
            "flagged": pc.cast(is_flagged(rows), pa.int64()),
            "output_tokens": pc.fill_null(rows["output_tokens"], 0),
            "generate_s": rows["generate_s"],
        }
    )
    sums = [(name, "sum") for name in ("captioned", "failed", "flagged", "output_tokens")]
    grouped = table.group_by("name").aggregate([*sums, ("generate_s", "approximate_median")])
    found = [_share(row) for row in grouped.to_pylist()]
    if pa.types.is_integer(rows.schema.field(column).type):
        return sorted(found, key=lambda share: int(share.name))
    return sorted(found, key=lambda share: (-share.captioned - share.failed, share.name))


def _share(row: dict[str, Any]) -> Share:
    return Share(
        name="unknown" if row["name"] is None else str(row["name"]),
        captioned=row["captioned_sum"],
        failed=row["failed_sum"],
        flagged=row["flagged_sum"],
        output_tokens=row["output_tokens_sum"],
        generate_s=row["generate_s_approximate_median"],
    )


def _kinds(rows: pa.Table) -> list[Group]:
    failed = rows.filter(pc.equal(rows["status"], "failed"))
    groups = []
    for kind, number in _counts(pc.fill_null(failed["error_kind"], "unknown")):
        chosen = failed.filter(pc.equal(pc.fill_null(failed["error_kind"], "unknown"), kind))
        groups.append(Group(kind, number, _examples(chosen, "error")))
    return groups


def _flags(done: pa.Table) -> list[Group]:
    groups = []
    for flag in CAPTION_FLAGS:
        with_flag = done.filter(has_flag(done, flag))
        if len(with_flag):
            groups.append(Group(flag, len(with_flag), _examples(with_flag, "caption")))
    return sorted(groups, key=lambda group: -group.count)


def has_flag(rows: pa.Table, flag: str) -> pa.ChunkedArray:
    """Which rows have this flag."""
    joined = pc.fill_null(pc.binary_join(rows["flags"], ","), "")
    return pc.match_substring(pc.binary_join_element_wise("", joined, "", ","), f",{flag},")


def _documents(left_out: list[SkippedDocument]) -> list[Group]:
    groups: dict[str, list[tuple[str, str]]] = {}
    for skipped in left_out:
        groups.setdefault(skipped.kind, []).append((skipped.document, skipped.reason))
    found = [Group(kind, len(all_), all_[:NUM_EXAMPLES]) for kind, all_ in groups.items()]
    return sorted(found, key=lambda group: (-group.count, group.name))


def _examples(rows: pa.Table, column: str) -> list[tuple[str, str]]:
    """Spread evenly over the rows, so that not all are from one document."""
    places = np.unique(np.linspace(0, len(rows) - 1, NUM_EXAMPLES).astype(np.int64))
    chosen = rows.take(places)
    texts = pc.fill_null(chosen[column], "").to_pylist()
    return list(zip(chosen["file"].to_pylist(), texts, strict=True))


def _counts(column: pa.ChunkedArray, most: int | None = None) -> list[tuple[str, int]]:
    counted = pc.value_counts(column.drop_null())
    order = pc.array_sort_indices(counted.field("counts"), order="descending")[:most]
    chosen = counted.take(order)
    return [(str(entry["values"]), int(entry["counts"])) for entry in chosen.to_pylist()]


def _total(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)
