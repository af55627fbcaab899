"""The same worker body in the driver's process and event loop: the simplest executor."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from vllm_caption.captions.question import Question
from vllm_caption.config import ImageConfig, SamplingConfig
from vllm_caption.engines.decoders import Decoders
from vllm_caption.engines.executors.base import Ended, WorkerSpec
from vllm_caption.engines.executors.local import COMMON_ENVIRONMENT, CPU_ENVIRONMENT
from vllm_caption.engines.worker import Worker
from vllm_caption.messages import DriverMessage, EngineDown, FlagsChecked, Ready, WorkerMessage


class InlineWorker:
    """Both ends of one worker's channel."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._inbox: asyncio.Queue[DriverMessage | None] = asyncio.Queue()
        self._outbox: asyncio.Queue[WorkerMessage | None] = asyncio.Queue()
        self._serving = asyncio.create_task(self._serve(spec))
        self._serving.add_done_callback(lambda _: self._outbox.put_nowait(None))
        self.receive = self._outbox.get
        self.send = self._inbox.put_nowait

    async def _serve(self, spec: WorkerSpec) -> None:
        decoders = Decoders(spec.image)
        try:
            await self._serve_with(decoders, spec)
        finally:
            decoders.close()

    async def _serve_with(self, decoders: Decoders, spec: WorkerSpec) -> None:
        try:
            engine = spec.start_engine(spec)
        except Exception as error:  # noqa: BLE001 - as in a worker process
            self._outbox.put_nowait(EngineDown(str(error)))
            return
        self._outbox.put_nowait(Ready(0))
        link = _Link(self._inbox, self._outbox)
        worker = Worker(
            *(link, engine, decoders, spec.images_root),
            *(spec.prepare_threads, spec.item_timeout_s, spec.find_twins),
        )
        if (death := await worker.serve()) is not None:
            self._outbox.put_nowait(EngineDown(f"{type(death).__name__}: {death}"))
        engine.shutdown()

    def kill(self) -> None:
        """Cancel it."""
        self._serving.cancel()

    async def join(self, timeout_s: float) -> Ended:
        """Wait, then cancel."""
        await asyncio.wait([self._serving], timeout=timeout_s)
        self.kill()
        await asyncio.wait([self._serving])
        return Ended("its task ended")


class _Link:
    def __init__(self, inbox: Any, outbox: Any) -> None:
        self.receive, self.send = inbox.get, outbox.put_nowait


class InlineExecutor:
    """Starts workers as tasks."""

    on_cpu = True

    def __init__(self) -> None:
        self.spec: WorkerSpec | None = None
        for name, value in (COMMON_ENVIRONMENT | CPU_ENVIRONMENT).items():
            os.environ.setdefault(name, value)

    async def check_flags(
        self,
        flags: tuple[str, ...],
        image: ImageConfig,
        sampling: SamplingConfig,
        question: Question,
    ) -> FlagsChecked:
        from vllm_caption.engines.vllm_engine import check_engine_args

        return check_engine_args(flags, image, sampling, question, on_cpu=True)

    async def place(self, engine: int) -> None:
        """Do nothing: there is always room."""

    async def start(self, engine: int) -> InlineWorker:
        assert self.spec is not None
        return InlineWorker(self.spec)

    def close(self) -> None:
        """Do nothing: nothing is held."""
