"""The counts and rates of a run in progress.

Invariant: statistics are only shown: no decision depends on them.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import msgspec

from vllm_caption.captions.rejection_alarm import Rejections
from vllm_caption.formatting import printable
from vllm_caption.messages import Timings
from vllm_caption.monitoring.bottleneck import Limit, Load, limit
from vllm_caption.monitoring.figures import (
    EngineFigures,
    HostFigures,
    LastItem,
    RunFigures,
    num_up,
    rounded,
)
from vllm_caption.monitoring.live.phase import Step, phase

WINDOW_S: Final = 30.0
BUCKET_S: Final = 0.5
PACE_S: Final = 300.0
PACE_OF_ENGINE_S: Final = 60.0
PACE_BUCKET_S: Final = 5.0
NUM_LAST: Final = 3
"""How many captions and failures are kept to be shown."""


def _now() -> str:
    return _shown(datetime.now(UTC))


def _shown(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Rates:
    """Captions and tokens per second, and how many items at a time were being prepared or rendered
    (including those waiting for it), or generated."""

    images_per_s: float = 0.0
    tokens_per_s: float = 0.0
    num_preparing: float = 0.0
    num_rendering: float = 0.0
    num_generating: float = 0.0


@dataclass(slots=True)
class _Bucket:
    begin_s: float
    images: int = 0
    tokens: int = 0
    prepare_s: float = 0.0
    render_s: float = 0.0
    generate_s: float = 0.0


class Recent:
    """The captions of the last half minute, in buckets, so that its cost is bounded."""

    def __init__(self) -> None:
        self._buckets: deque[_Bucket] = deque()

    def add(self, at_s: float, tokens: int, timings: Timings) -> None:
        """Count a caption and its timings."""
        begin_s = at_s // BUCKET_S * BUCKET_S
        if not self._buckets or self._buckets[-1].begin_s < begin_s:
            self._buckets.append(_Bucket(begin_s))
        bucket = self._buckets[-1]
        bucket.images += 1
        bucket.tokens += tokens
        bucket.prepare_s += timings.queue_s + timings.prepare_s
        bucket.render_s += timings.render_queue_s + timings.render_s
        bucket.generate_s += timings.generate_s

    def rates(self, now_s: float) -> Rates:
        """The rates over the window; all zero while there are too few captions."""
        buckets = self._buckets
        while buckets and buckets[0].begin_s < now_s - WINDOW_S:
            buckets.popleft()
        num_images = sum(bucket.images for bucket in buckets)
        if num_images < 2:
            return Rates()
        span_s = max(now_s - buckets[0].begin_s, 1e-3)
        return Rates(
            images_per_s=num_images / span_s,
            tokens_per_s=sum(bucket.tokens for bucket in buckets) / span_s,
            num_preparing=sum(bucket.prepare_s for bucket in buckets) / span_s,
            num_rendering=sum(bucket.render_s for bucket in buckets) / span_s,
            num_generating=sum(bucket.generate_s for bucket in buckets) / span_s,
        )


class Pace:
    """The captions of the last minutes, of the run and of each engine, in buckets."""

    def __init__(self) -> None:
        self._buckets: deque[tuple[float, Counter[int]]] = deque()

    def add(self, at_s: float, engine: int) -> None:
        """Count a caption."""
        if not self._buckets or at_s - self._buckets[-1][0] >= PACE_BUCKET_S:
            self._buckets.append((at_s, Counter()))
        self._buckets[-1][1][engine] += 1

    def images_per_s(self, now_s: float, of_last_s: float, engine: int | None = None) -> float:
        """The rate of one engine or of all; zero while there are too few captions."""
        buckets = self._buckets
        while buckets and buckets[0][0] < now_s - PACE_S:
            buckets.popleft()
        recent = [bucket for bucket in buckets if bucket[0] >= now_s - of_last_s]
        if sum(counts.total() for _, counts in recent) < 2:
            return 0.0
        number = sum(c.total() if engine is None else c[engine] for _, c in recent)
        return number / max(now_s - recent[0][0], 1e-3)


@dataclass(slots=True)
class RunStats:
    """Counts of one run. ``done_before``: captions of earlier runs that are kept; ``kept``: those
    whose .txt was there, by origin. ``adopted``: captions found without a row, which now have one.
    ``restored``: missing .txt files that were rewritten from their rows; ``gone``: those that were
    captioned again instead. ``spared``: captions that people wrote, and that only
    --overwrite-edited replaces."""

    engines: list[EngineFigures]
    gpus_per_engine: int = 1
    gpu_hour_price: float | None = None
    total: int = 0
    scanning: bool = True
    done_before: int = 0
    adopted: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    restored: int = 0
    gone: int = 0
    spared: int = 0
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
    host: HostFigures | None = None
    warnings: list[str] = field(default_factory=list)
    started_at: str = field(default_factory=_now)
    first_caption_s: float | None = None
    last_caption_s: float = 0.0
    recent: Recent = field(default_factory=Recent)
    pace: Pace = field(default_factory=Pace)
    step: Step = "reading the input"
    step_since_s: float | None = None
    last_failures: deque[LastItem] = field(default_factory=lambda: deque(maxlen=NUM_LAST))
    limited_by: Limit | None = None
    limits_s: dict[Limit, float] = field(default_factory=dict)
    _last_captions: deque[tuple[datetime, str, str]] = field(
        default_factory=lambda: deque(maxlen=NUM_LAST)
    )
    _judged: tuple[float, float, float] | None = None

    @property
    def finished(self) -> int:
        """Items of the input that are done."""
        return self.done_before + self.adopted + self.captioned + self.failed

    def count_caption(
        self,
        engine: int,
        prompt_tokens: int,
        output_tokens: int,
        at_s: float,
        timings: Timings = Timings(),  # noqa: B008 - it is frozen
    ) -> None:
        """Count a caption that is on disk."""
        self.captioned += 1
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens
        self.engines[engine].captioned += 1
        self.engines[engine].output_tokens += output_tokens
        self.last_caption_s = at_s
        if self.first_caption_s is None:
            self.first_caption_s = at_s
        self.recent.add(at_s, output_tokens, timings)
        self.pace.add(at_s, engine)

    def count_failure(self, kind: str, example: str) -> None:
        """Count a failed item; the first of each kind is kept as an example."""
        self.failed += 1
        self.failures[kind] += 1
        self.examples.setdefault(kind, example)
        self.last_failures.append(LastItem(_now(), example, kind))

    def keep_caption(self, file: str, caption: str) -> None:
        """Keep a caption, to be shown until three more have come."""
        self._last_captions.append((datetime.now(UTC), file, caption))

    @property
    def last_captions(self) -> list[LastItem]:
        """The captions that came last."""
        return [
            LastItem(_shown(then), f"{printable(file)}: {printable(caption)}")
            for then, file, caption in self._last_captions
        ]

    def begin(self, step: Step, now_s: float) -> None:
        """Set what the run does from now on, unless it is captioning."""
        self.step, self.step_since_s = step, now_s

    def judge(
        self,
        now_s: float,
        *,
        num_waiting: int,
        num_in_flight: int,
        max_num_seqs: int,
        writing_s: float,
        computing_s: float,
    ) -> None:
        """Determine what limits the run now, and attribute the time since the last call to it.

        ``writing_s``, ``computing_s``: the time that the driver has spent on each so far."""
        before_s, written_s, computed_s = self._judged or (now_s, writing_s, computing_s)
        self._judged = (now_s, writing_s, computing_s)
        seconds, rates = now_s - before_s, self.rates(now_s)
        self.limited_by = limit(
            Load(
                num_up=num_up(self.engines),
                num_waiting=num_waiting,
                num_in_flight=num_in_flight,
                scanning=self.scanning,
                max_num_seqs=max_num_seqs,
                writing=(writing_s - written_s) / max(seconds, 1e-3),
                computing=(computing_s - computed_s) / max(seconds, 1e-3),
                images_per_s=rates.images_per_s,
                num_preparing=rates.num_preparing,
                num_rendering=rates.num_rendering,
                num_generating=rates.num_generating,
            )
        )
        self.limits_s[self.limited_by] = self.limits_s.get(self.limited_by, 0.0) + seconds

    # --- as figures ----------------------------------------------------------------------------

    def figures(self, now_s: float) -> RunFigures:
        """The current figures of the run."""
        rates = self.rates(now_s)
        return RunFigures(
            total=self.total,
            scanning=self.scanning,
            done_before=self.done_before + self.adopted,
            captioned=self.captioned,
            failed=self.failed,
            images_per_s=round(rates.images_per_s, 2),
            tokens_per_s=round(rates.tokens_per_s, 1),
            eta_s=self.eta_s(now_s),
            limited_by=self.limited_by,
            phase=self.phase(now_s),
        )

    def phase(self, now_s: float) -> str | None:
        """What the run is doing; None while it is captioning."""
        if self.captioned and self.step != "saving":
            return None
        seconds = None if self.step_since_s is None else now_s - self.step_since_s
        return phase(self.step, self.engines, seconds)

    def engine_figures(self, now_s: float) -> list[EngineFigures]:
        """Rounded copies of the engines' figures, with the rate of each."""
        return [
            msgspec.structs.replace(
                rounded(engine),
                images_per_s=round(self.pace.images_per_s(now_s, PACE_OF_ENGINE_S, number), 2),
            )
            for number, engine in enumerate(self.engines)
        ]

    def rates(self, now_s: float) -> Rates:
        """The rates over the last half minute."""
        return self.recent.rates(now_s)

    def eta_s(self, now_s: float) -> float | None:
        """Seconds to the end at the rate of the last five minutes, which is steadier than that of
        half a minute; None while unknown."""
        rate = self.pace.images_per_s(now_s, PACE_S)
        if self.scanning or rate == 0:
            return None
        return max(self.total - self.finished, 0) / rate

    @property
    def mean_images_per_s(self) -> float | None:
        """The rate from the first caption to the last; None while there are too few captions."""
        return (self.captioned - 1) / self.generating_s if self.generating_s else None

    @property
    def generating_s(self) -> float:
        """Seconds from the first caption to the last."""
        return 0.0 if self.first_caption_s is None else self.last_caption_s - self.first_caption_s
