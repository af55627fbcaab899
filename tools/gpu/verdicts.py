"""What is wrong with how a run ended: pure, from what was read of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

SHOWN: Final = 3


def run_problems(exit_code: int | None, expected: int) -> list[str]:
    """Of its exit code; None where its time was up."""
    if exit_code is None:
        return ["took too long and was ended"]
    return [] if exit_code == expected else [f"exit code {exit_code} instead of {expected}"]


def outcome_problems(
    rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, str], known: Mapping[str, str]
) -> list[str]:
    """Of the rows of a manifest. ``wanted``: the items that must have one; ``known``: what every
    row must say, by its file."""
    problems = []
    times = Counter(row["file"] for row in rows)
    checks = {
        "items without a row": [file for file in wanted if file not in times],
        "items with several rows": [file for file, number in times.items() if number > 1],
        "rows that say something else than expected": [
            row["file"] for row in rows if row["status"] != known.get(row["file"])
        ],
        "captioned rows without a caption": [
            row["file"] for row in rows if row["status"] == "captioned" and not row["caption"]
        ],
    }
    for what, files in checks.items():
        if files:
            more = ", …" if len(files) > SHOWN else ""
            problems.append(f"{len(files)} {what} ({', '.join(files[:SHOWN])}{more})")
    return problems
