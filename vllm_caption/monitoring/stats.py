"""The numbers of a run while it runs: what the live line, status.json and the summary show."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from vllm_caption.captions.rejection_alarm import Rejections
from vllm_caption.monitoring.bottleneck import Limit
from vllm_caption.monitoring.rates import Recent

EngineState = Literal["waiting", "starting", "up", "retired", "stopped"]


@dataclass(slots=True)
class EngineStats:
    """One engine slot."""

    state: EngineState = "waiting"
    pid: int | None = None
    captioned: int = 0
    output_tokens: int = 0
    restarts: int = 0
    in_flight: int = 0
    rss_mib: float | None = None
    gpu_percent: float | None = None
    gpu_memory_percent: float | None = None
    gpu_temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class HostStats:
    """The machine around the engines; None is not known."""

    cpu_percent: float
    ram_percent: float
    driver_rss_mib: float
    disk_free_gib: float | None = None
    disk_percent: float | None = None


@dataclass(slots=True)
class RunStats:
    """Counts of one run. ``done_before``: captions of earlier runs that are kept."""

    engines: list[EngineStats]
    total: int = 0
    scanning: bool = True
    done_before: int = 0
    adopted: int = 0
    stale: int = 0
    captioned: int = 0
    twins: int = 0
    failed: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    flags: Counter[str] = field(default_factory=Counter)
    rejections: Rejections = field(default_factory=Rejections)
    host: HostStats | None = None
    warnings: list[str] = field(default_factory=list)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    first_caption_s: float | None = None
    last_caption_s: float = 0.0
    recent: Recent = field(default_factory=Recent)
    limited_by: Limit | None = None
    limits_s: dict[Limit, float] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        """Items of the input that need nothing more in this run."""
        return self.done_before + self.adopted + self.captioned + self.failed

    @property
    def num_up(self) -> int:
        """Engines that can take requests."""
        return sum(engine.state == "up" for engine in self.engines)

    def count_caption(
        self,
        engine: int,
        prompt_tokens: int,
        output_tokens: int,
        at_s: float,
        generate_s: float = 0.0,
    ) -> None:
        """One caption is on disk."""
        self.captioned += 1
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens
        self.engines[engine].captioned += 1
        self.engines[engine].output_tokens += output_tokens
        self.last_caption_s = at_s
        if self.first_caption_s is None:
            self.first_caption_s = at_s
        self.recent.add(at_s, output_tokens, generate_s)

    @property
    def mean_images_per_s(self) -> float | None:
        """From the first caption to the last; None while that says nothing."""
        return (self.captioned - 1) / self.generating_s if self.generating_s else None

    @property
    def generating_s(self) -> float:
        """Seconds from the first caption to the last."""
        return 0.0 if self.first_caption_s is None else self.last_caption_s - self.first_caption_s

    def count_failure(self, kind: str, example: str) -> None:
        """One item failed; the first of a kind is kept to be shown."""
        self.failed += 1
        self.failures[kind] += 1
        self.examples.setdefault(kind, example)

    def rates(self, now_s: float) -> tuple[float, float]:
        """Recent captions per second and output tokens per second."""
        rates = self.recent.rates(now_s)
        return rates.images, rates.tokens

    def eta_s(self, now_s: float) -> float | None:
        """Seconds to the end at the recent rate; None while that cannot be said."""
        rate, _ = self.rates(now_s)
        if self.scanning or rate == 0:
            return None
        return max(self.total - self.finished, 0) / rate
