"""The images of the items to caption: a stat of each, or each opened in threads as in a run.

Invariants: at most ``QUEUE_PER_THREAD`` images per thread wait or are open at a time, and only
figures of them are kept; problems are reported in the order of the items, whichever thread finds
them.
"""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

from vllm_caption.captions.prompt import Prompt, render
from vllm_caption.commands.plan.report import Images, Size, Sizes, TwinFiles, VisionTokens
from vllm_caption.config import ImageConfig, is_remote
from vllm_caption.errors import ItemError
from vllm_caption.images.decode import prepare_image
from vllm_caption.images.files import num_bytes
from vllm_caption.items import Item
from vllm_caption.scheduling.duplicates import twin_key

TOKEN_SIDE: Final = 28
"""Pixels on each side of one vision token of Qwen2.5-VL: patches of 14, merged 2 × 2."""
QUEUE_PER_THREAD: Final = 4
MAX_THREADS: Final = 16
_Value = TypeVar("_Value")


def num_vision_tokens(width: int, height: int, min_pixels: int, max_pixels: int) -> int:
    """Tokens of one image in the prompt, as ``smart_resize`` computes them in transformers'
    models/qwen2_vl/image_processing_qwen2_vl.py, which vLLM uses for Qwen2-VL and Qwen2.5-VL."""
    rows, columns = round(height / TOKEN_SIDE), round(width / TOKEN_SIDE)
    if rows * columns * TOKEN_SIDE**2 > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / scale / TOKEN_SIDE))
        columns = max(1, math.floor(width / scale / TOKEN_SIDE))
    elif rows * columns * TOKEN_SIDE**2 < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * scale / TOKEN_SIDE)
        columns = math.ceil(width * scale / TOKEN_SIDE)
    return rows * columns


class _Opened(NamedTuple):
    """What is kept of one image."""

    num_bytes: int
    size: tuple[int, int]
    vision_tokens: int
    backdrop: str
    content: bytes
    request: bytes


class ImageSurvey:
    """Looks at the image of one item after the other; call `close` before `report`."""

    def __init__(
        self,
        images_root: str,
        config: ImageConfig,
        prompt: Prompt | None,
        refuse: Callable[[Item, ItemError], None],
    ) -> None:
        """With a ``prompt``, images are opened, as for a request with it; without, they are only
        stat'ed, and only on this machine. ``refuse`` is called, in this thread, for each item whose
        image is at fault."""
        self._root = images_root
        self._config = config
        self._prompt = prompt
        self._refuse = refuse
        self._file_sizes: Counter[int] = Counter()
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._tokens: Counter[int] = Counter()
        self._backdrops: Counter[str] = Counter()
        self._contents: Counter[bytes] = Counter()
        self._requests: set[bytes] = set()
        self._waiting: deque[tuple[Item, Future[_Opened]]] = deque()
        self._remote = is_remote(images_root)
        cores = len(os.sched_getaffinity(0))
        self._threads = MAX_THREADS if self._remote else min(cores, MAX_THREADS)
        self._pool = ThreadPoolExecutor(self._threads, "plan") if prompt else None

    def add(self, item: Item) -> None:
        """Look at one more image, now or soon."""
        if self._pool is None:
            if not self._remote:  # a million requests over a network would take hours
                self._stat(item)
            return
        if len(self._waiting) >= self._threads * QUEUE_PER_THREAD:
            self._take_oldest()
        self._waiting.append((item, self._pool.submit(self._open, item)))

    def close(self, *, finish: bool = True) -> None:
        """Wait for the images still being looked at; without ``finish``, drop them."""
        while finish and self._waiting:
            self._take_oldest()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _stat(self, item: Item) -> None:
        try:
            self._file_sizes[num_bytes(self._root, item.file)] += 1
        except ItemError as error:
            self._refuse(item, error)

    def _open(self, item: Item) -> _Opened:
        assert self._prompt is not None
        config = self._config
        text = render(self._prompt, item)
        size = num_bytes(self._root, item.file)
        prepared = prepare_image(self._root, item.file, config)
        width, height = prepared.image.size
        return _Opened(
            size,
            (prepared.width, prepared.height),
            num_vision_tokens(width, height, config.min_pixels, config.max_pixels),
            prepared.backdrop,
            bytes.fromhex(prepared.sha256)[:16],
            twin_key(prepared.sha256, text.system, text.user),
        )

    def _take_oldest(self) -> None:
        item, future = self._waiting.popleft()
        try:
            opened = future.result()
        except ItemError as error:
            self._refuse(item, error)
            return
        self._file_sizes[opened.num_bytes] += 1
        self._sizes[opened.size] += 1
        self._tokens[opened.vision_tokens] += 1
        self._backdrops[opened.backdrop] += 1
        self._contents[opened.content] += 1
        self._requests.add(opened.request)

    def report(self, *, dedup: bool) -> Images:
        """What was found. ``dedup``: twins with the same prompt are captioned once."""
        found = self._file_sizes.total()
        groups = [count for count in self._contents.values() if count > 1]
        saved = found - len(self._requests) if dedup else 0
        opened = self._prompt is not None
        return Images(
            opened=opened,
            found=found,
            bytes=sum(size * count for size, count in self._file_sizes.items()),
            equal_size=sum(count for count in self._file_sizes.values() if count > 1),
            dedup=dedup,
            sizes=_sizes(self._sizes),
            vision_tokens=_vision_tokens(self._tokens),
            backdrops=dict(self._backdrops.most_common()),
            twins=TwinFiles(len(groups), sum(groups), saved) if opened else None,
        )


def _sizes(counts: Counter[tuple[int, int]]) -> Sizes | None:
    if not counts:
        return None
    ordered = sorted(counts, key=lambda size: (size[0] * size[1], size))
    middle = _median(ordered, counts)
    return Sizes(Size(*ordered[0]), Size(*middle), Size(*ordered[-1]))


def _vision_tokens(counts: Counter[int]) -> VisionTokens | None:
    if not counts:
        return None
    ordered, number = sorted(counts), counts.total()
    total = sum(tokens * count for tokens, count in counts.items())
    median = _median(ordered, counts)
    return VisionTokens(ordered[0], median, round(total / number, 1), ordered[-1], total)


def _median(ordered: list[_Value], counts: Counter[_Value]) -> _Value:
    left = (counts.total() + 1) // 2
    for value in ordered:
        left -= counts[value]
        if left <= 0:
            return value
    raise AssertionError("nothing was counted")
