"""``plan``: what a run with the same flags would do, without an engine, leaving no trace.

Invariants: only the ``--json`` file is written and no lock is taken, so a plan can be made beside a
run; `driver.resume.decide` decides about each item, as in a run; memory grows only with the rows
and the distinct file names, as in a run.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vllm_caption.captions.prompt import load_prompt
from vllm_caption.commands.json_file import check_json_file, write_json_file
from vllm_caption.commands.plan.output import Rate, last_rate, read_recorded
from vllm_caption.commands.plan.report import Plan
from vllm_caption.commands.plan.survey import Survey
from vllm_caption.commands.plan.text import describe
from vllm_caption.commands.run import complete_config
from vllm_caption.config import RunConfig
from vllm_caption.driver.run_input import other_input
from vllm_caption.errors import EXIT_INTERRUPTED, EXIT_OK
from vllm_caption.flags import (
    Parser,
    above_zero,
    parse_known,
    parse_path,
    run_parser,
    without_flags,
)
from vllm_caption.images.files import check_images_root
from vllm_caption.inputs.choice import open_source
from vllm_caption.monitoring.progress import DocumentProgress
from vllm_caption.process import say, show
from vllm_caption.store.lock import check_count

OWN_FLAGS: Final = ("--json", "--images", "--images-per-s")
"""Flags that the run does not take."""


def parse_plan(arguments: Sequence[str]) -> tuple[RunConfig, argparse.Namespace]:
    """The settings of the planned run, with its command line, and the plan's own flags. vLLM need
    not be installed."""
    parser = run_parser()
    _add_flags(parser)
    options, engine_args = parse_known(parser, arguments)
    options.arguments = tuple(without_flags(arguments, (*OWN_FLAGS, "--pilot")))
    return complete_config(options, engine_args, needs_vllm=False), options


def _add_flags(parser: Parser) -> None:
    """Turn the parser of a run into that of its plan."""
    parser.prog += " plan"
    parser.description = (
        "Show what a run with the same flags would do. Needs no engine and writes nothing."
    )
    parser.epilog = (
        "flags of vLLM's engine are accepted and ignored. exit codes: 0 planned; 2 usage or"
        " configuration; 3 a part of the manifest is damaged; 130 interrupted."
    )
    group = parser.add_first_group("plan")
    group.add_argument("--json", type=parse_path, metavar="FILE", help="also write the plan there")
    group.add_argument(
        "--images",
        action="store_true",
        help="open every image, to find all problems and duplicates and to count tokens",
    )
    group.add_argument(
        "--images-per-s",
        type=above_zero,
        metavar="N",
        help="captions per second of one engine, for the estimate",
    )


def run_plan(arguments: Sequence[str]) -> int:
    """The command; returns the exit code. Raises UsageError where a run would."""
    config, options = parse_plan(arguments)
    json: Path | None = options.json
    check_json_file(json)
    try:
        plan = make_plan(config, open_images=options.images, images_per_s=options.images_per_s)
    except KeyboardInterrupt:
        print("Interrupted: nothing was planned.", file=sys.stderr)
        return EXIT_INTERRUPTED
    if config.pilot is not None:
        say("--pilot is left out: this is the plan of the full run.", sys.stderr)
    with contextlib.suppress(OSError):
        if other := other_input(config.input, config.output):
            say(f"The last run here captioned another input: {other}.", sys.stderr)
    show(describe(plan))
    write_json_file(json, plan)
    return EXIT_OK


def make_plan(
    config: RunConfig, *, open_images: bool = False, images_per_s: float | None = None
) -> Plan:
    """Read the whole input and what is done already. ``images_per_s``: of one engine."""
    started_s = time.monotonic()
    prompt = load_prompt(config.prompt)
    config = config.with_columns(prompt.columns)
    source = open_source(config.input)
    source.check()
    check_images_root(config.input.images_root)
    check_count(config.output, config.input.shard)
    survey = Survey(config, prompt, read_recorded(config.output), open_images=open_images)
    progress = DocumentProgress(source.num_documents(), source.nouns.document, quiet=config.quiet)
    try:
        survey.read(progress.show)
    finally:
        progress.close()
    if images_per_s is not None:
        return survey.plan(Rate(images_per_s, "--images-per-s"), started_s)
    return survey.plan(last_rate(config), started_s)
