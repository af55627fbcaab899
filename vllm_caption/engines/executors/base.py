"""What the driver needs from an executor, and what a worker needs to start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vllm_caption.captions.prompt import NO_OPTIONS, RequestOptions
from vllm_caption.captions.question import Question
from vllm_caption.config import EngineConfig, ImageConfig, SamplingConfig
from vllm_caption.engines.model_files import ModelFiles
from vllm_caption.engines.worker import CaptionEngine
from vllm_caption.messages import DriverMessage, FlagsChecked, WorkerMessage


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything that a worker gets at its start; the same for every engine of a run."""

    images_root: str
    image: ImageConfig
    sampling: SamplingConfig
    prepare_threads: int
    start_engine: Callable[[WorkerSpec], CaptionEngine]
    options: RequestOptions = NO_OPTIONS
    engine_args: bytes = b""
    on_cpu: bool = False
    find_twins: bool = True
    item_timeout_s: float = EngineConfig().item_timeout_s
    model_files: ModelFiles | None = None
    """The files of a model folder on this machine; no engine may load them once they have
    changed."""


def start_vllm(spec: WorkerSpec) -> CaptionEngine:
    """Start the real engine; vLLM is imported here, in the worker, and nowhere in the driver."""
    from vllm_caption.engines.vllm_engine import start_engine

    return start_engine(spec.engine_args, spec.sampling, spec.options, on_cpu=spec.on_cpu)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker ended. ``gone``: False for a process that does not end, for example if its GPU
    has fallen off the bus; ``how`` then says what was tried."""

    how: str
    gone: bool = True


class WorkerHandle(Protocol):
    """The driver's end of one worker."""

    async def receive(self) -> WorkerMessage | None:
        """The next message in order; None if the worker is gone."""

    def send(self, message: DriverMessage) -> None:
        """Queue a message; never blocks."""

    def kill(self) -> None:
        """Kill the worker and everything it started, at once; `receive` ends soon in any case."""

    async def join(self, timeout_s: float) -> Ended:
        """Wait for the worker to leave, kill what is left, and say how it ended."""


class Executor(Protocol):
    """Starts workers. ``spec``: what the next ones get; set before the first start."""

    spec: WorkerSpec | None
    on_cpu: bool

    async def check_flags(
        self,
        flags: tuple[str, ...],
        image: ImageConfig,
        sampling: SamplingConfig,
        question: Question,
    ) -> FlagsChecked:
        """Have vLLM check its flags, and a request like those of the run, where the engines will
        run. Raises UsageError, RunStopped."""

    async def place(self, engine: int) -> None:
        """Wait until there is room for an engine, however long. Raises OSError."""

    async def start(self, engine: int) -> WorkerHandle:
        """Start the worker of a slot that has been placed; returns before the engine is ready.
        Raises OSError."""

    def close(self) -> None:
        """Release what was needed to start workers."""
