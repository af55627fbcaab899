"""The driver and everything beside it, without the command line, over drawn images."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.fake_engines import start_fake
from support.job import draw_shape, rows
from vllm_caption.captions.prompt import load_prompt
from vllm_caption.captions.question import make_question
from vllm_caption.captions.rules import CaptionRules
from vllm_caption.config import EngineConfig, InputConfig, RunConfig
from vllm_caption.demo import MODEL_DIR
from vllm_caption.driver.loop import Driver
from vllm_caption.driver.recorder import Recorder
from vllm_caption.driver.resume import Batch, InputEnded
from vllm_caption.driver.row_maker import RowMaker
from vllm_caption.engines.executors.base import Executor, WorkerHandle, WorkerSpec, start_vllm
from vllm_caption.engines.executors.local import LocalExecutor
from vllm_caption.inputs.documents import longest_item
from vllm_caption.items import Document, Item
from vllm_caption.messages import FlagsChecked
from vllm_caption.monitoring.figures import EngineFigures
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.scheduling.dispatcher import Dispatcher
from vllm_caption.scheduling.duplicates import Twins
from vllm_caption.scheduling.same_errors import SameErrors
from vllm_caption.store.earlier_captions import read_earlier
from vllm_caption.store.output import Output
from vllm_caption.store.recipe import make_recipe


def local(config: RunConfig, tell: Callable[[str], None]) -> Executor:
    """Spawned worker processes, as for GPUs, with engines that use none."""
    return LocalExecutor(["0"] * config.engine.data_parallel_size, config.output / "logs")


class Given:
    """Given items instead of an input."""

    def __init__(
        self, items: list[Item], done: Collection[str], failed_before: Collection[str] = ()
    ) -> None:
        pending = [item for item in items if item.file not in done or item.file in failed_before]
        self._batch = Batch(pending=pending, failed_before=set(failed_before), num_found=len(items))

    def start(self, put: Callable[[Batch | InputEnded], None]) -> None:
        """All items in one batch."""
        put(self._batch)
        put(InputEnded(None))

    def leave(self) -> None:
        """Do nothing: there is only one batch."""


@dataclass
class Run:
    """One run over given files, each with an image."""

    folder: Path
    files: list[str]
    num_engines: int = 2
    start_engine: Any = start_fake
    engine: dict[str, Any] = field(default_factory=dict)
    first_alone: bool = False
    engine_args: bytes = b""
    max_same_errors: int = 64
    failed_before: set[str] = field(default_factory=set)
    make_executor: Callable[[RunConfig, Callable[[str], None]], Executor] = local
    told: list[str] = field(default_factory=list)
    state_of_first_at_start: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        engine = EngineConfig(data_parallel_size=self.num_engines, max_num_seqs=2, **self.engine)
        self.config = RunConfig(
            input=InputConfig(images_root=self.folder / "raw"),
            engine=engine,
            output=self.folder / "out",
            max_retries=2,
            max_same_errors=self.max_same_errors,
        )
        for number, file in enumerate(self.files):
            path = self.folder / "raw" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if "absent" not in file:
                draw_shape(number).save(path, format="PNG")
        prompt = load_prompt(self.config.prompt)
        self.output = Output(self.config.output, checkpoint_interval=7)
        config = self.config
        recipe = make_recipe(config.engine, prompt, config.sampling, config.image)
        make = RowMaker("run", str(self.folder / "raw"), recipe)
        self.stats = RunStats([EngineFigures(number) for number in range(self.num_engines)])
        self.dispatcher: Dispatcher[Item] = Dispatcher(
            self.num_engines, max_retries=2, max_engine_restarts=engine.max_engine_restarts
        )
        twins = Twins(read_earlier(config.output, [recipe.id], len(self.output.item_states())))
        self.recorder = Recorder(
            prompt,
            CaptionRules.from_prompt(prompt, enabled=True),
            self.config.sampling,
            self.folder / "raw",
            self.output,
            make,
            self.dispatcher,
            self.stats,
            twins,
            SameErrors(self.config.max_same_errors),
        )

    def driver(self, open_engines: Callable[[], Awaitable[Executor]]) -> Driver:
        """The driver of this run."""
        self._driver = Driver(
            self.config.engine,
            self.recorder,
            self.dispatcher,
            self.stats,
            self.told.append,
            open_engines,
            first_alone=self.first_alone,
        )
        return self._driver

    async def run(self) -> None:
        """Serve until nothing is left, then close the output."""
        document = Document(name="design")
        items = [Item(file, document, i, "SvgElement") for i, file in enumerate(self.files)]
        try:
            given = Given(items, self.output.item_states(), self.failed_before)
            await self.driver(self._open).run(given)
        finally:
            self.executor.close()
            self.output.close(complete=True)

    async def run_until_all_are_up(self) -> None:
        """Like `run`, but `gated` items are answered once every engine is up."""

        async def open_gate() -> None:
            while not all(engine.state == "up" for engine in self.stats.engines):
                await asyncio.sleep(0.01)
            (self.folder / "raw/gate").touch()

        async with asyncio.timeout(120):
            await asyncio.gather(self.run(), open_gate())

    async def _open(self) -> Executor:
        self.executor = executor = self.make_executor(self.config, self.told.append)
        checked = FlagsChecked(self.engine_args, bounds_pixels=True)
        if self.start_engine is start_vllm:
            flags = self.config.engine.vllm_flags(os.fspath(MODEL_DIR))
            image, sampling = self.config.image, self.config.sampling
            question = make_question(load_prompt(self.config.prompt), longest_item())
            checked = await executor.check_flags(flags, image, sampling, question)
        executor.spec = WorkerSpec(
            images_root=str(self.folder / "raw"),
            image=self.config.image,
            sampling=self.config.sampling,
            prepare_threads=1,
            start_engine=self.start_engine,
            engine_args=checked.engine_args,
            on_cpu=executor.on_cpu,
            item_timeout_s=self.config.engine.item_timeout_s,
        )
        return self._noting_starts(executor)

    def _noting_starts(self, executor: Executor) -> Executor:
        start = executor.start

        async def start_and_note(engine: int) -> WorkerHandle:
            self.state_of_first_at_start[engine] = self._driver.state(0)
            return await start(engine)

        executor.start = start_and_note  # type: ignore[method-assign]
        return executor

    def kinds(self) -> dict[str, str]:
        """file → why it failed, from the manifest."""
        found = rows(self.config.output).items()
        return {file: row["error_kind"] for file, row in found if row["status"] == "failed"}


def names(count: int, **special: str) -> list[str]:
    """``count`` file names; ``special`` replaces the n-th one (``n3="poison.png"``)."""
    return [special.get(f"n{number}", f"a/{number}.png") for number in range(count)]
