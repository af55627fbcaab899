"""Results → one table for people, one JSON for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.throughput.contests import Limit
from benchmarks.throughput.harness import Results


def verdicts(results: Results) -> list[dict[str, Any]]:
    """Every target of a contest whose contestants have run."""
    made = []
    for target in results.contest.targets:
        needed = {target.name} if isinstance(target, Limit) else {target.first, target.second}
        if not needed <= set(results.outcomes):
            continue
        if isinstance(target, Limit):
            value = results.median(target.name, target.measure)
            met = value <= target.bound
        else:
            value = results.ratio(target.first, target.second, target.measure)
            met = value >= target.bound if target.at_least else value <= target.bound
        made.append(asdict(target) | {"value": round(value, 3), "met": met})
    return made


def as_json(results: Results) -> dict[str, Any]:
    """Everything but the captions."""
    contestants = {}
    for name in results.outcomes:
        differing, both = results.differing(name)
        contestants[name] = {
            "images": len(results.outcomes[name][0].captions),
            **{
                measure: [round(value, 3) for value in results.values(name, measure)]
                for measure in ("images_per_s", "cpu_ms_per_image", "first_caption_s", "all_up_s")
            },
            "captions_that_differ": differing,
            "captions_compared": both,
        }
    return {
        "contest": results.contest.name,
        "title": results.contest.title,
        "contestants": contestants,
        "targets": verdicts(results),
    }


def as_table(results: Results) -> str:
    """Markdown."""
    lines = [
        f"**{results.contest.name}**: {results.contest.title}",
        "",
        "| contestant | images | images/s: median (min–max) | CPU ms/image | first caption, s"
        " | all up, s | captions that differ |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, outcomes in results.outcomes.items():
        speeds = results.values(name, "images_per_s")
        speed = f"{results.median(name, 'images_per_s'):.1f} ({min(speeds):.1f}–{max(speeds):.1f})"
        cpu_ms = results.median(name, "cpu_ms_per_image")
        first = results.median(name, "first_caption_s")
        up = results.median(name, "all_up_s")
        differing, both = results.differing(name)
        lines.append(
            f"| {name} | {len(outcomes[0].captions)} | {speed} | {cpu_ms:.1f} | {first:.1f}"
            f" | {up:.1f} | {differing} of {both} |"
        )
    lines += ["", "| target | measured | |", "|---|---|---|"]
    for verdict in verdicts(results):
        sign = "≥" if verdict.get("at_least") else "≤"
        whom = verdict.get("name") or f"{verdict['first']} / {verdict['second']}"
        what = f"{whom}, {verdict['measure']} {sign} {verdict['bound']}"
        lines.append(
            f"| {what} | {verdict['value']:.2f} | {'met' if verdict['met'] else 'missed'} |"
        )
    return "\n".join(lines)
