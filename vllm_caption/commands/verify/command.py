"""``verify``: whether captions, manifest and input agree; if not, where and what to do about it.

Invariants: without ``--repair`` nothing but the ``--json`` file is written and no lock is held, so
that it may run beside a run; with it, the same lock is held as by a run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vllm_caption.commands.json_file import check_json_file, write_json_file
from vllm_caption.commands.run_line import check_is_folder, input_of_line, parse_line
from vllm_caption.commands.verify.repair import Repair
from vllm_caption.commands.verify.survey import Survey
from vllm_caption.commands.verify.text import describe
from vllm_caption.commands.verify.verdict import Verdict
from vllm_caption.config import InputConfig, RunConfig
from vllm_caption.errors import EXIT_OK, UsageError
from vllm_caption.flags import (
    Parser,
    add_input,
    add_output_folder,
    parse_path,
)
from vllm_caption.images.object_store import recorded_root
from vllm_caption.inputs.choice import open_source
from vllm_caption.monitoring.progress import DocumentProgress
from vllm_caption.process import show
from vllm_caption.store.output import Output

EXIT_DIVERGES = 1


def run_verify(arguments: Sequence[str]) -> int:
    """The command; returns the exit code. Raises UsageError."""
    parser = _parser()
    options, named = parse_line(parser, arguments)
    json: Path | None = options.json
    check_json_file(json)
    config = input_of_line(options, named, quiet=options.quiet)
    verdict = verify(
        config,
        options.output,
        repair=options.repair,
        keep_all=json is not None,
        quiet=options.quiet,
    )
    show(describe(verdict))
    write_json_file(json, verdict)
    return EXIT_OK if verdict.agrees else EXIT_DIVERGES


def _parser() -> Parser:
    parser = Parser(
        prog="vllm-caption verify",
        usage="%(prog)s [OUTPUT] [FLAG ...]",
        description="Compare the .txt files, the manifest and the input of a run, and report where"
        " they disagree. The input is that of the last run, unless you name another; only then do"
        " the defaults below apply. Needs no engine.",
        epilog="exit codes: 0 everything agrees, apart from captions that people edited, recorded"
        " failures, and rows and .txt files of items that are not in the input; 1 something is"
        " damaged, missing, unreadable or not tried yet; 2 usage or configuration; 3 could not"
        " continue (disk full); 130 interrupted.",
    )
    add_input(parser.add_argument_group("input"))
    group = parser.add_argument_group("output")
    add_output_folder(group, place="first")
    group.add_argument(
        "--json", type=parse_path, metavar="FILE", help="also write the full result there"
    )
    group.add_argument(
        "--repair",
        action="store_true",
        help="make rows from .txt files and missing .txt files from rows; no caption is lost",
    )
    group.add_argument("--quiet", action="store_true", help="print only the result, no progress")
    return parser


def verify(
    config: InputConfig,
    root: Path,
    *,
    repair: bool = False,
    keep_all: bool = False,
    quiet: bool = True,
) -> Verdict:
    """Compare and, with ``repair``, fix what can be fixed. Raises UsageError where a run would."""
    started_s = time.monotonic()
    source = open_source(config)
    source.check()
    check_is_folder(root)
    progress = DocumentProgress(source.num_documents(), source.nouns.document, quiet=quiet)
    try:
        with _repairing(config, root, wanted=repair) as repairing:
            survey = Survey(config, root, repairing, keep_all=keep_all)
            survey.compare(progress.show)
    except PermissionError as error:
        what = f"{error.filename or 'the journal'} cannot be read ({error.strerror})"
        raise UsageError("--output", root, f"{what}; fix its permissions") from error
    finally:
        progress.close()
    return survey.verdict(time.monotonic() - started_s)


@contextmanager
def _repairing(config: InputConfig, root: Path, *, wanted: bool) -> Iterator[Repair | None]:
    if not wanted:
        yield None
        return
    output = Output(root, RunConfig().checkpoint_interval)
    complete = False
    try:
        yield Repair(output, recorded_root(config.images_root))
        complete = True
    finally:
        output.close(complete=complete)
        for note in output.take_notes():
            print(note, file=sys.stderr)
