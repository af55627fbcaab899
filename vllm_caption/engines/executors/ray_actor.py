"""The part of an engine on a node of a Ray cluster, which `ray.py` turns into an actor.

It starts the same worker process that `local.py` starts and forwards its messages, so that an
engine has its own main thread and session, and dies with its actor.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from vllm_caption.captions.question import Question
from vllm_caption.config import ImageConfig, SamplingConfig
from vllm_caption.engines.executors.base import Ended, WorkerSpec
from vllm_caption.engines.executors.local import LocalExecutor
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.messages import DriverMessage, FlagsChecked, Refused, WorkerMessage


class EngineActor:
    """Starts and holds the worker process of one engine on a node."""

    def __init__(self, engine: int, logs: str, environment: dict[str, str], on_cpu: bool) -> None:
        """``logs``: the driver's log folder; if it cannot be written on this node, the
        log is in the node's folder for temporary files."""
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        gpus = None if on_cpu else os.environ.get("CUDA_VISIBLE_DEVICES", "")
        self._engine = engine
        folder = Path(logs)
        if not os.access(folder, os.W_OK):
            folder = Path(tempfile.gettempdir(), f"vllm_caption-{os.getuid()}")
            folder.mkdir(exist_ok=True)
        # The engine's number only names its log: the GPUs are the same for any number.
        self._executor = LocalExecutor([gpus] * (engine + 1), folder)
        self._messages: asyncio.Queue[WorkerMessage | None] = asyncio.Queue()

    async def placed(self) -> None:
        """Returns once the actor has been placed."""

    async def check_flags(
        self,
        flags: tuple[str, ...],
        image: ImageConfig,
        sampling: SamplingConfig,
        question: Question,
    ) -> FlagsChecked | Refused | str:
        """Like the executor's, but errors are returned."""
        try:
            return await self._executor.check_flags(flags, image, sampling, question)
        except UsageError as error:
            return Refused.of(error)
        except RunStopped as error:
            return str(error)

    async def start(self, spec: WorkerSpec) -> str | None:
        """Start the worker process; returns the reason if that failed."""
        self._executor.spec = spec
        try:
            self._worker = await self._executor.start(self._engine)
        except OSError as refusal:
            return str(refusal)
        self._listening = asyncio.create_task(self._listen())
        return None

    async def _listen(self) -> None:
        message: WorkerMessage | None
        while (message := await self._worker.receive()) is not None:
            self._messages.put_nowait(message)
        self._messages.put_nowait(None)

    async def deliver(self, messages: list[DriverMessage]) -> None:
        """Hand messages to the worker."""
        for message in messages:
            self._worker.send(message)

    async def collect(self) -> list[WorkerMessage | None]:
        """The worker's messages since the last call, at least one; None marks its end."""
        messages = [await self._messages.get()]
        while not self._messages.empty():
            messages.append(self._messages.get_nowait())
        return messages

    async def join(self, timeout_s: float) -> Ended:
        """Like the worker's."""
        return await self._worker.join(timeout_s)
