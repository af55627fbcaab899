"""Which runs an output folder has: that of the whole folder, or those of its shards."""

from __future__ import annotations

from pathlib import Path

from vllm_caption.commands.status.overview import Views
from vllm_caption.config import Shard
from vllm_caption.errors import UsageError
from vllm_caption.monitoring.status import View, look, read_status
from vllm_caption.store.layout import shard_folders


def look_at(root: Path) -> Views:
    """The shards, where one of them has run since the last run of the whole folder, else that run.
    If the input was divided again, those of an earlier division count only while they run.

    Raises UsageError where there is neither."""
    views: dict[Shard, View] = {}
    if _shards_are_newer(root):
        for shard, folder in sorted(shard_folders(root).items()):
            try:
                views[shard] = look(folder)
            except UsageError:
                continue  # it has only begun
    if not views:
        return {None: look(root)}
    newest = max(views, key=lambda shard: views[shard].status.updated_at)
    return {
        shard: view
        for shard, view in views.items()
        if shard.count == newest.count or view.holder is not None
    }


def _shards_are_newer(root: Path) -> bool:
    whole = read_status(root)
    found = [status for path in shard_folders(root).values() if (status := read_status(path))]
    newest = max((status.updated_at for status in found), default="")
    return bool(found) and (whole is None or newest > whole.updated_at)
