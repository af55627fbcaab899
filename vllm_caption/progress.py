"""The live line: tqdm on a terminal, plain lines elsewhere (each 50 items or 10 s), or nothing.

Invariant: a stream that can no longer be written (a closed terminal, a full disk behind `2>`, a
reader that left) costs the lines, never the run.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from vllm_caption.stats import RunStats

PLAIN_EVERY_ITEMS = 50
PLAIN_EVERY_S = 10.0
_UNWRITABLE = (OSError, ValueError)


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
        with contextlib.suppress(*_UNWRITABLE):
            if self._bar is not None:
                self._bar.write(line, file=self._stream)
            else:
                print(line, file=self._stream, flush=True)

    def update(self, stats: RunStats, now_s: float) -> None:
        """Show the present numbers; cheap enough to call often."""
        if self._bar is not None:
            with contextlib.suppress(*_UNWRITABLE):
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
            with contextlib.suppress(*_UNWRITABLE):
                self._bar.close()


class DocumentProgress:
    """Documents read so far: a bar on a terminal, a plain line every 10 s elsewhere, or nothing."""

    def __init__(self, total: int, *, quiet: bool, stream: TextIO | None = None) -> None:
        self._total = total
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None
        self._shown_s = time.monotonic()
        if not quiet and self._stream.isatty():
            self._bar = tqdm(total=total, unit="document", file=self._stream, dynamic_ncols=True)

    def show(self, documents: int) -> None:
        """Cheap enough to call for every item."""
        if self._bar is not None:
            self._bar.update(documents - self._bar.n)
        elif not self._quiet and time.monotonic() - self._shown_s >= PLAIN_EVERY_S:
            self._shown_s = time.monotonic()
            print(f"{documents}/{self._total} documents", file=self._stream, flush=True)

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
