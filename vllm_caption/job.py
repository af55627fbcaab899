"""Wires the parts of one run: start reading here.

The life of an item: `driver.resume` finds it in the input and sees that it is not done →
`dispatcher` leases it to an engine → `worker` prepares its image and queries the engine → `rules`
check the caption → `output` writes the .txt, then the row.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import msgspec

from vllm_caption.captions.prompt import Prompt, load_prompt
from vllm_caption.captions.question import make_question
from vllm_caption.captions.rules import CaptionRules
from vllm_caption.config import RunConfig
from vllm_caption.driver.loop import Driver
from vllm_caption.driver.pilot import choose_pilot
from vllm_caption.driver.recorder import Recorder
from vllm_caption.driver.redo import (
    RedoProgress,
    earlier_runs,
    encode_redo,
    read_redo,
    what_is_redone,
)
from vllm_caption.driver.resume import Pending, Wanted
from vllm_caption.driver.row_maker import RowMaker
from vllm_caption.driver.run_input import encode_input, other_input
from vllm_caption.engines.executors.base import Executor, WorkerSpec, start_vllm
from vllm_caption.engines.executors.choice import (
    first_starts_alone,
    local_gpus,
    make_executor,
)
from vllm_caption.engines.machine_check import await_machine, check_model_exists
from vllm_caption.engines.model_files import model_files
from vllm_caption.engines.model_folder import check_model_folder, resolve_model
from vllm_caption.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SOME_FAILED,
    EXIT_STOPPED,
    RunStopped,
    UsageError,
)
from vllm_caption.formatting import counted
from vllm_caption.images.files import check_images_root
from vllm_caption.images.object_store import absolute_root, recorded_root
from vllm_caption.inputs.choice import open_source
from vllm_caption.inputs.documents import longest_item
from vllm_caption.items import Item
from vllm_caption.monitoring.event_log import EventLog
from vllm_caption.monitoring.figures import EngineFigures
from vllm_caption.monitoring.monitor import Monitor
from vllm_caption.monitoring.progress import Progress
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.monitoring.status import (
    RunState,
    encode_status,
    how_it_ended,
    make_status,
    read_status,
)
from vllm_caption.monitoring.summary import InputRead, describe_pilot, summarise
from vllm_caption.scheduling.dispatcher import Dispatcher
from vllm_caption.scheduling.duplicates import Twins
from vllm_caption.scheduling.same_errors import SameErrors
from vllm_caption.store.layout import INPUT, REDO, STATUS
from vllm_caption.store.naming import naming_of_run
from vllm_caption.store.output import Output
from vllm_caption.store.recipe import made_with, make_recipe

STATUS_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, ``seconds`` after it started. ``stopped``: why it could not continue;
    ``pilot``: it was a pilot that finished, so its report can be made."""

    exit_code: int
    stats: RunStats
    read: InputRead
    seconds: float
    stopped: str
    pilot: bool


def run_job(config: RunConfig, *, prints_summary: bool = True) -> Outcome:
    """Caption everything that is left to do. Raises UsageError before an engine starts, and
    RunStopped if the output cannot be opened; what stops the run later is in the outcome."""
    config, prompt = checked(config)
    with contextlib.closing(EventLog(config.log_file, as_json=config.log_json)) as log:
        return _run(config, prompt, log, prints_summary=prints_summary)


def checked(config: RunConfig) -> tuple[RunConfig, Prompt]:
    """Check the prompt, the input, the images root and, if it is a folder, the model; returns the
    prompt, and the settings with the columns that it uses. Raises UsageError."""
    prompt = load_prompt(config.prompt)
    config = config.with_columns(prompt.columns)
    open_source(config.input).check()
    check_images_root(config.input.images_root)
    check_model_folder(resolve_model(config.engine.model), config.engine.engine_args)
    return config, prompt


def _run(config: RunConfig, prompt: Prompt, log: EventLog, *, prints_summary: bool) -> Outcome:
    gpus = local_gpus(config.engine)
    if not os.path.exists(config.output):  # noqa: PTH110 (never raises)
        check_model_exists(config.engine)  # a rerun that has nothing left to do needs no model
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    recipe = make_recipe(config.engine, prompt, config.sampling, config.image)
    choose_naming = partial(naming_of_run, asked=config.caption_name)
    output = Output(config.output, config.checkpoint_interval, config.input.shard, choose_naming)
    naming = output.files.naming
    make = RowMaker(run_id, recorded_root(config.input.images_root), recipe, naming)
    config = replace(config, input=config.input.named(naming))
    progress, pilot = Progress(quiet=config.quiet, log=log), None
    try:
        if config.pilot is not None:
            progress.tell(f"Choosing {config.pilot} items from the whole input.")
            pilot = choose_pilot(config.input, config.pilot)
            config = replace(config, input=pilot.input)
        job = _Job(config, prompt, output, make, progress, gpus)
    except RunStopped:
        output.close(complete=False)
        raise
    exit_code, stopped = EXIT_STOPPED, ""
    try:
        exit_code = asyncio.run(job.run())
        if exit_code in (EXIT_OK, EXIT_SOME_FAILED) and job.scan.reader.complete and not pilot:
            job.finish_redo()
    except RunStopped as error:
        stopped = str(error)
    finally:
        try:
            output.finish(complete=exit_code in (EXIT_OK, EXIT_SOME_FAILED))
        except RunStopped as error:
            exit_code, stopped = EXIT_STOPPED, stopped or str(error)
        finally:
            progress.close()
            ended_by = RunStopped(stopped) if stopped else sys.exception()
            with contextlib.suppress(RunStopped):  # the path leads to another folder now: keep off
                job.show(*how_it_ended(exit_code, ended_by))
            output.release()
        for note in output.take_notes():
            progress.warn(note)
    read, seconds = job.input_read, job.seconds
    text = summarise(
        job.stats,
        read,
        seconds,
        output=config.output,
        state=output.root,
        shard=config.input.shard,
        naming=naming,
        billing=config.billing,
        interrupted=exit_code == EXIT_INTERRUPTED,
    )
    if pilot and not stopped:
        steps = describe_pilot(
            job.stats,
            chosen=pilot.by_type,
            num_items=pilot.num_items,
            num_documents=pilot.num_documents,
            nouns=read.counts.nouns,
            arguments=config.arguments,
            billing=config.billing,
        )
        text += f"\n{steps}"
    progress.record("summary", text)
    if prints_summary:
        with contextlib.suppress(OSError, ValueError):  # all is saved; the output pipe was closed
            print(text, flush=True)
    if stopped:
        progress.tell(f"Stopped: {stopped}", "stopped", "error")
    is_pilot = bool(pilot and not stopped)
    return Outcome(exit_code, job.stats, read, seconds, stopped, is_pilot)


class _Job:
    """The parts of one run, and the order in which they start and end."""

    def __init__(
        self,
        config: RunConfig,
        prompt: Prompt,
        output: Output,
        make: RowMaker,
        progress: Progress,
        gpus: list[str | None],
    ) -> None:
        self._config = config
        self._prompt = prompt
        self._output = output
        self._make = make
        self._progress = progress
        self._gpus = gpus
        self._started_s = time.monotonic()
        num_engines = config.engine.data_parallel_size
        self.stats = RunStats([EngineFigures(number) for number in range(num_engines)])
        self.stats.gpus_per_engine = config.engine.gpus_per_engine
        self.stats.gpu_hour_price = config.gpu_hour_price
        self._dispatcher = Dispatcher[Item](
            num_engines,
            max_retries=config.max_retries,
            max_engine_restarts=config.engine.max_engine_restarts,
        )
        self._executor: Executor | None = None
        self._next_status_s = 0.0
        self._is_input_kept = False
        before = output.look_up(read_status)
        self._earlier_speed = before.speed if before is not None else None
        if other := output.look_up(partial(other_input, config.input)):
            done = ""
            if before is not None and before.total and not before.is_part:
                captioned = before.done_before + before.captioned
                done = f" ({captioned:,} of {counted(before.total, 'item')})"
            progress.tell(f"The last run here captioned another input: {other}{done}.")
        self._monitor = Monitor(output.root, gpus, config.engine.engine_args)
        known = output.item_states()
        self._num_known = 0 if output.shard else len(known)
        self._recipe_ids = output.ids_of(make.recipe)
        self._redo = self._begin_redo()
        self.scan = Pending(
            config.input,
            config.image,
            Wanted(config.resume, self._recipe_ids, frozenset(self._redo.runs)),
            known,
            output.files,
            make,
            output.captions_of,
        )

    def _begin_redo(self) -> RedoProgress:
        """Load what earlier runs of this redo have done, and record this run as one of them."""
        resume, recipe_id = self._config.resume, self._make.recipe.id
        recorded = self._output.look_up(read_redo)
        runs = earlier_runs(recorded, resume, self._recipe_ids)
        progress = RedoProgress(
            what_is_redone(resume), recipe_id, runs, overwrote=resume.overwrite_edited
        )
        if runs:
            self._progress.tell(
                f"Resuming {progress.what}, begun by run {runs[0]}: what it has captioned is kept."
            )
        if resume.is_redo:
            self._record_redo(progress)
        return progress

    def finish_redo(self) -> None:
        """Record that the redo covered the whole input: the same command now starts a new one."""
        if self._config.resume.is_redo:
            self._record_redo(msgspec.structs.replace(self._redo, is_finished=True))

    def _record_redo(self, progress: RedoProgress) -> None:
        runs = (*progress.runs, self._make.run_id)
        content = encode_redo(msgspec.structs.replace(progress, runs=runs))
        self._output.keep(REDO, content)

    @property
    def seconds(self) -> float:
        """Time since the run started."""
        return time.monotonic() - self._started_s

    @property
    def input_read(self) -> InputRead:
        """How much of the input has been read so far."""
        reader = self.scan.reader
        unmatched = self._config.input.skip_types if reader.no_type_was_skipped else ()
        names = reader.unmatched_patterns
        stale = made_with(self.scan.stale, self._make.recipe, self._config.output)
        return InputRead(reader.counts, reader.complete, self.scan.skipped, unmatched, names, stale)

    async def run(self) -> int:
        """Caption everything that is left; returns the exit code."""
        loop, config = asyncio.get_running_loop(), self._config
        if note := self._output.record_recipe(self._make.recipe):
            self._progress.warn(note)
        recorder = Recorder(
            self._prompt,
            CaptionRules.from_prompt(self._prompt, enabled=config.checks),
            config.sampling,
            config.input.images_root,
            self._output,
            self._make,
            self._dispatcher,
            self.stats,
            await asyncio.to_thread(self._twins),
            SameErrors(config.max_same_errors),
        )
        driver = Driver(
            config.engine,
            recorder,
            self._dispatcher,
            self.stats,
            self._progress.warn,
            self._open_engines,
            first_alone=first_starts_alone(),
            on_tick=self._tick,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, driver.interrupt)
        loop.add_signal_handler(signal.SIGUSR1, driver.drain)
        self._monitor.start()
        self.stats.begin("reading the input", loop.time())
        try:
            await driver.run(self.scan)
            self._output.record_documents(self.scan.skipped)
        except UsageError:  # nothing to caption; the skipped documents explain why
            self._output.record_documents(self.scan.skipped)
            raise
        finally:
            if self._executor is not None:
                self._executor.close()
            self.stats.begin("saving", loop.time())
            try:
                self._progress.draw(self.stats, loop.time())
                self.show("running")  # until everything is saved
            finally:
                self._monitor.close()
                self._warn()
        return self._exit_code(interrupted=driver.interrupts > 0)

    def _twins(self) -> Twins:
        resume = self._config.resume
        if resume.redo == "all" or resume.redo_files or not self._config.dedup:
            return Twins()
        return Twins(self._output.earlier_captions(self._recipe_ids, self._num_known))

    async def _open_engines(self) -> Executor:
        """Have vLLM check its flags, and settle what every worker is started with."""
        config, logs, loop = self._config, self._output.logs, asyncio.get_running_loop()
        self.stats.begin("checking flags (loading vLLM)", loop.time())
        await await_machine(config.engine, self._gpus, self._progress.warn)
        self._executor = executor = make_executor(
            config.engine, self._gpus, logs, self._progress.warn
        )
        self._progress.tell(f"Checking the model {config.engine.model} and vLLM's flags.")
        model = resolve_model(config.engine.model)
        flags = config.engine.vllm_flags(model)
        # On another node, the same model may have other times.
        files = model_files(model) if config.engine.executor == "local" else None
        question = make_question(self._prompt, longest_item(self._prompt.columns))
        checked = await executor.check_flags(flags, config.image, config.sampling, question)
        if checked.note:
            self._progress.warn(checked.note)
        executor.spec = WorkerSpec(
            images_root=absolute_root(config.input.images_root),
            image=config.image if checked.bounds_pixels else config.image.unbounded(),
            sampling=config.sampling,
            prepare_threads=config.engine.prepare_threads,
            start_engine=start_vllm,
            options=self._prompt.options,
            engine_args=checked.engine_args,
            on_cpu=executor.on_cpu,
            find_twins=config.dedup,
            item_timeout_s=config.engine.item_timeout_s,
            model_files=files,
        )
        self.stats.begin("loading", loop.time())
        return executor

    def _tick(self, now_s: float) -> None:
        """Twice a second: the live line, warnings, status.json."""
        self._progress.update(self.stats, now_s)
        self._warn()
        self.stats.judge(
            now_s,
            num_waiting=self._dispatcher.num_waiting,
            num_in_flight=self._dispatcher.num_in_flight,
            max_num_seqs=self._config.engine.max_num_seqs,
            writing_s=self._output.writing_s,
            computing_s=time.thread_time(),
        )
        if now_s >= self._next_status_s:
            self._next_status_s = now_s + STATUS_EVERY_S
            self.show("running")

    def _warn(self) -> None:
        for note in (*self._monitor.take_notes(), *self._output.take_notes()):
            self._progress.warn(note)
        if alarm := self.stats.rejections.alarm():
            self._progress.warn(alarm)

    def show(self, state: RunState, reason: str = "") -> None:
        """Write the current figures to status.json. Raises RunStopped if the path of the output
        now leads to another folder."""
        for slot, engine in enumerate(self.stats.engines):
            engine.in_flight = self._dispatcher.in_flight_of(slot)
        self._monitor.show(self.stats)
        wanted, is_redo = self._config.input, self._config.resume.is_redo
        is_limited = wanted.limit is not None and not is_redo and self.stats.total >= wanted.limit
        self.stats.is_part = wanted.only is not None or is_limited
        now_s = time.monotonic()  # the clock of the event loop
        at = datetime.now(UTC).isoformat(timespec="seconds")
        status = make_status(
            self._make.run_id, state, self.stats, now_s, at, reason, self._earlier_speed
        )
        self._monitor.follow(status)
        self._output.replace(STATUS, encode_status(status))
        if self.stats.total and not self._is_input_kept:  # an empty input may be a mistake
            self._output.replace(INPUT, encode_input(self._config.input))
            self._is_input_kept = True

    def _exit_code(self, *, interrupted: bool) -> int:
        if interrupted:
            return EXIT_INTERRUPTED
        if self.stats.finished != self.stats.total:
            left = counted(self.stats.total - self.stats.finished, "item")
            raise RunStopped(f"{left} neither captioned nor failed; run again")
        return EXIT_SOME_FAILED if self.stats.failed else EXIT_OK
