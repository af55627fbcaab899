"""Who competes, on what, and what is promised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WORKERS = "--worker-cls=benchmarks.throughput.sleepy."
LENGTHS = "--logits-processors=benchmarks.throughput.lengths:ForcedLengths"


@dataclass(frozen=True, slots=True)
class Entry:
    """One contestant of a contest."""

    name: str
    kind: str
    """Its module."""
    engines: int = 1
    count: int | None = None
    """Images, if not all of the contest's."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """``measure`` of ``first`` over that of ``second`` must be at least (or most) ``bound``."""

    first: str
    second: str
    bound: float
    measure: str = "images_per_s"
    at_least: bool = True


@dataclass(frozen=True, slots=True)
class Limit:
    """``measure`` of one contestant alone must be at most ``bound``."""

    name: str
    measure: str
    bound: float


@dataclass(frozen=True, slots=True)
class Contest:
    """Contestants that run alternately, A B C A B C, on the same list."""

    name: str
    title: str
    entries: tuple[Entry, ...]
    targets: tuple[Target | Limit, ...] = ()
    model: str = "tiny"
    count: int = 400
    copies: int = 1
    rounds: int = 3
    max_tokens: int = 32
    lengths: str = ""
    """`varied` or `skewed`; else every answer has ``max_tokens``."""
    worker: str = ""
    """A class of sleepy.py."""
    max_num_seqs: int = 8


JOB = Entry("b job", "job")
CEILING = Entry("a ceiling", "ceiling")
CHAT_LAZY = Entry("c chat, lazy", "chat", options={"images": "lazy"})
CHAT_DECODED = Entry("c chat, decoded", "chat", options={"images": "decoded"})
CHUNKS_64 = Entry("d chat by 64", "chat", options={"images": "decoded", "chunk": 64})
CHUNKS_8 = Entry("d chat by 8", "chat", options={"images": "decoded", "chunk": 8})
RAY = Entry("e Ray Data LLM", "ray_data", options={"batch": 32})
GENERATE = Entry("f generate", "one_by_one", count=64)

CONTESTS = (
    Contest(
        "tiny",
        "bundled tiny model, 32 tokens each",
        (CEILING, JOB, CHAT_LAZY, CHAT_DECODED, CHUNKS_64, CHUNKS_8, RAY, GENERATE),
        (
            Target("b job", "a ceiling", 0.93),
            Target("b job", "c chat, lazy", 0.97),
            Target("b job", "c chat, decoded", 1.2),
            Target("b job", "d chat by 64", 1.3),
            Target("b job", "e Ray Data LLM", 1.2),
            Target("b job", "f generate", 4.0),
        ),
    ),
    Contest(
        "larger",
        "random model (hidden 512, 8 layers), 32 tokens each",
        (CEILING, JOB, CHAT_LAZY),
        (Target("b job", "a ceiling", 0.97), Target("b job", "c chat, lazy", 1.0)),
        model="larger",
    ),
    Contest(
        "sleepy",
        "engine with a GPU's step times (20 ms a step, 10 ms a prefill), 8 to 96 tokens",
        (JOB, CHUNKS_64, CHUNKS_8),
        (Target("b job", "d chat by 64", 1.05), Target("b job", "d chat by 8", 1.5)),
        lengths="varied",
        max_tokens=128,
        worker="SleepyWorker",
    ),
    Contest(
        "split",
        "two such engines; the second half of the list takes four times as long",
        (
            Entry("b job", "job", engines=2),
            Entry("g static split", "static_split", engines=2, options={"images": "lazy"}),
        ),
        (Target("b job", "g static split", 1.3),),
        lengths="skewed",
        max_tokens=128,
        worker="SleepyWorker",
    ),
    Contest(
        "scale",
        "eight such engines against one, 100 tokens each; no arithmetic, as on a GPU's host",
        (
            Entry("b job, 1 engine", "job", count=64),
            Entry("b job, 8 engines", "job", engines=8),
        ),
        (Target("b job, 8 engines", "b job, 1 engine", 7.5),),
        copies=2,
        max_tokens=100,
        worker="HollowWorker",
    ),
    Contest(
        "start",
        "from the command to the first caption on disk",
        (
            Entry("bare engine", "ceiling", count=1, options={"engine_first": True}),
            Entry("b job", "job", count=1),
            Entry("b job, 8 engines", "job", engines=8, count=400),
        ),
        (
            Target("b job", "bare engine", 1.3, "first_caption_s", at_least=False),
            Limit("b job, 8 engines", "all_up_s", 45.0),
        ),
    ),
)
