"""The state of one output folder: from status.json, and whether its run lives from the lock."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from tqdm import tqdm

from vllm_caption.errors import UsageError
from vllm_caption.monitoring.status import RunStatus, read_status
from vllm_caption.store.layout import STATUS
from vllm_caption.store.lock import find_holder

State = Literal["running", "ended", "died"]


class View(msgspec.Struct, frozen=True):
    """One look. ``age_s``: of status.json, in seconds; ``holder``: of the folder, in words."""

    state: State
    holder: str | None
    age_s: float
    status: RunStatus


def look(root: Path) -> View:
    """The present state. Raises UsageError where there is none."""
    view = _look(root)
    # Between the two readings a run may have ended or begun: only what is seen twice is a death.
    return view if view.state != "died" else _look(root)


def _look(root: Path) -> View:
    status, holder = read_status(root), find_holder(root)
    if status is None:
        remedy = f"holds no {STATUS}; name the folder of a run"
        if holder is not None:
            remedy = f"is held by {holder}, which has no {STATUS} yet; ask again in a moment"
        raise UsageError("--output", root, remedy)
    state: State = "running" if status.state == "running" else "ended"
    if state == "running" and holder is None:
        state = "died"
    return View(state, holder, _seconds_since(status.updated_at) or 0.0, status)


def one_line(view: View) -> str:
    """The state on one line, for a log."""
    status = view.status
    up = sum(engine.state == "up" for engine in status.engines)
    return (
        f"{status.updated_at} {view.state} {finished(status)}/{status.total}"
        f"{'+' if status.scanning else ''} {status.images_per_s:g} images/s,"
        f" ETA {interval(status.eta_s)}, failed {status.failed},"
        f" engines {up}/{len(status.engines)}"
    )


def as_dict(view: View) -> dict[str, Any]:
    """For JSON: what status.json holds, and what was seen around it."""
    found: dict[str, Any] = msgspec.to_builtins(view.status)
    return found | {"state": view.state, "holder": view.holder, "age_s": round(view.age_s, 1)}


def finished(status: RunStatus) -> int:
    """Items that are settled, of this run and earlier ones."""
    return status.done_before + status.captioned + status.failed


def interval(seconds: float | None) -> str:
    """As 01:23."""
    return "?" if seconds is None else str(tqdm.format_interval(int(seconds)))


def _seconds_since(moment: str) -> float | None:
    try:
        return max((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
