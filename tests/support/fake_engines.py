"""Engines for tests of what happens around an engine; worker processes import them by name."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL.Image import Image

from vllm_caption.captions.fields import samples
from vllm_caption.engines import worker
from vllm_caption.engines.executors.base import WorkerSpec
from vllm_caption.engines.worker import Generation, RequestRefused
from vllm_caption.errors import ItemError
from vllm_caption.images.files import read_image
from vllm_caption.messages import (
    Cancel,
    Captioned,
    CaptionRequest,
    ImageFacts,
    ImageRead,
    Lease,
    Timings,
)


class FakeEngine:
    """Answers at once with the file's name; certain names make it misbehave."""

    step_s = 0.002
    render_s = 0.0

    def __init__(self, gate: Path, schema: str | None = None) -> None:
        """``gate``: names with `gated` wait until this file exists; ``schema``: of a prompt that
        asks for fields."""
        self.gate = gate
        self.schema = schema
        self.steps = 0

    def render(self, request: CaptionRequest, image: Image) -> object:
        if "refused" in request.file:
            raise RequestRefused("this image is refused \udcff", retryable=False)
        time.sleep(self.render_s)
        return image.size

    async def generate(self, request: CaptionRequest, rendered: object) -> Generation:
        await asyncio.sleep(self.step_s)
        if "poison" in request.file:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in request.file:
            await asyncio.sleep(3600)
        while "gated" in request.file and not self.gate.exists():
            self.steps += 1
            await asyncio.sleep(0.01)
        if "moody" in request.file and request.temperature is None:
            return Generation("", "stop", 10, 0)
        if "exclaim" in request.file:
            return Generation("!!!!!!!!!!!!!!!!!!!!!!!!", "length", 10, 24)
        if "halved" in request.file:
            return Generation("half a star \ud83c in red", "stop", 10, 4)
        if "silent" in request.file:
            return Generation("", "stop", 10, 0)
        if "muses" in request.file:
            return Generation("<think>Okay, the user wants", "length", 10, 100)
        if "thinks" in request.file:
            answer = f"<think>Okay.</think>\n\ncaption of {request.file}"
            return Generation(answer, "stop", 10, 9)
        if self.schema is not None:
            return self.fields(request, json.loads(self.schema))
        if "bug" in request.file:
            raise ZeroDivisionError("nobody expected this")
        return Generation(f"caption of {request.file}", "stop", 10, 4)

    def fields(self, request: CaptionRequest, schema: dict[str, Any]) -> Generation:
        """An answer as of a model that is not forced to follow a schema, but mostly does."""
        values = samples(schema)[0]
        if "file" in values:
            values["file"] = request.file
        if "wrong" in request.file or ("fickle" in request.file and not request.seed):
            values["shape"] = "sun"
        answer = json.dumps(values)
        if "clipped" in request.file:
            return Generation(answer[:20], "length", 10, 20)
        return Generation(answer, "stop", 10, 20)

    def progress(self) -> object:
        """The number of steps, which grows during slow answers."""
        return self.steps

    def exit_codes(self) -> tuple[int, ...]:
        """None: it has no separate process."""
        return ()

    def shutdown(self) -> None:
        """Nothing to stop."""


def slow_down(stage: str) -> None:
    """Make one stage slow, in the process that runs it. `engine 0.5`: each answer takes 0.5 s."""

    def read_slowly(root: str, file: str) -> tuple[bytes, str]:
        time.sleep(0.05)
        return read_image(root, file)

    if stage == "decode":
        worker.read_image = read_slowly  # type: ignore[attr-defined]
    if stage == "disk":
        # Here, since every worker process imports this file, and needs no pyarrow.
        from vllm_caption.store.caption_files import CaptionFiles

        write = CaptionFiles.write

        def write_slowly(files: CaptionFiles, file: str, caption: str) -> None:
            time.sleep(0.08)
            write(files, file, caption)

        CaptionFiles.write = write_slowly  # type: ignore[method-assign]
    if stage == "render":
        FakeEngine.render_s = 0.03
    if stage.startswith("engine"):
        FakeEngine.step_s = float(stage.removeprefix("engine") or 0.2)


def start_fake(spec: WorkerSpec) -> FakeEngine:
    """An engine that starts."""
    slow_down(os.environ.get("FAKE_SLOW_STAGE", ""))
    return FakeEngine(Path(spec.images_root) / "gate", spec.options.schema)


def start_with_quick_beats(spec: WorkerSpec) -> FakeEngine:
    """An engine whose worker shows often enough that it is alive, however busy the machine is."""
    worker.BEAT_S = 0.1
    return start_fake(spec)


def start_with_program(spec: WorkerSpec) -> FakeEngine:
    """An engine with a child process, like a spawned engine core."""
    program = subprocess.Popen(["sleep", "1000"])
    (Path(spec.images_root) / "program").write_text(str(program.pid))
    return start_fake(spec)


def start_on_a_flaky_disk(spec: WorkerSpec) -> FakeEngine:
    """An engine in whose worker the first read of every file fails, as on a network mount."""
    read: set[str] = set()

    def read_later(root: str, file: str) -> tuple[bytes, str]:
        if file not in read:
            read.add(file)
            raise ItemError("unreadable", "it cannot be read: Input/output error", transient=True)
        return read_image(root, file)

    worker.read_image = read_later  # type: ignore[attr-defined]
    return start_fake(spec)


def start_on_an_odd_disk(spec: WorkerSpec) -> FakeEngine:
    """An engine in whose worker some images take 3 s to read, and some are never read."""

    def read_oddly(root: str, file: str) -> tuple[bytes, str]:
        if "slow" in file:
            time.sleep(3)
        if "stuck" in file:
            time.sleep(3600)
        return read_image(root, file)

    worker.read_image = read_oddly  # type: ignore[attr-defined]
    return start_with_quick_beats(spec)


class InstantWorker(worker.Worker):
    """Answers each request as it comes, and uses as little of the processor as it can."""

    async def _receive(self) -> None:
        while isinstance(message := await self._link.receive(), Lease | Cancel):
            answers: list[ImageRead | Captioned] = []
            for request in message.requests if isinstance(message, Lease) else ():
                lease, digest = request.lease, sha256(request.file.encode()).hexdigest()
                facts = ImageFacts(16, 16, "none", digest, bytes.fromhex(digest[:32]))
                caption, no_time = f"caption of {request.file}", Timings(0.0, 0.0, 0.0, 0.0, 0.0)
                answers.append(ImageRead(lease, facts))
                answers.append(Captioned(lease, caption, "stop", 10, 4, facts, no_time))
            self._link.send(*answers)


def start_instant(spec: WorkerSpec) -> FakeEngine:
    """An engine that answers at once; no image is opened."""
    from vllm_caption.engines.executors import local

    local.Worker = InstantWorker  # type: ignore[misc]
    return FakeEngine(Path(spec.images_root) / "gate")


def start_with_temporary_files(spec: WorkerSpec) -> FakeEngine:
    """An engine that leaves temporary files behind, as does vLLM if it is killed."""
    Path(tempfile.mkdtemp(prefix="left-")).joinpath("by-this-process").touch()
    subprocess.run(["mktemp"], check=True, stdout=subprocess.DEVNULL)
    return start_fake(spec)


def start_broken(spec: WorkerSpec) -> FakeEngine:
    """An engine that cannot start."""
    raise RuntimeError("CUDA error: no kernel image is available")


def start_broken_once(spec: WorkerSpec) -> FakeEngine:
    """The very first start of an engine fails; all others succeed."""
    try:
        Path(spec.images_root, "broken").touch(exist_ok=False)
    except FileExistsError:
        return start_fake(spec)
    raise RuntimeError("CUDA error: the GPU is lost")


class OverflowingEngine(FakeEngine):
    """Its numbers overflow for every request once the first caption is written."""

    async def generate(self, request: CaptionRequest, rendered: object) -> Generation:
        self.gate.with_name("asked").touch()
        while not [*self.gate.parent.parent.glob("out/**/*.txt")]:
            await asyncio.sleep(0.01)
        return Generation("!" * 24, "length", 10, 24)


def start_overflowing_once(spec: WorkerSpec) -> FakeEngine:
    """The first engine is faulty; the others, and its replacement, are fine. They start once the
    first one has items, and are slow, so that they leave it enough of them."""
    gate = Path(spec.images_root) / "gate"
    try:
        Path(spec.images_root, "sick").touch(exist_ok=False)
    except FileExistsError:
        while not gate.with_name("asked").exists():
            time.sleep(0.01)
        FakeEngine.step_s = 0.02
        return start_fake(spec)
    return OverflowingEngine(gate)


def start_beside_another_process(spec: WorkerSpec) -> FakeEngine:
    """The first engine of all finds memory that another process still holds; each start notes what
    it was told."""
    with Path(spec.images_root, "told").open("ab") as told:
        told.write(spec.engine_args + b"\n")
    try:
        Path(spec.images_root, "taken").touch(exist_ok=False)
    except FileExistsError:
        return start_fake(spec)
    raise ValueError(
        "Free memory on device cuda:0 (61.2/79.1 GiB) on startup is less than desired GPU memory"
        " utilization (0.92, 72.77 GiB). Decrease GPU memory utilization or reduce GPU memory used"
        " by other processes."
    )


def start_before_a_bug(spec: WorkerSpec) -> FakeEngine:
    """An engine with a child process, in a worker that then fails outside the engine."""
    from vllm_caption.engines.executors import local

    local.Worker = None  # type: ignore[misc,assignment]
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)).start()
    return start_fake(spec)


def never_answer(*_: object) -> None:
    """A flag check that waits forever, as for the Hub."""
    time.sleep(3600)


def die_for_memory(*_: object) -> None:
    """A flag check that the kernel kills, as if memory had run out."""
    os.kill(os.getpid(), signal.SIGKILL)
