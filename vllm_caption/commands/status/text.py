"""What `status` prints where no screen is drawn: the state, a line for a log, or JSON. Pure."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from vllm_caption.commands.status.layout import draw
from vllm_caption.commands.status.overview import Views, overview
from vllm_caption.monitoring.live.line import text_line

UNLIMITED: Final = 10_000
"""The width of a file or pipe."""


def describe(
    views: Views,
    root: Path,
    now: datetime,
    *,
    gpu_hour_price: float | None = None,
    width: int | None = None,
) -> str:
    """What the screen of `--watch` shows, with every engine and every shard. ``width``: of the
    terminal; None if there is none."""
    seen = overview(views, gpu_hour_price)
    lines = draw(seen, str(root.absolute()), now, width or UNLIMITED, None)
    return "\n".join(line.plain for line in lines)


def one_line(views: Views) -> str:
    """For a log."""
    seen = overview(views)
    state: str = seen.state if None in views else seen.state_in_words
    engines = [engine for _, engine in seen.engines]
    return f"{seen.updated_at} {state}, {text_line(seen, engines)}"


def as_json(views: Views, *, indent: bool) -> str:
    """The fields of status.json, and what was seen around it; of shards a list of these."""
    if None not in views:
        shards = [view.as_dict() | {"shard": str(shard)} for shard, view in views.items()]
        return msgspec.json.encode(shards).decode()
    encoded = msgspec.json.encode(views[None].as_dict())
    return (msgspec.json.format(encoded, indent=2) if indent else encoded).decode()
