"""One look at a folder as lines of text, or as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Final

import msgspec

from vllm_caption.commands.status.overview import Views, overview
from vllm_caption.commands.status.states import in_words
from vllm_caption.config import Shard
from vllm_caption.formatting import counted, duration, section, tally
from vllm_caption.monitoring.figures import NOT_STARTED, EngineFigures, measured, time_to_go
from vllm_caption.monitoring.status import RunStatus, View

MAX_ABSENT: Final = 20


def describe_all(views: Views, now: datetime, gpu_hour_price: float | None = None) -> str:
    """The state on a few lines: one for each engine, or one for each shard."""
    if None in views:
        lines = [describe(views[None], now)]
    else:
        lines = [f"Shard {shard}: {view.one_line(now)}" for shard, view in views.items()]
        lines += [*_absent(views), _sum(views)]
    if costs := overview(views, gpu_hour_price).costs:
        lines.append(section("Cost", str(costs)))
    return "\n".join(lines)


def one_line(views: Views) -> str:
    """For a log."""
    return views[None].one_line() if None in views else _sum(views)


def _sum(views: Views) -> str:
    seen = overview(views)
    running = sum(view.state == "running" for view in views.values())
    speed = f" {seen.images_per_s:g} images/s" if running else ""
    return (
        f"All: {running} of {len(views)} running, {seen.finished}/{seen.total}{speed},"
        f" failed {seen.failed}"
    )


def _absent(views: Views) -> Iterator[str]:
    """Shards that have not run here."""
    for count in sorted({shard.count for shard in views if shard is not None}):
        others = (n for n in range(1, count + 1) if Shard(n, count) not in views)
        absent = list(islice(others, MAX_ABSENT + 1))  # somebody may name any count
        if absent:
            more = ", …" if len(absent) > MAX_ABSENT else ""
            shown = ", ".join(map(str, absent[:MAX_ABSENT]))
            yield f"No run yet here: shard {shown}{more} of {count}"


def describe(view: View, now: datetime | None = None) -> str:
    """The state of one run. ``now``: to say when it will end."""
    return "\n".join(_lines(view, now))


def _lines(view: View, now: datetime | None) -> Iterator[str]:
    status = view.status
    yield section("State", in_words(view))
    started = f"started {status.started_at}" if status.started_at else "start unknown"
    yield section("Run", f"{status.run_id}, {started}")
    yield section("Updated", f"{status.updated_at}, {duration(round(view.age_s))} ago")
    yield section("Items", _items(status))
    if view.state == "running":
        speed = f"{status.images_per_s:g} images/s, {status.tokens_per_s:g} tokens/s"
        if status.phase is not None:
            yield section("Phase", status.phase)
        yield section("Speed", f"{speed}, {time_to_go(status.eta_s, now)}")
    if status.failures:
        yield section("Failures", tally(status.failures))
    if status.host and view.state == "running":
        yield section("Host", ", ".join(measured(status.host)))
    for engine in status.engines:
        yield section(f"Engine {engine.engine}", _engine(engine, view))
    if view.state == "running":
        yield from (section("Warning", warning) for warning in status.warnings)


def _items(status: RunStatus) -> str:
    left = max(status.total - status.finished, 0)
    share = f" ({status.finished / status.total:.1%})" if status.total else ""
    return (
        f"{status.total:,}{' or more' if status.scanning else ''}{share}:"
        f" {status.captioned:,} captioned + {status.done_before:,} before"
        f" + {status.failed:,} failed + {left:,} left"
    )


def _engine(engine: EngineFigures, view: View) -> str:
    captioned = sum(other.captioned for other in view.status.engines)
    share = engine.captioned / captioned if captioned else 0.0
    parts = [f"{engine.captioned:,} captioned ({share:.0%})", counted(engine.restarts, "restart")]
    if view.state == "running":
        if engine.state_in_words == NOT_STARTED:
            return NOT_STARTED
        process = "" if engine.pid is None else f", process {engine.pid}"
        parts = [f"{engine.state_in_words}{process}", *parts, f"{engine.in_flight} in flight"]
        parts += measured(engine)
    return ", ".join(parts)


def as_json(views: Views, *, indent: bool) -> str:
    """The fields of status.json, and what was seen around it; of shards a list of these."""
    if None not in views:
        shards = [view.as_dict() | {"shard": str(shard)} for shard, view in views.items()]
        return msgspec.json.encode(shards).decode()
    encoded = msgspec.json.encode(views[None].as_dict())
    return (msgspec.json.format(encoded, indent=2) if indent else encoded).decode()
