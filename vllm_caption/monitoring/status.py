"""status.json: what a run is doing, replaced as a whole every few seconds, readable by any program.

Invariants: the state is "running" until everything is saved, then how the run ended; whether a
"running" run is alive is decided by the lock of its folder alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast, get_args

import msgspec

from vllm_caption.errors import EXIT_INTERRUPTED, CaptionJobError, UsageError
from vllm_caption.formatting import first_line
from vllm_caption.monitoring.figures import (
    EngineFigures,
    HostFigures,
    LastItem,
    RunFigures,
    rounded,
    rounded_rate,
)
from vllm_caption.monitoring.stats import PACE_S, RunStats
from vllm_caption.store.layout import MANIFEST, STATUS, parts
from vllm_caption.store.lock import find_holder

RunState = Literal["running", "finished", "interrupted", "stopped"]
"""The states that a run reports."""
State = RunState | Literal["died"]
"""The states that an observer can see."""
ENOUGH_CAPTIONS: Final = 100
"""A run that makes so many shows its own speed, even if an earlier one has made more."""


class Speed(msgspec.Struct, frozen=True):
    """The steady speed of a run: ``images_per_s`` of all engines together, from the first to the
    last of its ``captions``, of which ``num_engines`` made some. ``num_gpus``: of all engines;
    ``at``: when it was measured."""

    images_per_s: float
    captions: int
    num_engines: int
    num_gpus: int
    at: str


class RunStatus(RunFigures, frozen=True, kw_only=True):
    """One run at one moment. Times are ISO 8601 UTC. Files of older versions may lack the fields
    that have a default."""

    run_id: str
    state: str
    """A `RunState`; older versions wrote "ended" for all but the first."""
    pid: int
    updated_at: str
    failures: dict[str, int]
    engines: list[EngineFigures]
    started_at: str = ""
    gpus_per_engine: int = 1
    gpu_hour_price: float | None = None
    is_part: bool = False
    """A pilot, or a run that --limit ended: there may be more items than ``total``."""
    host: HostFigures | None = None
    warnings: list[str] = msgspec.field(default_factory=list)
    reason: str = ""
    """Why a run stopped."""
    images_per_s_5_min: float | None = None
    images_per_s_of_run: float | None = None
    """From the first caption to the last."""
    speed: Speed | None = None
    """The same, or that of an earlier run where this one has made too few captions to tell."""
    last_captions: list[LastItem] = msgspec.field(default_factory=list)
    last_failures: list[LastItem] = msgspec.field(default_factory=list)

    @property
    def num_gpus(self) -> int:
        """Of all engines."""
        return len(self.engines) * self.gpus_per_engine

    def as_dict(self) -> dict[str, Any]:
        """The fields for JSON, in the order of the file: the run, its figures, then the rest."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        first = {name: fields.pop(name) for name in ("run_id", "state", "pid", "updated_at")}
        last = {name: fields.pop(name) for name in ("limited_by", "phase")}
        return first | fields | last


def how_it_ended(exit_code: int, error: BaseException | None) -> tuple[RunState, str]:
    """The final state of a run, and the reason if it stopped. ``error``: what ended it."""
    if error is not None:
        what = "" if isinstance(error, CaptionJobError) else f"{type(error).__name__}: "
        return "stopped", what + first_line(error)
    return ("interrupted" if exit_code == EXIT_INTERRUPTED else "finished"), ""


def make_status(
    run_id: str,
    state: RunState,
    stats: RunStats,
    now_s: float,
    at: str,
    reason: str = "",
    earlier: Speed | None = None,
) -> RunStatus:
    """The current status of a run. ``now_s``: from the clock that the stats use; ``earlier``: the
    speed of the runs before it."""
    figures = stats.figures(now_s)
    if state != "running":
        figures = msgspec.structs.replace(figures, phase=None)
    # A run that has just begun does not know its speed yet; one that has ended knows no better.
    is_known = state != "running" or figures.images_per_s is not None
    steady = rounded_rate(stats.mean_images_per_s or None) if is_known else None
    return RunStatus(
        **msgspec.structs.asdict(figures),
        run_id=run_id,
        state=state,
        pid=os.getpid(),
        started_at=stats.started_at,
        gpus_per_engine=stats.gpus_per_engine,
        gpu_hour_price=stats.gpu_hour_price,
        is_part=stats.is_part,
        updated_at=at,
        failures=dict(stats.failures),
        engines=stats.engine_figures(now_s),
        host=stats.host and rounded(stats.host),
        warnings=list(stats.warnings),
        reason=reason,
        images_per_s_5_min=rounded_rate(stats.pace.images_per_s(now_s, PACE_S)),
        images_per_s_of_run=steady,
        speed=earlier if steady is None else _speed(steady, stats, at, earlier),
        last_captions=stats.last_captions,
        last_failures=list(stats.last_failures),
    )


def _speed(images_per_s: float, stats: RunStats, at: str, earlier: Speed | None) -> Speed | None:
    enough = 0 if earlier is None else min(earlier.captions, ENOUGH_CAPTIONS)
    if stats.captioned < enough:
        return earlier
    busy = sum(engine.captioned > 0 for engine in stats.engines)
    num_gpus = len(stats.engines) * stats.gpus_per_engine
    return Speed(images_per_s, stats.captioned, busy, num_gpus, at)


def encode_status(status: RunStatus) -> bytes:
    """The content of status.json."""
    return msgspec.json.format(msgspec.json.encode(status.as_dict()), indent=2)


def read_status(root: Path) -> RunStatus | None:
    """The last status that a run wrote; None if there is none, or it is unreadable."""
    try:
        return msgspec.json.decode((root / STATUS).read_bytes(), type=RunStatus)
    except (OSError, ValueError, RecursionError):
        return None


class SteadySpeed(NamedTuple):
    """Of these GPUs together."""

    images_per_s: float
    num_gpus: int


def steady_speed(statuses: Iterable[RunStatus]) -> SteadySpeed:
    """Of all runs together; those that have no speed yet do not count."""
    known = [status.speed for status in statuses if status.speed is not None]
    return SteadySpeed(sum(s.images_per_s for s in known), sum(s.num_gpus for s in known))


# --- seen from outside -----------------------------------------------------------------------


class View(msgspec.Struct, frozen=True):
    """The state of an output folder. ``holder``: the run that holds it, in words; ``age_s``: the
    age of its status.json."""

    state: State
    holder: str | None
    age_s: float
    status: RunStatus

    def as_dict(self) -> dict[str, Any]:
        """The content of status.json plus what was observed, for JSON."""
        seen = {"state": self.state, "holder": self.holder, "age_s": round(self.age_s, 1)}
        return self.status.as_dict() | seen


def look(root: Path) -> View:
    """The current state of a folder. Raises UsageError if it has none."""
    view = _look(root)
    # A run may have ended or started between the two reads, so a death must be seen twice.
    return view if view.state != "died" else _look(root)


def _look(root: Path) -> View:
    status, holder = read_status(root), find_holder(root)
    if status is None:
        remedy = f"holds no {STATUS}; name the folder of a run"
        if parts(root / MANIFEST):
            remedy = f"has captions, but no {STATUS}, as after merge: no run has used it yet;"
            remedy += " `report` and `verify` show what it holds"
        if holder is not None:
            remedy = f"is held by {holder}, which has no {STATUS} yet; try again in a moment"
        if _is_locked(root / STATUS):
            remedy = f"its {STATUS} cannot be read by this user; fix its permissions"
        raise UsageError("--output", root, remedy)
    return View(seen_state(status, holder), holder, _seconds_since(status.updated_at), status)


def _is_locked(path: Path) -> bool:
    return os.path.lexists(path) and not os.access(path, os.R_OK, effective_ids=True)


def seen_state(status: RunStatus, holder: str | None) -> State:
    """The state of a run, from its last status and who holds its folder now."""
    if status.state == "running":
        return "running" if holder is not None else "died"
    if status.state in get_args(RunState):
        return cast(RunState, status.state)
    is_finished = not status.scanning and status.finished >= status.total  # an older version's
    return "finished" if is_finished else "stopped"


def _seconds_since(moment: str) -> float:
    try:
        return max((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 0.0)
    except (ValueError, TypeError):  # somebody edited the file
        return 0.0
