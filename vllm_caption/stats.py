"""The numbers of a run while it runs: what the live line, status.json and the summary show."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

RATE_WINDOW_S = 30.0

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
    examples: dict[str, list[str]] = field(default_factory=dict)
    flags: Counter[str] = field(default_factory=Counter)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def finished(self) -> int:
        """Items of the input that need nothing more in this run."""
        return self.done_before + self.adopted + self.captioned + self.failed

    @property
    def num_up(self) -> int:
        """Engines that can take requests."""
        return sum(engine.state == "up" for engine in self.engines)

    def count_caption(
        self, engine: int, prompt_tokens: int, output_tokens: int, at_s: float
    ) -> None:
        """One caption is on disk."""
        self.captioned += 1
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens
        self.engines[engine].captioned += 1
        self.engines[engine].output_tokens += output_tokens
        self._recent.append((at_s, output_tokens))

    def count_failure(self, kind: str, example: str) -> None:
        """One item failed; the first few of a kind are kept to be shown."""
        self.failed += 1
        self.failures[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < 3:
            shown.append(example)

    def rates(self, now_s: float) -> tuple[float, float]:
        """Recent captions per second and output tokens per second."""
        while self._recent and self._recent[0][0] < now_s - RATE_WINDOW_S:
            self._recent.popleft()
        if len(self._recent) < 2:
            return 0.0, 0.0
        span_s = max(now_s - self._recent[0][0], 1e-3)
        return len(self._recent) / span_s, sum(tokens for _, tokens in self._recent) / span_s

    def eta_s(self, now_s: float) -> float | None:
        """Seconds to the end at the recent rate; None while that cannot be said."""
        rate, _ = self.rates(now_s)
        if self.scanning or rate == 0:
            return None
        return max(self.total - self.finished, 0) / rate
