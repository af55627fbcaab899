"""What a contestant is told and what it answers, both JSON; and the one definition of its speed.

**Steady state**: from the moment that every engine is up until the last caption is on disk; the
images counted are those finished in it. Start-up is no part of it, for no contestant.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

FIRST_STEP = "BENCH_FIRST_STEP"
"""The variable that names where an engine out of reach notes its begin, see first_step.py."""


@dataclass(frozen=True, slots=True)
class Task:
    """One run of one contestant."""

    contestant: str
    model: str
    images_root: str
    files: list[str]
    output: str
    prompt: str
    max_tokens: int
    ignore_eos: bool = True
    engines: int = 1
    max_num_seqs: int = 8
    flags: list[str] = field(default_factory=list)
    """vLLM engine flags on top of ours, as `--name=value`."""
    options: dict[str, Any] = field(default_factory=dict)
    """The contestant's own settings."""

    @property
    def engine_kwargs(self) -> dict[str, Any]:
        """``flags`` as vLLM's Python arguments."""
        pairs = (flag.removeprefix("--").split("=", 1) for flag in self.flags)
        kwargs: dict[str, Any] = {name.replace("-", "_"): value for name, value in pairs}
        if "logits_processors" in kwargs:
            kwargs["logits_processors"] = [kwargs["logits_processors"]]
        return kwargs


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times are seconds since 1970."""

    started_at: float
    ready_at: list[float]
    """When each engine could take its first request."""
    finished_at: dict[str, float]
    """When each file's caption was on disk."""
    captions: dict[str, str]
    cpu_s: float = 0.0
    """Processor time of all its processes in the steady state."""

    @property
    def all_ready_at(self) -> float:
        """The begin of the steady state."""
        return max(self.ready_at)

    @property
    def images_per_s(self) -> float:
        """In the steady state."""
        return self.num_steady / (max(self.finished_at.values()) - self.all_ready_at)

    @property
    def num_steady(self) -> int:
        """Images finished in the steady state."""
        return sum(at > self.all_ready_at for at in self.finished_at.values())

    @property
    def cpu_ms_per_image(self) -> float:
        """In the steady state."""
        return 1000 * self.cpu_s / max(1, self.num_steady)

    @property
    def first_caption_s(self) -> float:
        """From the command to the first caption on disk."""
        return min(self.finished_at.values()) - self.started_at

    @property
    def all_up_s(self) -> float:
        """From the command to the moment that every engine is up."""
        return self.all_ready_at - self.started_at

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)
