"""status.json: what a run is doing, replaced whole every few seconds, readable by anything."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from vllm_caption.monitoring.stats import HostStats, RunStats
from vllm_caption.store.layout import STATUS


class EngineStatus(msgspec.Struct, frozen=True):
    """One engine slot."""

    engine: int
    state: str
    pid: int | None
    captioned: int
    output_tokens: int
    restarts: int
    in_flight: int = 0
    rss_mib: float | None = None
    gpu_percent: float | None = None
    gpu_memory_percent: float | None = None
    gpu_temperature_c: float | None = None


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
    host: HostStats | None = None
    warnings: list[str] = []
    limited_by: str | None = None


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
                engine=index,
                state=e.state,
                pid=e.pid,
                captioned=e.captioned,
                output_tokens=e.output_tokens,
                restarts=e.restarts,
                in_flight=e.in_flight,
                rss_mib=_rounded(e.rss_mib),
                gpu_percent=_rounded(e.gpu_percent),
                gpu_memory_percent=_rounded(e.gpu_memory_percent),
                gpu_temperature_c=_rounded(e.gpu_temperature_c),
            )
            for index, e in enumerate(stats.engines)
        ],
        started_at=stats.started_at,
        host=stats.host and _rounded_host(stats.host),
        warnings=list(stats.warnings),
        limited_by=stats.limited_by,
    )


def _rounded_host(host: HostStats) -> HostStats:
    return HostStats(
        cpu_percent=round(host.cpu_percent, 1),
        ram_percent=round(host.ram_percent, 1),
        driver_rss_mib=round(host.driver_rss_mib, 1),
        disk_free_gib=_rounded(host.disk_free_gib),
        disk_percent=_rounded(host.disk_percent),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def read_status(root: Path) -> RunStatus | None:
    """The status that a run wrote last; None where there is none that can be understood."""
    try:
        return msgspec.json.decode((root / STATUS).read_bytes(), type=RunStatus)
    except (OSError, ValueError):
        return None


def encode_status(status: RunStatus) -> bytes:
    """The content of status.json."""
    return msgspec.json.format(msgspec.json.encode(status), indent=2)
