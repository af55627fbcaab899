"""``status`` of an output folder that shards write to: a line for each, and one for all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from vllm_caption.commands.status.states import exit_code
from vllm_caption.config import Shard
from vllm_caption.errors import UsageError
from vllm_caption.monitoring.status import View, look, read_status
from vllm_caption.store.layout import shard_folders

EVERY_S = 2.0
Views = dict[Shard, View]


def shards_are_newer(root: Path) -> bool:
    """Whether a shard has run since the last run of the whole folder."""
    whole = read_status(root)
    found = [status for path in shard_folders(root).values() if (status := read_status(path))]
    newest = max((status.updated_at for status in found), default="")
    return bool(found) and (whole is None or newest > whole.updated_at)


def show_shards(root: Path, *, watching: bool, as_json: bool) -> int:
    """The command for such a folder; returns the exit code."""
    views = _look(root)
    while watching and any(view.holder for view in views.values()):
        print(_json(views) if as_json else _sum(views), flush=True)
        time.sleep(EVERY_S)
        views = _look(root)
    print(_json(views) if as_json else "\n".join((*_lines(views), _sum(views))), flush=True)
    return exit_code(view.state for view in views.values())


def _look(root: Path) -> Views:
    views = {}
    for shard, folder in sorted(shard_folders(root).items()):
        try:
            views[shard] = look(folder)
        except UsageError:
            continue  # it has only begun
    return views


def _lines(views: Views) -> Iterator[str]:
    for shard, view in views.items():
        yield f"Shard {shard}: {view.one_line()}"


def _sum(views: Views) -> str:
    statuses = [view.status for view in views.values()]
    finished = sum(status.finished for status in statuses)
    speed = sum(v.status.images_per_s for v in views.values() if v.state == "running")
    running = sum(view.state == "running" for view in views.values())
    return (
        f"All: {running} of {len(views)} running, {finished}/{sum(s.total for s in statuses)}"
        f" {speed:g} images/s, failed {sum(s.failed for s in statuses)}"
    )


def _json(views: Views) -> str:
    found: list[dict[str, Any]] = [v.as_dict() | {"shard": str(s)} for s, v in views.items()]
    return msgspec.json.encode(found).decode()
