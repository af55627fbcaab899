"""The live line: tqdm on a terminal, plain lines elsewhere (each 50 items or 10 s), or nothing."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

from vllm_caption.stats import RunStats

PLAIN_EVERY_ITEMS = 50
PLAIN_EVERY_S = 10.0


class Progress:
    """Shows one run's numbers on one stream."""

    def __init__(self, *, quiet: bool, stream: TextIO | None = None) -> None:
        """``stream``: standard error unless another one is given."""
        self._quiet = quiet
        self._stream = stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._shown_finished = 0
        self._shown_s = float("-inf")
        if not quiet and stream.isatty():
            shape = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._bar = tqdm(
                total=0, unit="image", file=stream, bar_format=shape, dynamic_ncols=True
            )

    def tell(self, line: str) -> None:
        """Show one line of text without breaking the bar."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def update(self, stats: RunStats, now_s: float) -> None:
        """Show the present numbers; cheap enough to call often."""
        if self._bar is not None:
            self._bar.total = stats.total
            self._bar.n = stats.finished
            self._bar.set_postfix_str(describe(stats, now_s))
            return
        due = (
            stats.finished - self._shown_finished >= PLAIN_EVERY_ITEMS
            or now_s - self._shown_s >= PLAIN_EVERY_S
        )
        if due and stats.total and not self._quiet:
            self._shown_finished, self._shown_s = stats.finished, now_s
            plus = "+" if stats.scanning else ""
            self.tell(f"{stats.finished}/{stats.total}{plus} {describe(stats, now_s)}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def describe(stats: RunStats, now_s: float) -> str:
    """Rates, time to go, failures and engines, in one short text."""
    images_per_s, tokens_per_s = stats.rates(now_s)
    eta_s = stats.eta_s(now_s)
    eta = "?" if eta_s is None else tqdm.format_interval(int(eta_s))
    parts = [
        f"{images_per_s:.1f} images/s",
        f"{tokens_per_s:.0f} tokens/s",
        f"ETA {eta}",
        f"failed {stats.failed}",
        f"engines {stats.num_up}/{len(stats.engines)}",
    ]
    return ", ".join(parts)
