"""``tune``: one engine at one setting after the other, on a sample of the input; the fastest wins.

Invariants: each setting is a run of the job, in a folder of its own below that of `tune`; the
output folder of the flags is not touched; what was measured is on disk before the next one starts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from vllm_caption.commands.run import parse_run
from vllm_caption.commands.tune import ladder, text
from vllm_caption.commands.tune.record import (
    INTERRUPTED,
    TUNING,
    Setting,
    Tuning,
    describe_call,
    read_tuning,
    tune_folder,
    write_tuning,
)
from vllm_caption.commands.tune.settings import (
    DOUBLING,
    OWN_FLAGS,
    Once,
    Tried,
    line_of,
    parse_try,
    word,
)
from vllm_caption.config import RunConfig
from vllm_caption.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, RunStopped, UsageError
from vllm_caption.flags import Parser, parse_known, parse_path, positive, run_parser, without_flags
from vllm_caption.formatting import counted
from vllm_caption.process import outliving_the_terminal, say

if TYPE_CHECKING:
    from vllm_caption.commands.tune.trial import Sample

DEFAULT_SAMPLE: Final = 4096
_ONE_ENGINE: Final = "--data-parallel-size=1"


def run_tune(arguments: Sequence[str]) -> int:
    """The command; returns the exit code. Raises UsageError where a run would."""
    options, _ = parse_known(_parser(), arguments)
    line = without_flags(arguments, OWN_FLAGS)
    config = parse_run([*line, _ONE_ENGINE])
    folder = options.tune_output or tune_folder(config.output)
    _check_apart(folder, config.output)
    tried: Tried = options.tried or DOUBLING
    # A typing mistake is found before anything starts.
    configs = [_config_of(line, tried.flag, value) for value in tried.values] or [config]
    fewest_seqs = min(c.engine.max_num_seqs for c in configs)
    config = _checked(config)
    if not config.quiet:
        say(f"Choosing up to {options.sample:,} items from the whole input.", sys.stderr)
    with outliving_the_terminal(), _holding(folder):
        sample = _choose(config, options.sample, fewest_seqs)
        tuning = _Tune(config, line, tried, sample, folder, describe_call(arguments)).run()
    for sentence in text.conclusion(tuning, folder, config.gpu_hour_price):
        say(sentence, sys.stdout)
    if tuning.ended == INTERRUPTED:
        return EXIT_INTERRUPTED
    return EXIT_OK if tuning.fastest is not None else EXIT_STOPPED


def _config_of(line: list[str], flag: str, value: str) -> RunConfig:
    """The run with this value of the flag. Raises UsageError."""
    return parse_run([*line_of(line, flag, value), _ONE_ENGINE])


def _parser() -> Parser:
    """That of a run, with the flags of `tune`."""
    parser = run_parser()
    parser.prog += " tune"
    parser.description = (
        "Find the fastest settings: measure one engine at --max-num-seqs 8, 16, 32, ... on a"
        " sample of the input, until doubling gains less than 5%, and print the command line to"
        " run. Does not touch --output. Run the same command again to resume."
    )
    parser.epilog = (
        "all other flags are those of a run. exit codes: 0 measured; 2 usage or configuration; 3"
        " no setting could be measured; 130 interrupted, measurements are kept."
    )
    group = parser.add_first_group("tune")
    group.add_argument(
        "--try",
        dest="tried",
        type=parse_try,
        action=Once,
        metavar="FLAG=V1,V2",
        help="measure these values of one flag instead: a flag of vLLM's engine or of a run (true"
        " and false for a flag without a value)",
    )
    group.add_argument(
        "--sample",
        type=positive,
        default=DEFAULT_SAMPLE,
        metavar="N",
        help="maximum number of items per setting, chosen as by --pilot",
    )
    group.add_argument(
        "--tune-output",
        type=parse_path,
        metavar="DIR",
        help="folder for tune.json and the trial runs (default: OUTPUT.tune beside --output)",
    )
    return parser


def _checked(config: RunConfig) -> RunConfig:
    """Raises UsageError, as a run would, for the input, the prompt and the model."""
    from vllm_caption.engines.machine_check import check_model_exists
    from vllm_caption.job import checked

    config, _ = checked(config)
    check_model_exists(config.engine)
    return config


def _check_apart(folder: Path, output: Path) -> None:
    """Raise UsageError where the results would lie in the output folder."""
    if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(output)):
        raise UsageError("--tune-output", folder, "is in --output; name another folder")


@contextlib.contextmanager
def _holding(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other calls of `tune` out of it. Raises UsageError."""
    from vllm_caption.store.lock import OutputLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = OutputLock(folder)
    except UsageError as error:
        raise UsageError("--tune-output", error.value, error.remedy) from None
    except OSError as error:
        remedy = f"cannot be written ({error.strerror}); name another folder"
        raise UsageError("--tune-output", folder, remedy) from None
    try:
        yield
    finally:
        lock.release()


def _choose(config: RunConfig, num_wanted: int, fewest_seqs: int) -> Sample:
    """The sample. Raises UsageError where no setting could be measured on it."""
    from vllm_caption.commands.tune.trial import Sample
    from vllm_caption.driver.pilot import choose_pilot

    sample = Sample(choose_pilot(config.input, num_wanted))
    least = ladder.min_items(fewest_seqs)
    if 0 < len(sample) < least:  # with none at all, the first run says why
        needed = f"--max-num-seqs={fewest_seqs} needs at least {least:,} items"
        if len(sample) == num_wanted:
            raise UsageError("--sample", num_wanted, f"is too small; {needed}")
        found = f"has only {counted(len(sample), 'item')}; {needed}. Run it without tuning"
        raise UsageError("the input", None, found)
    return sample


class _Tune:
    """One call: the settings measured so far, and what is common to all."""

    def __init__(
        self,
        config: RunConfig,
        line: list[str],
        tried: Tried,
        sample: Sample,
        folder: Path,
        call: list[str],
    ) -> None:
        self._config = config
        self._line = line
        self._tried = tried
        self._sample = sample
        self._folder = folder
        started = datetime.now(UTC)
        self._runs = folder / f"{started:%Y%m%dT%H%M%S}"
        self._width = text.width_of(*tried)
        self._tuning = Tuning(
            flag=tried.flag,
            started_at=started.isoformat(timespec="seconds"),
            num_sampled=len(sample),
            call=call,
        )

    def run(self) -> Tuning:
        """Measure until there is a reason to stop."""
        try:
            self._resume()
            why = self._measure()
        except KeyboardInterrupt:  # between two runs, which handle it themselves
            why = INTERRUPTED
        self._tuning = msgspec.structs.replace(self._tuning, ended=why)
        if self._tuning.settings:  # else an earlier file would be lost for nothing
            write_tuning(self._folder, self._tuning)
        return self._tuning

    def _resume(self) -> None:
        """Keep what the same call has measured before it was interrupted or killed."""
        before = read_tuning(self._folder)
        if before is not None and self._tuning.resumes(before):
            self._tell(
                f"Resuming the call of {before.started_at}; to measure everything again, remove"
                f" {self._folder / TUNING}."
            )
            for setting in before.settings:
                self._add(setting)

    def _measure(self) -> str:
        """Returns why it ended."""
        from vllm_caption.commands.tune.trial import refused, try_out

        first_seqs, num_sampled = self._config.engine.max_num_seqs, len(self._sample)
        while True:
            done = self._tuning.settings
            value = ladder.next_value(self._tried, done, first_seqs, num_sampled)
            if isinstance(value, ladder.Stop):
                return value.why
            output = self._runs / _folder_name(len(done), self._tried.flag, value)
            before = next((s.figures for s in reversed(done) if s.figures is not None), None)
            try:
                config = _config_of(self._line, self._tried.flag, value)
                found = try_out(
                    config, value, self._sample, output, before, partial(self._announce, value)
                )
            except UsageError as error:
                if not done and not self._tried.values:
                    raise  # it is the user's own line that is refused
                found = refused(value, output, error)
            except RunStopped as error:  # its disk failed, before it had an engine or after
                found = Setting(value, os.fspath(output), problem=str(error))
            if found is None:
                return INTERRUPTED
            self._add(found)

    def _announce(self, value: str, number: int, seconds: float | None, again: bool) -> None:
        name = word(self._tried.flag, value)
        self._tell(text.announcement(name, number, seconds, again=again))

    def _add(self, setting: Setting) -> None:
        if not self._tuning.settings:
            say(text.header(self._tried.flag, self._width), sys.stdout)
        say(text.table_row(setting, self._width), sys.stdout)
        settings = [*self._tuning.settings, setting]
        command = None
        if best := ladder.fastest(self._tried.flag, settings):
            line = line_of(self._line, self._tried.flag, best.value)
            command = shlex.join(["python", "-m", "vllm_caption", *line])
        self._tuning = msgspec.structs.replace(
            self._tuning, settings=settings, fastest=best and best.value, command=command
        )
        write_tuning(self._folder, self._tuning)

    def _tell(self, sentence: str) -> None:
        if not self._config.quiet:
            say(sentence, sys.stderr)


def _folder_name(number: int, flag: str, value: str) -> str:
    """Of a setting's run: numbered, since two values may come to the same characters."""
    return re.sub(r"[^\w.=-]+", "_", f"{number + 1}-{flag}={value}")[:100]
