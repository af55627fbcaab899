"""What a run does while it is not captioning, in a few words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vllm_caption.formatting import duration
from vllm_caption.monitoring.figures import EngineFigures, num_up

Step = Literal["reading the input", "checking flags (loading vLLM)", "loading", "saving"]


def phase(step: Step, engines: Sequence[EngineFigures], seconds: float | None) -> str:
    """Such as "loading 2/8 engines, 41 s". ``seconds``: since the step began; None if unknown."""
    what: str = step
    if step == "loading":
        up, number = num_up(engines), len(engines)
        what = f"loading {up}/{number} engines" if up < number else "waiting for the first caption"
    return what if seconds is None else f"{what}, {duration(round(seconds))}"
