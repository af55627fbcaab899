"""What GPU time costs, from a price per GPU hour. Pure.

The price is in whatever currency the user has in mind, so no currency is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class Costs(msgspec.Struct, frozen=True):
    """``done``: the cost of the GPU time so far, including engine starts. ``left``: of the items
    that are left, and ``per_million``: of a million captions, both at the engines' present speed
    and without their start. None: not known."""

    done: float | None = None
    left: float | None = None
    per_million: float | None = None

    @property
    def ahead(self) -> str:
        """The costs still to come, in words."""
        parts = (
            (self.left, "about {} for what is left"),
            (self.per_million, "{} per million captions"),
        )
        return ", ".join(form.format(money(cost)) for cost, form in parts if cost is not None)

    def __str__(self) -> str:
        return self.in_words()

    def in_words(self, of: str = "so far") -> str:
        """All that is known. ``of``: what the time was spent on."""
        done = "" if self.done is None else f"{money(self.done)} {of}"
        return ", ".join(filter(None, (done, self.ahead)))


@dataclass(frozen=True, slots=True)
class Billing:
    """``price``: of one GPU for an hour; ``num_gpus``: how many are paid for at a time."""

    price: float
    num_gpus: int

    def costs(
        self, *, gpu_s: float | None = None, num_left: int = 0, images_per_s: float | None = None
    ) -> Costs:
        """``gpu_s``: spent so far; ``images_per_s``: of all GPUs together."""
        done = None if gpu_s is None else gpu_s / 3600 * self.price
        if not images_per_s:
            return Costs(done)
        each = self.price * self.num_gpus / 3600 / images_per_s
        return Costs(done, num_left * each if num_left else None, 1_000_000 * each)


def money(cost: float) -> str:
    """Such as 1,234.50, or 0.0012."""
    return f"{cost:,.2f}" if cost >= 0.1 else f"{cost:.4f}"
