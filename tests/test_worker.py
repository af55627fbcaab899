"""What a worker does with its leases beside the engine, without processes."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from vllm_caption.config import ImageConfig
from vllm_caption.engines.decoders import Decoders
from vllm_caption.engines.worker import Generation, Worker
from vllm_caption.messages import Beat, Captioned, CaptionRequest, ImageRead, Lease

NUM_ITEMS = 40
THREADS = 3
AHEAD = 2 * THREADS
"""How many images are held decoded for the renderer."""


class HeldEngine:
    """Renders one image, then no more until the gate opens, and from then on only while as many
    images as may be are decoded. Its answers come when all images are rendered."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.gate = threading.Event()
        self.num_rendered = 0
        self.images: list[weakref.ref[Any]] = []
        self.most_images = 0

    def render(self, request: CaptionRequest, image: Any) -> object:
        if self.num_rendered:
            self.gate.wait()
            while count(self.link.sent, ImageRead) < min(NUM_ITEMS, self.num_rendered + AHEAD):
                time.sleep(0.001)
        self.num_rendered += 1
        self.images.append(weakref.ref(image))
        return request.file

    async def generate(self, request: CaptionRequest, rendered: object) -> Generation:
        while self.num_rendered < NUM_ITEMS:
            await asyncio.sleep(0.01)
        self.most_images = max(self.most_images, sum(ref() is not None for ref in self.images))
        return Generation(str(rendered), "stop", 10, 4)

    def progress(self) -> object:
        return self.num_rendered

    def exit_codes(self) -> tuple[int, ...]:
        return ()

    def shutdown(self) -> None:
        return


class Link:
    """The driver's end: what the worker sends is looked at, one by one."""

    def __init__(self, lease: Lease) -> None:
        self._inbox: asyncio.Queue[Lease | None] = asyncio.Queue()
        self._inbox.put_nowait(lease)
        self.sent: list[Any] = []
        self._told = asyncio.Event()

    async def receive(self) -> Lease | None:
        return await self._inbox.get()

    def send(self, message: Any) -> None:
        if not isinstance(message, Beat):
            self.sent.append(message)
            self._told.set()

    def end(self) -> None:
        self._inbox.put_nowait(None)

    async def until(self, done: Callable[[list[Any]], bool]) -> None:
        while not done(self.sent):
            self._told.clear()
            await asyncio.wait_for(self._told.wait(), 30)


def count(messages: list[Any], kind: type) -> int:
    return sum(isinstance(message, kind) for message in messages)


def test_images_are_not_decoded_further_ahead_of_the_renderer_than_its_threads_need(
    tmp_path: Path,
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "x.png")
    requests = tuple(CaptionRequest(n, "x.png", "?") for n in range(NUM_ITEMS))

    async def serve() -> tuple[int, int, list[Captioned]]:
        link = Link(Lease(requests))
        engine = HeldEngine(link)
        decoders = Decoders(ImageConfig())
        worker = Worker(link, engine, decoders, str(tmp_path), THREADS, 30.0, True)
        started = time.perf_counter()
        serving = asyncio.ensure_future(worker.serve())
        most = 1 + AHEAD  # the rendered one, and those that are ahead of the renderer
        await link.until(lambda sent: count(sent, ImageRead) >= most)
        # Ten times what the first seven took: all forty could be decoded in it.
        await asyncio.sleep(10 * (time.perf_counter() - started))
        num_decoded = count(link.sent, ImageRead)
        engine.gate.set()
        await link.until(lambda sent: count(sent, Captioned) == NUM_ITEMS)
        link.end()
        await serving
        decoders.close()
        return (
            num_decoded,
            engine.most_images,
            [sent for sent in link.sent if isinstance(sent, Captioned)],
        )

    num_decoded, most_images, captioned = asyncio.run(serve())
    assert num_decoded == 1 + AHEAD
    assert most_images <= AHEAD  # of forty in the engine
    # The others waited for the renderer, and say so, whether or not they were decoded already.
    waited_s = sum(answer.timings.render_queue_s for answer in captioned)
    assert waited_s > 5 * sum(answer.timings.queue_s for answer in captioned)
