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
    rounded_rate,
)
from vllm_caption.monitoring.live.phase import Step, phase

WINDOW_S: Final = 30.0
BUCKET_S: Final = 0.5
ENOUGH_S: Final = 5.0
ENOUGH_IMAGES: Final = 5
"""With fewer in less time, there is no speed to show."""
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
    """The captions of the window; captions and tokens per second, None while unknown; and how many
    items at a time were being prepared or rendered (including those waiting for it), or
    generated."""

    num_captions: int = 0
    images_per_s: float | None = None
    tokens_per_s: float | None = None
    num_preparing: float = 0.0
    num_rendering: float = 0.0
    num_generating: float = 0.0


def _is_enough(num_images: int, seconds: float) -> bool:
    """Whether so many captions in so many seconds are enough for a speed. The first captions are
    not: the engines make them together, so that they would show none, or thousands a second."""
    return seconds >= WINDOW_S - BUCKET_S or (seconds >= ENOUGH_S and num_images >= ENOUGH_IMAGES)


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
        self._first_s: float | None = None

    def add(self, at_s: float, tokens: int, timings: Timings, images: int = 1) -> None:
        """Count a caption and its timings. ``images``: with those that were copied from others
        since the last call."""
        begin_s = at_s // BUCKET_S * BUCKET_S
        if self._first_s is None:
            self._first_s = begin_s
        if not self._buckets or self._buckets[-1].begin_s < begin_s:
            self._buckets.append(_Bucket(begin_s))
        bucket = self._buckets[-1]
        bucket.images += images
        bucket.tokens += tokens
        bucket.prepare_s += timings.queue_s + timings.prepare_s
        bucket.render_s += timings.render_queue_s + timings.render_s
        bucket.generate_s += timings.generate_s

    def rates(self, now_s: float) -> Rates:
        """The rates over the window, or since the first bucket, whose captions began before it."""
        if self._first_s is None:
            return Rates()
        buckets = self._buckets
        while buckets and buckets[0].begin_s <= now_s - WINDOW_S:
            buckets.popleft()
        begin_s = max(now_s - WINDOW_S, self._first_s + BUCKET_S)
        counted = [bucket for bucket in buckets if bucket.begin_s >= begin_s]
        num_images, seconds = sum(bucket.images for bucket in counted), now_s - begin_s
        is_enough = _is_enough(num_images, seconds)
        span_s = max(min(now_s - self._first_s, WINDOW_S), BUCKET_S)
        return Rates(
            num_captions=sum(bucket.images for bucket in buckets),
            images_per_s=num_images / seconds if is_enough else None,
            tokens_per_s=sum(b.tokens for b in counted) / seconds if is_enough else None,
            num_preparing=sum(bucket.prepare_s for bucket in buckets) / span_s,
            num_rendering=sum(bucket.render_s for bucket in buckets) / span_s,
            num_generating=sum(bucket.generate_s for bucket in buckets) / span_s,
        )


class Pace:
    """The captions of the last minutes, of the run and of each engine, in buckets."""

    def __init__(self) -> None:
        self._buckets: deque[tuple[float, Counter[int | None]]] = deque()
        self._first: dict[int | None, float] = {}
        self._burst: Counter[int | None] = Counter()
        """The captions of the first moment, which began before it."""

    def add(self, at_s: float, engine: int, images: int = 1) -> None:
        """Count a caption of an engine. ``images``: with those that were copied from others since
        the last call, which no engine made."""
        begin_s = at_s // PACE_BUCKET_S * PACE_BUCKET_S
        if not self._buckets or self._buckets[-1][0] < begin_s:
            self._buckets.append((begin_s, Counter()))
        for whose, number in ((engine, 1), (None, images)):
            self._buckets[-1][1][whose] += number
            if at_s < self._first.setdefault(whose, at_s) + BUCKET_S:
                self._burst[whose] += number

    def images_per_s(
        self, now_s: float, of_last_s: float, engine: int | None = None
    ) -> float | None:
        """The rate of one engine, or of all; None while there are too few captions to tell."""
        if engine not in self._first:
            return None
        buckets = self._buckets
        while buckets and buckets[0][0] < now_s - PACE_S:
            buckets.popleft()
        begin_s = -((of_last_s - now_s) // PACE_BUCKET_S) * PACE_BUCKET_S
        number = sum(counts[engine] for bucket_s, counts in buckets if bucket_s >= begin_s)
        first_s = self._first[engine]
        if first_s >= begin_s:
            begin_s, number = first_s + BUCKET_S, number - self._burst[engine]
        seconds = now_s - begin_s
        return number / seconds if _is_enough(number, seconds) else None


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
    is_part: bool = False
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
    _in_rates: int = 0
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
        images, self._in_rates = self.captioned - self._in_rates, self.captioned
        self.recent.add(at_s, output_tokens, timings, images)
        self.pace.add(at_s, engine, images)

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
                num_captions=rates.num_captions,
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
            images_per_s=rounded_rate(rates.images_per_s),
            tokens_per_s=rounded_rate(rates.tokens_per_s),
            eta_s=self.eta_s(now_s),
            # The first captions come in bursts: what limits them changes every second.
            limited_by=None if rates.images_per_s is None else self.limited_by,
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
                images_per_s=rounded_rate(self.pace.images_per_s(now_s, PACE_OF_ENGINE_S, number)),
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
        if self.scanning or not rate:
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
