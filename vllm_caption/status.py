"""status.json: what a run is doing, replaced whole every few seconds, readable by anything."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from vllm_caption.stats import RunStats


class EngineStatus(msgspec.Struct, frozen=True):
    """One engine slot."""

    engine: int
    state: str
    pid: int | None
    captioned: int
    output_tokens: int
    restarts: int
    in_flight: int = 0


class RunStatus(msgspec.Struct, frozen=True):
    """One run at one moment. Times are ISO 8601 UTC; rates are of the last 30 s."""

    run_id: str
    state: str
    pid: int
    updated_at: str
    total: int
    scanning: bool
    done_before: int
    captioned: int
    failed: int
    images_per_s: float
    tokens_per_s: float
    eta_s: float | None
    failures: dict[str, int]
    engines: list[EngineStatus]
    started_at: str = ""


def make_status(run_id: str, state: str, stats: RunStats, now_s: float, at: str) -> RunStatus:
    """The present numbers of a run. ``now_s`` is of the clock that the stats were counted by."""
    images_per_s, tokens_per_s = stats.rates(now_s)
    return RunStatus(
        run_id=run_id,
        state=state,
        pid=os.getpid(),
        updated_at=at,
        total=stats.total,
        scanning=stats.scanning,
        done_before=stats.done_before + stats.adopted,
        captioned=stats.captioned,
        failed=stats.failed,
        images_per_s=round(images_per_s, 2),
        tokens_per_s=round(tokens_per_s, 1),
        eta_s=stats.eta_s(now_s),
        failures=dict(stats.failures),
        engines=[
            EngineStatus(
                index, e.state, e.pid, e.captioned, e.output_tokens, e.restarts, e.in_flight
            )
            for index, e in enumerate(stats.engines)
        ],
        started_at=stats.started_at,
    )


def read_status(root: Path) -> RunStatus | None:
    """What write_status left last; None where there is none, or none that can be understood."""
    try:
        return msgspec.json.decode((root / "status.json").read_bytes(), type=RunStatus)
    except (OSError, msgspec.DecodeError):
        return None


def write_status(root: Path, status: RunStatus) -> None:
    """Replace status.json."""
    temporary = root / ".status.json.tmp"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(status), indent=2))
    temporary.replace(root / "status.json")
