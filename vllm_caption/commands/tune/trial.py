"""One setting, measured: a run of the job with one engine, in an output folder of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from vllm_caption.commands.tune.ladder import expected_s, is_too_short, min_items, num_items
from vllm_caption.commands.tune.measure import COLUMNS, measure
from vllm_caption.commands.tune.record import Figures, Setting
from vllm_caption.config import InputConfig, ResumeConfig, RunConfig
from vllm_caption.driver.pilot import Pilot
from vllm_caption.engines.memory_errors import shortage
from vllm_caption.errors import EXIT_INTERRUPTED, UsageError
from vllm_caption.formatting import tally
from vllm_caption.job import run_job
from vllm_caption.monitoring.bottleneck import main_limit
from vllm_caption.monitoring.samples import FAULTS, read_series
from vllm_caption.store.reader import read_folder


class Sample:
    """A representative sample of the input, ordered so that every prefix is representative too."""

    def __init__(self, pilot: Pilot) -> None:
        # Reading a million documents for a few thousand items would be slower than the engine.
        self._input = replace(pilot.input, documents=pilot.documents, shard=None)
        self._files = sorted(pilot.input.only or (), key=_shuffled)

    def __len__(self) -> int:
        return len(self._files)

    def first(self, number: int) -> InputConfig:
        """The input of a run that reads the first of them only."""
        return replace(self._input, only=frozenset(self._files[:number]))


def _shuffled(file: str) -> bytes:
    return blake2b(file.encode("utf-8", "surrogatepass"), digest_size=8, salt=b"tune").digest()


def try_out(
    config: RunConfig,
    value: str,
    sample: Sample,
    output: Path,
    before: Figures | None,
    tell: Callable[[int, float | None, bool], None],
) -> Setting | None:
    """Measure one setting; None if that was interrupted. ``before``: the last figures; ``tell``
    gets, for each run, its items, the seconds that they may take, and whether it repeats the
    setting.

    Raises UsageError where vLLM or the input refuses it."""
    num_seqs, tried = config.engine.max_num_seqs, -1
    if 0 < len(sample) < min_items(num_seqs):  # of none at all, the run says why
        problem = f"needs at least {min_items(num_seqs):,} items; the sample has {len(sample):,}"
        return Setting(value, os.fspath(output), problem=problem)
    found: Setting | None = None
    while (number := num_items(num_seqs, before, len(sample))) > tried:
        if number:
            tell(number, expected_s(number, before), found is not None)
        found = _measure_once(_as_trial(config, sample.first(number), output), value)
        if found is None or found.figures is None or not is_too_short(found.figures):
            break
        before, tried = found.figures, number
        output = output.with_name(f"{output.name}-again")
    return found


def _as_trial(config: RunConfig, elements: InputConfig, output: Path) -> RunConfig:
    """The run with these items, each of which reaches the engine, which is not replaced if it
    dies."""
    return replace(
        config,
        input=elements,
        output=output,
        engine=replace(config.engine, data_parallel_size=1, max_engine_restarts=0),
        resume=ResumeConfig(),
        dedup=False,
        pilot=None,
    )


def _measure_once(config: RunConfig, value: str) -> Setting | None:
    started_at_s = time.time()
    output = os.fspath(config.output)
    outcome = run_job(config, prints_summary=False)
    if outcome.exit_code == EXIT_INTERRUPTED:
        return None
    if outcome.stopped:
        what = "out of memory: " if shortage(outcome.stopped) else ""
        return Setting(value, output, problem=f"{what}{outcome.stopped}")
    try:
        series = read_series(config.output)
    except FAULTS:
        series = None
    num_seqs = config.engine.max_num_seqs
    figures = measure(
        read_folder(config.output, lambda rows: rows.last(COLUMNS)).to_pylist(),
        [] if series is None else series.to_pylist(),
        num_seqs=num_seqs,
        started_at_s=started_at_s,
        limited_by=main_limit(outcome.stats.limits_s),
        gpus_per_engine=config.engine.gpus_per_engine,
    )
    if figures is None:
        stats = outcome.stats
        failed = f" (failed: {tally(stats.failures)})" if stats.failures else ""
        problem = (
            f"needs at least {min_items(num_seqs):,} captions; the run made"
            f" {stats.captioned:,}{failed}"
        )
        return Setting(value, output, problem=problem)
    return Setting(value, output, figures)


def refused(value: str, output: Path, error: UsageError) -> Setting:
    """A setting with which no run starts."""
    return Setting(value, os.fspath(output), problem=f"refused: {error}")
