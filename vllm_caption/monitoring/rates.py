"""What happened in the last half minute, in buckets: its cost does not grow with the speed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 30.0
BUCKET_S = 0.5


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second of the clock: captions, their tokens, and the seconds that they spent being
    generated (together, so also: how many were at it at a time)."""

    images: float = 0.0
    tokens: float = 0.0
    generating: float = 0.0


@dataclass(slots=True)
class _Bucket:
    begin_s: float
    images: int = 0
    tokens: int = 0
    generate_s: float = 0.0


@dataclass(slots=True)
class Recent:
    """The captions of the last `WINDOW_S` seconds."""

    _buckets: deque[_Bucket] = field(default_factory=deque)

    def add(self, at_s: float, tokens: int, generate_s: float) -> None:
        """One caption."""
        begin_s = at_s // BUCKET_S * BUCKET_S
        if not self._buckets or self._buckets[-1].begin_s < begin_s:
            self._buckets.append(_Bucket(begin_s))
        bucket = self._buckets[-1]
        bucket.images += 1
        bucket.tokens += tokens
        bucket.generate_s += generate_s

    def rates(self, now_s: float) -> Rates:
        """The window's sums per second of it; all zero while it says nothing yet."""
        buckets = self._buckets
        while buckets and buckets[0].begin_s < now_s - WINDOW_S:
            buckets.popleft()
        if sum(bucket.images for bucket in buckets) < 2:
            return Rates()
        span_s = max(now_s - buckets[0].begin_s, 1e-3)
        return Rates(
            images=sum(bucket.images for bucket in buckets) / span_s,
            tokens=sum(bucket.tokens for bucket in buckets) / span_s,
            generating=sum(bucket.generate_s for bucket in buckets) / span_s,
        )
