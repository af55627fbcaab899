"""The worker of one engine: takes leases, prepares images beside the engine, answers one by one.

Every executor runs this same code. A worker decides nothing about an item: it tries once and
reports. It ends when it is told to, when its engine dies, or when the driver is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vllm_caption.config import is_remote
from vllm_caption.engines.decoders import Decoders
from vllm_caption.engines.patient_threads import PatientThreads
from vllm_caption.errors import ABSENT_KINDS, ItemError
from vllm_caption.formatting import encodable
from vllm_caption.images.decode import PreparedImage
from vllm_caption.images.files import read_image
from vllm_caption.images.object_store import FETCH_THREADS, RemoteRoot
from vllm_caption.messages import (
    Beat,
    Cancel,
    Cancelled,
    Captioned,
    CaptionRequest,
    DriverMessage,
    Failed,
    ImageFacts,
    ImageRead,
    Lease,
    Timings,
    WorkerMessage,
)
from vllm_caption.scheduling.duplicates import twin_key

if TYPE_CHECKING:
    from PIL.Image import Image


T = TypeVar("T")

BEAT_S = 1.0


class EngineLost(Exception):
    """The engine died and accepts no more requests. The text is its last error."""


class RootGone(ItemError):
    """Nothing below the images root can be read, perhaps only for a moment: the image is not to
    blame."""


class RequestRefused(Exception):
    """The engine refused this one request or failed on it, and otherwise works."""

    def __init__(self, reason: str, *, retryable: bool) -> None:
        super().__init__(reason)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer of an engine. ``prompt_tokens`` includes those of the image."""

    caption: str
    finish_reason: str | None
    prompt_tokens: int
    output_tokens: int


class CaptionEngine(Protocol):
    """What a worker needs from an engine."""

    def render(self, request: CaptionRequest, image: Image) -> object:
        """Turn text and RGB pixels into the engine's own input. Raises RequestRefused.

        Blocks; always called from the same thread, which is not the event loop's.
        """

    async def generate(self, request: CaptionRequest, rendered: object) -> Generation:
        """Generate a whole answer. Raises RequestRefused, EngineLost."""

    def progress(self) -> object:
        """A value that changes whenever the engine makes progress on a request."""

    def exit_codes(self) -> tuple[int, ...]:
        """The exit codes of its processes that have ended; negative: killed by that signal."""

    def shutdown(self) -> None:
        """Stop the engine and its processes."""


class DriverLink(Protocol):
    """The worker's end of the connection to the driver."""

    async def receive(self) -> DriverMessage | None:
        """The next message; None if the driver is gone."""

    def send(self, message: WorkerMessage) -> None:
        """Queue a message; messages arrive in order."""


class Worker:
    """Serves one link with one engine until the link or the engine ends."""

    def __init__(
        self,
        link: DriverLink,
        engine: CaptionEngine,
        decoders: Decoders,
        images_root: str,
        prepare_threads: int,
        item_timeout_s: float,
        find_twins: bool,
    ) -> None:
        self._link = link
        self._engine = engine
        self._decoders = decoders
        self._images_root = images_root
        self._find_twins = find_twins
        self._item_timeout_s = item_timeout_s
        self._threads = PatientThreads(prepare_threads, item_timeout_s, "prepare")
        # Decoding waits for rendering: what is further ahead would only hold memory and, while it
        # is decoded, take a core from the rendering thread.
        self._ahead = asyncio.Semaphore(2 * prepare_threads)
        # One thread, as in vLLM, whose processors are not thread-safe.
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="render")
        self._fetching: PatientThreads | None = None
        if is_remote(images_root):
            self._fetching = PatientThreads(FETCH_THREADS, item_timeout_s, "fetch")
            self._root = RemoteRoot(images_root)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._in_engine: set[int] = set()
        """Leases whose images are prepared."""
        self._num_rendered = 0
        self._down: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def serve(self) -> BaseException | None:
        """Answer leases until the link or the engine ends; returns what ended the engine."""
        receiving = asyncio.ensure_future(self._receive())
        beating = asyncio.ensure_future(self._beat())
        ends: list[asyncio.Future[Any]] = [receiving, self._down]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        receiving.cancel()
        beating.cancel()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(receiving, *self._tasks.values(), return_exceptions=True)
        self._renderer.shutdown(wait=False, cancel_futures=True)
        for pool in (self._threads, self._fetching):
            if pool is not None:
                pool.shutdown()
        return self._down.result() if self._down.done() else None

    async def _receive(self) -> None:
        while isinstance(message := await self._link.receive(), Lease | Cancel):
            if isinstance(message, Cancel):
                if task := self._tasks.get(message.lease):
                    task.cancel()
                continue
            received = time.perf_counter()
            for request in message.requests:
                task = asyncio.ensure_future(self._answer(request, received))
                self._tasks[request.lease] = task
                task.add_done_callback(partial(self._answered, request.lease))

    async def _beat(self) -> None:
        """Every second, tell the driver that the engine made progress or has nothing to do. Slow
        images do not count against the engine."""
        done: object = None
        while True:
            before, done = done, (self._num_rendered, self._engine.progress())
            if done != before or not self._in_engine:
                self._link.send(Beat())
            await asyncio.sleep(BEAT_S)

    async def _answer(self, request: CaptionRequest, received: float) -> None:
        self._link.send(await self._attempt(request, received))

    def _answered(self, lease: int, task: asyncio.Task[None]) -> None:
        """If a task ends without an answer, end the worker: no item may vanish silently."""
        del self._tasks[lease]
        self._in_engine.discard(lease)
        if task.cancelled():
            self._link.send(Cancelled(lease))
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._down.done():
            self._down.set_result(error)

    async def _attempt(self, request: CaptionRequest, received: float) -> WorkerMessage:
        facts = None
        try:
            fetch_s, read = await self._fetched(request.file)
            fetched_at = time.perf_counter()
            async with self._ahead:
                held_s = 0.0 if self._threads.all_busy() else time.perf_counter() - fetched_at
                prepare = partial(self._decoders.decode, request.lease, read)
                del read
                prepare_at, prepared = await self._threads.run(_timed, prepare)
                prepared_at = time.perf_counter()
                del prepare  # and with it the bytes of a file that was fetched
                facts = self._image_read(request, prepared)
                render_at, rendered = await self._rendered(request, prepared.image)
                rendered_at = time.perf_counter()
                del prepared  # and with it the pixels, which the engine has in its own form
            answer = await self._engine.generate(request, rendered)
        except ItemError as error:
            gone = isinstance(error, RootGone)
            return Failed(request.lease, error.kind, error.reason, error.transient, root_gone=gone)
        except TimeoutError:
            self._decoders.kill(request.lease)
            reason = f"reading and decoding it took more than {self._item_timeout_s:g} s"
            return Failed(request.lease, "timeout", f"{reason} (--item-timeout)", retryable=True)
        except RequestRefused as refused:
            reason, retryable = encodable(str(refused)), refused.retryable
            return Failed(request.lease, "engine_error", reason, retryable, facts)
        prepare_s = fetch_s + prepared_at - prepare_at
        timings = Timings(
            queue_s=prepared_at - received - prepare_s - held_s,
            prepare_s=prepare_s,
            render_queue_s=held_s + render_at - prepared_at,
            render_s=rendered_at - render_at,
            generate_s=time.perf_counter() - rendered_at,
        )
        return Captioned(
            request.lease,
            encodable(answer.caption),
            answer.finish_reason,
            answer.prompt_tokens,
            answer.output_tokens,
            facts,
            timings,
        )

    async def _fetched(self, file: str) -> tuple[float, Callable[[], tuple[bytes, str]]]:
        """The seconds that the network took, and a function that returns the file. Separate threads
        wait for the network, so that the few decoders always have something to decode."""
        if self._fetching is None:
            return 0.0, partial(read_image, self._images_root, file)
        started, fetched = await self._fetching.run(_timed, partial(self._fetch, file))
        return time.perf_counter() - started, lambda: fetched

    def _image_read(self, request: CaptionRequest, prepared: PreparedImage) -> ImageFacts:
        """From here on, count the item as the engine's; tell the driver about its image."""
        self._in_engine.add(request.lease)
        key = twin_key(prepared.sha256, request.system, request.user)
        facts = ImageFacts(prepared.width, prepared.height, prepared.backdrop, prepared.sha256, key)
        if self._find_twins:
            self._link.send(ImageRead(request.lease, facts))
        return facts

    async def _rendered(self, request: CaptionRequest, image: Image) -> tuple[float, object]:
        """When the rendering thread began, and the engine's input."""
        render = partial(self._engine.render, request, image)
        running = asyncio.get_running_loop().run_in_executor(self._renderer, _timed, render)
        started, rendered = await running
        self._num_rendered += 1
        return started, rendered

    def _fetch(self, file: str) -> tuple[bytes, str]:
        try:
            return read_image(self._images_root, file)
        except ItemError as error:
            if error.kind in ABSENT_KINDS and not self._root.still_there():
                raise RootGone(error.kind, error.reason, transient=True) from error
            raise


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    """When a call began, and what it returned."""
    return time.perf_counter(), call()
