"""The driver's loop: scan → dispatcher → engines → output, in one asyncio thread.

Nothing is decided here about items (the dispatcher does), engines are started and ended, messages
carried, and every outcome is written. Invariants: only this process writes to the output folder;
each engine slot is served by one task at a time; a worker that was started is joined.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable

import msgspec

from vllm_caption.checks import CaptionRules, check_caption, clean_caption
from vllm_caption.config import RunConfig
from vllm_caption.dispatcher import Accept, Decision, Dispatcher, GiveUp, Leased
from vllm_caption.errors import ItemError, RunStopped
from vllm_caption.executors.base import Executor, WorkerHandle
from vllm_caption.manifest import Item
from vllm_caption.messages import (
    Captioned,
    CaptionRequest,
    EngineDown,
    Failed,
    Lease,
    Ready,
    Stop,
    WorkerMessage,
)
from vllm_caption.output import Output
from vllm_caption.prompts import Prompt, render
from vllm_caption.rows import RowMaker
from vllm_caption.scan import Batch, Scan
from vllm_caption.stats import EngineStats, RunStats

JOIN_TIMEOUT_S = 10.0
TICK_S = 0.5


class Driver:
    """One run, from the first scanned item to the last joined worker."""

    def __init__(
        self,
        config: RunConfig,
        prompt: Prompt,
        output: Output,
        make: RowMaker,
        tell: Callable[[str], None],
    ) -> None:
        """``tell`` shows one line to the user."""
        self._config = config
        self._prompt = prompt
        self._rules = CaptionRules.from_prompt(prompt, enabled=config.checks)
        self._output = output
        self._make = make
        self._tell = tell
        num_engines = config.engine.data_parallel_size
        self.stats = RunStats([EngineStats() for _ in range(num_engines)])
        self.dispatcher: Dispatcher[Item] = Dispatcher(
            num_engines,
            max_retries=config.max_retries,
            max_engine_restarts=config.engine.max_engine_restarts,
        )
        self._workers: dict[int, WorkerHandle] = {}
        self._last_progress_s: dict[int, float] = {}
        self._changed = asyncio.Event()
        self._work_found = asyncio.Event()
        self._stopped: RunStopped | None = None
        self._last_error = ""
        self._scan_left = False
        self.interrupts = 0

    # --- the run -------------------------------------------------------------------------------

    async def scan(self, scan: Scan) -> None:
        """Read the whole input in a thread, queueing what must be done. Returns at its end."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                for batch in scan.batches():
                    if self._scan_left:
                        return
                    loop.call_soon_threadsafe(self._scanned, batch, scan)
            finally:
                loop.call_soon_threadsafe(ended.set_result, None)

        threading.Thread(target=read, name="scan", daemon=True).start()
        await ended
        self.stats.scanning = False
        self.dispatcher.end_input()
        self._work_found.set()
        self._changed.set()

    def leave_scan(self) -> None:
        """Let the scanning thread end early; nobody waits for it any more."""
        self._scan_left = True

    async def wait_for_work(self) -> bool:
        """Wait until an engine is needed (True) or the scan ended without any work (False)."""
        await self._work_found.wait()
        return self.dispatcher.num_waiting > 0

    async def serve(self, executor: Executor, *, first_alone: bool) -> None:
        """Run every engine until nothing is left to do. Raises RunStopped.

        ``first_alone``: start the others once engine 0 is up, with what it left in the caches.
        """
        served: list[asyncio.Task[None]] = []
        try:
            for engine in range(len(self.stats.engines)):
                served.append(asyncio.create_task(self._serve_slot(executor, engine)))
                if first_alone and engine == 0:
                    await self._until(lambda: self.stats.engines[0].state in ("up", "retired"))
            await self._until(lambda: not self.dispatcher.num_usable)
        finally:
            await self._stop_workers(served)
        if self._stopped is not None:
            raise self._stopped
        if not self.dispatcher.finished:
            raise RunStopped(f"no engine is left; the last error was: {self._last_error}")

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, for the end of the work, or for the end of the run."""
        while not (condition() or self.dispatcher.finished or self._must_leave):
            self._changed.clear()
            await self._changed.wait()

    @property
    def _must_leave(self) -> bool:
        return self._stopped is not None or self.interrupts > 1

    def interrupt(self) -> None:
        """Ctrl+C: the first time hand out nothing more, the second time leave now."""
        self.interrupts += 1
        self.dispatcher.close()
        if self.interrupts == 1:
            left = self.dispatcher.num_in_flight
            self._tell(f"Interrupted: finishing {left} items in flight; once more to stop now.")
        self._work_found.set()
        self._changed.set()

    # --- engines -------------------------------------------------------------------------------

    async def _serve_slot(self, executor: Executor, engine: int) -> None:
        stats = self.stats.engines[engine]
        while self.dispatcher.may_restart(engine) and not self._ending:
            stats.state = "starting"
            self._last_progress_s[engine] = asyncio.get_running_loop().time()
            worker = self._workers[engine] = await executor.start(engine)
            if self._ending:  # while the process was being started
                worker.kill()
            self.dispatcher.engine_started(engine)
            error = await self._listen(engine, worker)
            how = await worker.join(JOIN_TIMEOUT_S)
            self._workers.pop(engine, None)
            if self._ending:
                break
            self._lost(engine, error or f"its process ended ({how})")
        stats.state = "stopped" if self.dispatcher.may_restart(engine) else "retired"
        self._changed.set()

    @property
    def _ending(self) -> bool:
        return self._must_leave or self.dispatcher.finished or self.interrupts > 0

    async def _listen(self, engine: int, worker: WorkerHandle) -> str:
        """Take messages until the worker is gone; returns the error it named, if any."""
        while (message := await worker.receive()) is not None:
            self._last_progress_s[engine] = asyncio.get_running_loop().time()
            if isinstance(message, EngineDown):
                return message.error
            if isinstance(message, Ready):
                self.stats.engines[engine].state = "up"
                self._changed.set()
            else:
                self._answered(engine, message)
            self._feed(engine)
        return ""

    def _lost(self, engine: int, error: str) -> None:
        """The engine died: suspects, verdicts, and whether it starts again."""
        self._last_error = error
        for poison in self.dispatcher.engine_lost(engine):
            self._settle(poison, engine)
        if self.dispatcher.may_restart(engine):
            self.stats.engines[engine].restarts += 1
            self._tell(f"Engine {engine} died and starts again: {error}")
        else:
            self._tell(f"Engine {engine} is taken out, the run goes on without it: {error}")
        self._feed_all()
        self._changed.set()

    def watch_for_stalls(self, now_s: float) -> None:
        """Kill workers that hold items and have said nothing for too long; call now and then."""
        engine_config = self._config.engine
        for engine, worker in list(self._workers.items()):
            silent_s = now_s - self._last_progress_s[engine]
            starting = self.stats.engines[engine].state == "starting"
            limit_s = engine_config.start_timeout_s if starting else engine_config.stall_timeout_s
            if silent_s > limit_s and (starting or self.dispatcher.in_flight(engine)):
                doing = "did not start" if starting else "made no progress"
                self._tell(f"Engine {engine} {doing} for {silent_s:.0f} s and is killed.")
                worker.kill()

    async def _stop_workers(self, served: list[asyncio.Task[None]]) -> None:
        for engine, worker in list(self._workers.items()):
            if self.stats.engines[engine].state == "up" and not self._must_leave:
                worker.send(Stop())
            else:
                worker.kill()
        await asyncio.gather(*served)

    # --- items ---------------------------------------------------------------------------------

    def _scanned(self, batch: Batch, scan: Scan) -> None:
        stats = self.stats
        stats.total = scan.reader.counts.items + scan.reader.counts.bad_entries
        stats.done_before += batch.num_done
        stats.stale += batch.num_stale
        try:
            for row in batch.rows:
                self._output.save_row(row)
                if row.status == "captioned":
                    stats.adopted += 1
                else:
                    stats.count_failure(row.error_kind or "", f"{row.file}: {row.error}")
        except RunStopped as stopped:
            self._stop(stopped)
        if batch.pending:
            self.dispatcher.add(batch.pending)
            self._work_found.set()
            self._feed_all()

    def _feed_all(self) -> None:
        for engine in self._workers:
            self._feed(engine)

    def _feed(self, engine: int) -> None:
        if self.stats.engines[engine].state != "up" or engine not in self._workers:
            return
        if not self.dispatcher.in_flight(engine):  # an idle engine's clock starts with its work
            self._last_progress_s[engine] = asyncio.get_running_loop().time()
        leased = self.dispatcher.take(engine, self._config.engine.window)
        if leased:
            self._workers[engine].send(Lease(tuple(self._requests(leased))))

    def _requests(self, leased: Iterable[Leased[Item]]) -> Iterable[CaptionRequest]:
        for lease in leased:
            text = render(self._prompt, lease.item)
            temperature, seed = self._resampling(lease.rejected)
            yield CaptionRequest(
                lease.lease, lease.item.file, text.user, text.system, temperature, seed
            )

    def _resampling(self, rejected: int) -> tuple[float | None, int | None]:
        """Temperature and seed of a new try after a caption that broke a rule."""
        if not rejected:
            return None, None
        sampling = self._config.sampling
        return max(sampling.temperature, 0.2 + 0.2 * rejected), (sampling.seed or 0) + rejected

    def _answered(self, engine: int, message: WorkerMessage) -> None:
        decision: Decision[Item] | None = None
        if isinstance(message, Captioned):
            decision = self._judged(engine, message)
        elif isinstance(message, Failed):
            decision = self.dispatcher.failed(engine, message)
        if decision is not None:
            self._settle(decision, engine)
        if self.dispatcher.finished:
            self._changed.set()

    def _judged(self, engine: int, answer: Captioned) -> Decision[Item] | None:
        caption = clean_caption(answer.caption)
        asked = self._prompt.user
        flags = check_caption(caption, answer.finish_reason, self._rules, asked)
        answer = msgspec.structs.replace(answer, caption=caption)
        return self.dispatcher.captioned(engine, answer, flags)

    def _settle(self, decision: Decision[Item], engine: int) -> None:
        """Write what became of an item."""
        try:
            if isinstance(decision, Accept):
                self._save_caption(decision, engine)
            elif isinstance(decision, GiveUp):
                self._output.save_row(self._make.given_up(decision, engine))
                self.stats.count_failure(
                    decision.kind, f"{decision.item.file}: {decision.reason}"
                )
            else:
                self.stats.retried += 1
        except RunStopped as stopped:
            self._stop(stopped)

    def _save_caption(self, accepted: Accept[Item], engine: int) -> None:
        try:
            self._output.save_caption(self._make.captioned(accepted, engine))
        except ItemError as error:
            kind, reason = error.kind, error.reason
            failure = GiveUp(accepted.item, accepted.attempts, kind, reason, accepted.result)
            self._settle(failure, engine)
            return
        result, now_s = accepted.result, asyncio.get_running_loop().time()
        self.stats.count_caption(engine, result.prompt_tokens, result.output_tokens, now_s)
        self.stats.flags.update(accepted.flags)

    def _stop(self, stopped: RunStopped) -> None:
        self._stopped = self._stopped or stopped
        self._work_found.set()
        self._changed.set()
