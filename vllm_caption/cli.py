"""The command line: arguments → frozen config → exit code.

Flags that vLLM knows keep vLLM's name; flags that are not listed in `flags` go to vLLM, which
checks them before anything starts. Nothing heavy is imported before the arguments are parsed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from vllm_caption.config import (
    REMOTE_WINDOW_FACTOR,
    EngineConfig,
    ImageConfig,
    InputConfig,
    RunConfig,
    SamplingConfig,
)
from vllm_caption.errors import (
    EXIT_INTERRUPTED,
    EXIT_NO_READER,
    EXIT_STOPPED,
    EXIT_USAGE,
    CaptionJobError,
    UsageError,
)
from vllm_caption.flags import run_parser
from vllm_caption.images.object_store import is_remote

COMMANDS = ("run", "demo", "plan", "status", "verify", "report", "merge")


def command() -> NoReturn:
    """The process of ``python -m vllm_caption`` and ``vllm-caption``.

    Everything is saved when `main` returns, so threads that still wait for a process to start
    must not hold the exit.
    """
    sys.excepthook = _unforeseen
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no name may be too much for a terminal
            stream.reconfigure(errors="backslashreplace")
    try:
        exit_code = main()
    except BrokenPipeError:  # nobody reads any more, as after `| head`
        exit_code = EXIT_NO_READER
    _leave(exit_code)


def _unforeseen(kind: type[BaseException], error: BaseException, trace: Any) -> NoReturn:
    """A bug: its traceback, and not the exit code of a run that finished."""
    sys.__excepthook__(kind, error, trace)
    _leave(EXIT_STOPPED)


def _leave(exit_code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "run"
    try:
        return _run_command(command, arguments)
    except UsageError as error:
        print(f"vllm-caption: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except CaptionJobError as error:
        print(f"vllm-caption: stopped: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"vllm-caption: stopped: {where}{error.strerror or error}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:  # before the job's own handlers were in place, or beside a job
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run_command(command: str, arguments: list[str]) -> int:
    if command == "demo":
        from vllm_caption.commands.demo import run_demo

        return run_demo(arguments)
    if command == "plan":
        from vllm_caption.commands.plan.command import run_plan

        return run_plan(*parse_plan(arguments))
    if command == "verify":
        from vllm_caption.commands.verify.command import run_verify

        return run_verify(arguments)
    if command == "report":
        from vllm_caption.commands.report.command import run_report

        return run_report(arguments)
    if command == "merge":
        from vllm_caption.commands.merge import run_merge

        return run_merge(arguments)
    if command == "status":
        from vllm_caption.commands.status import run_status

        return run_status(arguments)
    config = parse_run(arguments)
    from vllm_caption.job import run_job

    return run_job(config).exit_code


def parse_run(arguments: Sequence[str]) -> RunConfig:
    """The frozen settings of one run. Raises UsageError; ``--help`` exits."""
    namespace, engine_args = run_parser().parse_known_args(arguments)
    return _config(vars(namespace) | {"arguments": tuple(arguments)}, engine_args)


def parse_plan(arguments: Sequence[str]) -> tuple[RunConfig, argparse.Namespace]:
    """The settings of the run that is planned, and the plan's own flags; needs no vLLM."""
    from vllm_caption.commands.plan.command import add_flags

    parser = run_parser()
    add_flags(parser)
    namespace, engine_args = parser.parse_known_args(arguments)
    return _config(vars(namespace), engine_args, needs_vllm=False), namespace


def _config(
    values: dict[str, Any], engine_args: list[str], *, needs_vllm: bool = True
) -> RunConfig:
    if engine_args and not engine_args[0].startswith("-"):
        known = engine_args[0] in COMMANDS
        remedy = "comes before its flags" if known else f"is not one of {', '.join(COMMANDS)}"
        raise UsageError("command", engine_args[0], remedy)
    values["engine_args"] = tuple(engine_args)
    if values["data_parallel_size"] is None:
        values["data_parallel_size"] = _default_engines(values, needs_vllm=needs_vllm)
    if is_remote(values["images_root"]):
        values["window_factor"] = REMOTE_WINDOW_FACTOR
    if values["redo"] and values["redo_kinds"]:
        remedy = "both say what is made anew; give one of them"
        raise UsageError("--redo-kind", ",".join(values["redo_kinds"]), f"and --redo {remedy}")
    if values["min_pixels"] > values["max_pixels"]:
        remedy = f"is more than --max-pixels {values['max_pixels']}"
        raise UsageError("--min-pixels", values["min_pixels"], remedy)
    return RunConfig(
        input=InputConfig(**_taken(InputConfig, values)),
        image=ImageConfig(**_taken(ImageConfig, values)),
        sampling=SamplingConfig(**_taken(SamplingConfig, values)),
        engine=EngineConfig(**_taken(EngineConfig, values)),
        **_taken(RunConfig, values),
    )


def _default_engines(values: dict[str, Any], *, needs_vllm: bool) -> int:
    from vllm_caption.engines import hardware

    per_engine = values["tensor_parallel_size"] * values["pipeline_parallel_size"]
    try:
        if values["executor"] == "local":
            return hardware.default_data_parallel_size(per_engine)
        from vllm_caption.engines.executors import ray

        return ray.default_data_parallel_size(values["ray_address"], per_engine)
    except UsageError:
        if needs_vllm:
            raise
        return 1


def _taken(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}
