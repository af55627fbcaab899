"""The command line: its first word → the command, the command's errors → the exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vllm_caption.errors import (
    EXIT_INTERRUPTED,
    EXIT_NO_READER,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USAGE,
    CaptionJobError,
    RunStopped,
    UsageError,
    of_system,
)
from vllm_caption.flags import COMMANDS, in_words_of
from vllm_caption.process import leave, prepare_process, print_bug, say, show


def command() -> NoReturn:
    """The process of ``python -m vllm_caption`` and ``vllm-caption``.

    Everything is saved when `main` returns, so the process exits without waiting for its threads:
    one of them may be waiting for an engine process to start.
    """
    sys.excepthook = print_bug
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        prepare_process()
        exit_code = main()
    except UsageError as error:
        exit_code = _report("error", error, EXIT_USAGE)
    except BrokenPipeError:  # the output pipe was closed, as by `| head`
        exit_code = EXIT_NO_READER
    except SystemExit as left:  # --help and --version
        exit_code = left.code if isinstance(left.code, int) else EXIT_OK
        try:
            show("", end="")
        except BrokenPipeError:
            exit_code = EXIT_NO_READER
        except RunStopped as error:
            exit_code = _report("stopped", error, EXIT_STOPPED)
    leave(exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of this process); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "run"
    try:
        _check_working_folder()
        return _run_command(command, arguments)
    except UsageError as error:
        return _report("error", in_words_of(arguments, error), EXIT_USAGE)
    except CaptionJobError as error:
        return _report("stopped", error, EXIT_STOPPED)
    except BrokenPipeError:
        raise
    except OSError as error:
        known = of_system(error)
        if isinstance(known, UsageError):
            return _report("error", known, EXIT_USAGE)
        return _report("stopped", known, EXIT_STOPPED)
    except KeyboardInterrupt:  # before the job's own handlers were in place, or beside a job
        say("Interrupted.", sys.stderr)
        return EXIT_INTERRUPTED


def _report(what: str, error: object, exit_code: int) -> int:
    say(f"vllm-caption: {what}: {error}", sys.stderr)
    return exit_code


def _check_working_folder() -> None:
    """Raise UsageError where no relative path leads anywhere."""
    try:
        Path.cwd()
    except FileNotFoundError:
        remedy = "does not exist any more; change to another one (cd)"
        raise UsageError("working folder", None, remedy) from None


def _run_command(command: str, arguments: list[str]) -> int:
    # Each is imported only when it is called, so that `--help` and small commands start at once.
    match command:
        case "demo":
            from vllm_caption.commands.demo import run_demo

            return run_demo(arguments)
        case "plan":
            from vllm_caption.commands.plan.command import run_plan

            return run_plan(arguments)
        case "tune":
            from vllm_caption.commands.tune.command import run_tune

            return run_tune(arguments)
        case "doctor":
            from vllm_caption.commands.doctor import run_doctor

            return run_doctor(arguments)
        case "verify":
            from vllm_caption.commands.verify.command import run_verify

            return run_verify(arguments)
        case "report":
            from vllm_caption.commands.report.command import run_report

            return run_report(arguments)
        case "merge":
            from vllm_caption.commands.merge import run_merge

            return run_merge(arguments)
        case "export":
            from vllm_caption.commands.export import run_export

            return run_export(arguments)
        case "status":
            from vllm_caption.commands.status.command import run_status

            return run_status(arguments)
        case _:
            from vllm_caption.commands.run import run_run

            return run_run(arguments)
