"""What GPU time costs, from a price per GPU hour. Pure.

The price is in whatever currency the user has in mind, so no currency is shown.

Invariant: every estimate, of what is left and of a million captions, is made here, at the steady
speed of the engines: captions per second from the first to the last of a run, so that start-up does
not count. The speed stands beside the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

LEAST: Final = 0.0001
"""The smallest sum that is shown."""
SpentOn = Literal["so far", "for this run", "for earlier runs", "for all runs"]
"""What GPU time was spent on: "so far" only while a run is in progress."""


class Costs(msgspec.Struct, frozen=True):
    """``done``: the cost of the GPU time that went into ``spent_on``, including engine starts.
    ``left``: of the items that are left, and ``per_million``: of a million captions, both at
    ``images_per_s``, the steady speed. None: not known."""

    done: float | None = None
    left: float | None = None
    per_million: float | None = None
    images_per_s: float | None = None
    spent_on: SpentOn = "so far"

    @property
    def ahead(self) -> str:
        """The estimates, in words."""
        if self.per_million is None or self.images_per_s is None:
            return ""
        left = ""
        if self.left is not None:
            about = "" if self.left < LEAST else "about "
            left = f"{about}{money(self.left)} for what is left, "
        speed = f"{self.images_per_s:,.{1 if self.images_per_s >= 1 else 3}f} images/s"
        return f"{left}{money(self.per_million)} per million captions at {speed}"

    def __str__(self) -> str:
        done = "" if self.done is None else f"{money(self.done)} {self.spent_on}"
        return "; ".join(filter(None, (done, self.ahead)))


@dataclass(frozen=True, slots=True)
class Billing:
    """``price``: of one GPU for an hour; ``num_gpus``: how many are paid for at a time."""

    price: float
    num_gpus: int

    def costs(
        self,
        *,
        gpu_s: float | None = None,
        spent_on: SpentOn = "so far",
        num_left: int = 0,
        images_per_s: float | None = None,
    ) -> Costs:
        """``gpu_s``: went into ``spent_on``; ``images_per_s``: steady, of all GPUs together."""
        done = None if gpu_s is None else gpu_s / 3600 * self.price
        if not images_per_s:
            return Costs(done, spent_on=spent_on)
        each = self.price * self.num_gpus / 3600 / images_per_s
        left = num_left * each if num_left else None
        return Costs(done, left, 1_000_000 * each, images_per_s, spent_on)


def money(cost: float) -> str:
    """Such as 1,234.50, or 0.0012."""
    if 0 < cost < LEAST:
        return f"under {LEAST}"
    return f"{cost:,.2f}" if cost >= 0.1 or not cost else f"{cost:.4f}"
