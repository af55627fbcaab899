"""``plan``: what a run with the same flags would do, without an engine and without a trace.

Invariants: nothing is written but the ``--json`` file and no lock is taken, so that it may run
beside a run; what is done, stale or failed is decided by the functions that `scan` decides with;
memory grows with the known rows and the distinct file names only, as in a run.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from vllm_caption.captions.prompt import load_prompt
from vllm_caption.commands.json_file import check_json_file, write_json_file
from vllm_caption.commands.plan.output import Rate, read_rate, read_recorded
from vllm_caption.commands.plan.report import Plan
from vllm_caption.commands.plan.survey import Survey
from vllm_caption.commands.plan.text import describe
from vllm_caption.config import RunConfig
from vllm_caption.errors import EXIT_INTERRUPTED, EXIT_OK
from vllm_caption.flag_values import above_zero
from vllm_caption.inputs.manifest import check_input_folders, document_names
from vllm_caption.monitoring.progress import DocumentProgress


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Turn the parser of a run into that of its plan."""
    parser.prog += " plan"
    parser.description = (
        "Say what a run with the same flags would do, without an engine, and write nothing."
    )
    parser.epilog = (
        "flags of vLLM's engine are taken and ignored. exit codes: 0 planned; 2 usage or"
        " configuration; 3 a part of the manifest is damaged; 130 interrupted."
    )
    group = parser.add_argument_group("plan")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the plan there as well")
    group.add_argument(
        "--images", action="store_true", help="open every image: all problems, tokens, twins"
    )
    group.add_argument(
        "--images-per-s", type=above_zero, metavar="N", help="captions per second of one engine"
    )


def run_plan(config: RunConfig, options: argparse.Namespace) -> int:
    """The command, with the flags of `add_flags`; returns the exit code.

    Raises UsageError where a run would.
    """
    json: Path | None = options.json
    check_json_file(json)
    try:
        plan = make_plan(config, open_images=options.images, images_per_s=options.images_per_s)
    except KeyboardInterrupt:
        print("Interrupted: nothing was planned.", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(describe(plan), flush=True)
    write_json_file(json, plan)
    return EXIT_OK


def make_plan(
    config: RunConfig, *, open_images: bool = False, images_per_s: float | None = None
) -> Plan:
    """Read the whole input and what is done of it. ``images_per_s`` is of one engine."""
    started_s = time.monotonic()
    check_input_folders(config.input)
    prompt = load_prompt(config.prompt)
    survey = Survey(config, prompt, read_recorded(config.output), open_images=open_images)
    progress = DocumentProgress(len(document_names(config.input.jsons)), quiet=config.quiet)
    try:
        survey.read(progress.show)
    finally:
        progress.close()
    if images_per_s is not None:
        return survey.plan(Rate(images_per_s, "--images-per-s"), started_s)
    return survey.plan(read_rate(config.output), started_s)
