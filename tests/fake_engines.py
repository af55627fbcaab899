"""Engines for tests of what happens around an engine; worker processes import them by name."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
from pathlib import Path

from PIL.Image import Image

from vllm_caption import worker
from vllm_caption.config import ImageConfig
from vllm_caption.executors.base import WorkerSpec
from vllm_caption.image_files import _os_refusal
from vllm_caption.images import PreparedImage, prepare_image
from vllm_caption.messages import CaptionRequest
from vllm_caption.worker import Generation, RequestRefused


class FakeEngine:
    """Answers at once with the file's name; some names make it misbehave."""

    def __init__(self, gate: Path) -> None:
        """``gate``: names with `gated` wait until this file exists."""
        self.gate = gate

    async def render(self, request: CaptionRequest, image: Image) -> object:
        if "refused" in request.file:
            raise RequestRefused("this image is refused", retryable=False)
        return image.size

    async def generate(self, request: CaptionRequest, rendered: object) -> Generation:
        await asyncio.sleep(0.002)
        if "poison" in request.file:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in request.file:
            await asyncio.sleep(3600)
        while "gated" in request.file and not self.gate.exists():
            await asyncio.sleep(0.01)
        if "moody" in request.file and request.temperature is None:
            return Generation("", "stop", 10, 0)
        if "silent" in request.file:
            return Generation("", "stop", 10, 0)
        if "bug" in request.file:
            raise ZeroDivisionError("nobody expected this")
        return Generation(f"caption of {request.file}", "stop", 10, 4)

    def shutdown(self) -> None:
        """Nothing to stop."""


def start_fake(spec: WorkerSpec) -> FakeEngine:
    """An engine that starts."""
    return FakeEngine(Path(spec.images_root) / "gate")


def start_with_program(spec: WorkerSpec) -> FakeEngine:
    """An engine with a program of its own, as a spawned engine core is."""
    program = subprocess.Popen(["sleep", "1000"])
    (Path(spec.images_root) / "program").write_text(str(program.pid))
    return start_fake(spec)


def start_on_a_flaky_disk(spec: WorkerSpec) -> FakeEngine:
    """An engine beside which the first reading of every file fails, as on a network mount."""
    read: set[str] = set()

    def prepare(root: str, file: str, config: ImageConfig) -> PreparedImage:
        if file not in read:
            read.add(file)
            raise _os_refusal(OSError(errno.EIO, os.strerror(errno.EIO)))
        return prepare_image(root, file, config)

    worker.prepare_image = prepare  # type: ignore[attr-defined]
    return start_fake(spec)


def start_broken(spec: WorkerSpec) -> FakeEngine:
    """An engine that cannot start."""
    raise RuntimeError("CUDA error: no kernel image is available")
