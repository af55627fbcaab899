"""``run``: the job itself, the default command.

The job is imported only after the arguments are parsed, so that `--help` and mistakes are answered
at once.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_caption.config import EngineConfig, RunConfig
from vllm_caption.errors import CaptionJobError, UsageError
from vllm_caption.flags import make_config, parse_known, run_parser
from vllm_caption.process import outliving_the_terminal

if TYPE_CHECKING:
    from vllm_caption.job import Outcome


def run_run(arguments: Sequence[str]) -> int:
    """The command; returns the exit code. Raises UsageError and RunStopped."""
    return caption(parse_run(arguments)).exit_code


def parse_run(arguments: Sequence[str]) -> RunConfig:
    """The settings of one run. Raises UsageError; ``--help`` exits."""
    options, engine_args = parse_known(run_parser(), arguments)
    options.arguments = tuple(arguments)
    return complete_config(options, engine_args)


def complete_config(
    options: argparse.Namespace, engine_args: tuple[str, ...], *, needs_vllm: bool = True
) -> RunConfig:
    """The settings that flags give, with an engine for every GPU where they name no number.

    Raises UsageError; without ``needs_vllm``, GPUs that cannot be counted are no error.
    """
    values = vars(options) | {"engine_args": engine_args}
    if options.data_parallel_size is None:
        one = EngineConfig(
            tensor_parallel_size=options.tensor_parallel_size,
            pipeline_parallel_size=options.pipeline_parallel_size,
            engine_args=engine_args,
        )
        values["data_parallel_size"] = _count_engines(
            options, one.gpus_per_engine, needs_vllm=needs_vllm
        )
    return make_config(values)


def _count_engines(options: argparse.Namespace, gpus_per_engine: int, *, needs_vllm: bool) -> int:
    from vllm_caption.engines.executors.choice import default_data_parallel_size

    try:
        return default_data_parallel_size(options.executor, options.ray_address, gpus_per_engine)
    except UsageError:
        if needs_vllm:
            raise
        return 1


def caption(config: RunConfig) -> Outcome:
    """Run the job, and make the page of a pilot. Raises UsageError and RunStopped."""
    from vllm_caption.job import run_job

    with outliving_the_terminal():
        outcome = run_job(config)
    if outcome.pilot:
        with contextlib.suppress(OSError, ValueError):  # the output pipe was closed; all is saved
            print(f"  {make_page(config.output, config.gpu_hour_price)}", flush=True)
    return outcome


def make_page(root: Path, gpu_hour_price: float | None = None) -> str:
    """Write the report on a run; returns one line about it. The captions do not depend on it."""
    from vllm_caption.commands.report.command import make_report
    from vllm_caption.store.layout import REPORT

    try:
        made = make_report([root], root / REPORT, gpu_hour_price=gpu_hour_price)
        return f"Report: {made}"
    except (CaptionJobError, OSError) as error:
        return f"The report could not be made: {error}"
