"""``tune``: one engine at one setting after the other, on a sample of the input; the fastest wins.

Invariants: each setting is a run of the job, in a folder of its own below that of `tune`; the
output folder of the flags is not touched; what was measured is on disk before the next one starts.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from vllm_caption.commands.run import parse_run
from vllm_caption.commands.tune import ladder, text
from vllm_caption.commands.tune.record import Setting, Tuning, tune_folder, write_tuning
from vllm_caption.commands.tune.settings import (
    DOUBLING,
    OWN_FLAGS,
    Tried,
    line_of,
    parse_try,
)
from vllm_caption.config import RunConfig
from vllm_caption.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, UsageError
from vllm_caption.flags import Parser, parse_known, parse_path, positive, run_parser, without_flags
from vllm_caption.process import outliving_the_terminal, say

if TYPE_CHECKING:
    from vllm_caption.commands.tune.trial import Sample

DEFAULT_SAMPLE: Final = 4096
INTERRUPTED: Final = "interrupted"
_ONE_ENGINE: Final = "--data-parallel-size=1"


def run_tune(arguments: Sequence[str]) -> int:
    """The command; returns the exit code. Raises UsageError where a run would."""
    options, _ = parse_known(_parser(), arguments)
    line = without_flags(arguments, OWN_FLAGS)
    config = parse_run([*line, _ONE_ENGINE])
    folder = options.tune_output or tune_folder(config.output)
    tried: Tried = options.tried or DOUBLING
    for value in tried.values:
        _config_of(line, tried.flag, value)  # a typing mistake is found before anything starts
    with outliving_the_terminal():
        tuning = _Tune(config, line, tried, options.sample, folder).run()
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
        "Measure one engine at --max-num-seqs 8, 16, 32, ... on a sample of the input, until a"
        " doubling gives less than 5 %, and print the line to run. Does not touch --output."
    )
    parser.epilog = (
        "all other flags are those of a run. exit codes: 0 measured; 2 usage or configuration; 3"
        " no setting could be measured; 130 interrupted, what was measured is kept."
    )
    group = parser.add_argument_group("tune")
    group.add_argument(
        "--try",
        dest="tried",
        type=parse_try,
        metavar="FLAG=V1,V2",
        help="measure these values of a flag instead, vLLM's or one of the engines', captions' or"
        " images'; true and false for a switch",
    )
    group.add_argument(
        "--sample",
        type=positive,
        default=DEFAULT_SAMPLE,
        metavar="N",
        help="items that a setting captions at most, chosen as by --pilot",
    )
    group.add_argument(
        "--tune-output",
        type=parse_path,
        metavar="DIR",
        help="folder of the runs and of tune.json (default: OUTPUT.tune beside --output)",
    )
    return parser


class _Tune:
    """One call: the settings measured so far, and what is common to all."""

    def __init__(
        self, config: RunConfig, line: list[str], tried: Tried, num_wanted: int, folder: Path
    ) -> None:
        self._config = config
        self._line = line
        self._tried = tried
        self._folder = folder
        started = datetime.now(UTC)
        self._runs = folder / f"{started:%Y%m%dT%H%M%S}"
        self._width = text.width_of(*tried)
        self._sample = self._choose(num_wanted)
        folder.mkdir(parents=True, exist_ok=True)
        self._tuning = Tuning(
            flag=tried.flag,
            started_at=started.isoformat(timespec="seconds"),
            num_sampled=len(self._sample),
        )

    def _choose(self, num_wanted: int) -> Sample:
        """Raises UsageError, as a run would, for the input, the prompt and the model."""
        from vllm_caption.commands.tune.trial import Sample
        from vllm_caption.driver.pilot import choose_pilot
        from vllm_caption.job import checked

        config, _ = checked(self._config)
        self._tell(f"Choosing up to {num_wanted:,} items from the whole input.")
        return Sample(choose_pilot(config.input, num_wanted))

    def run(self) -> Tuning:
        """Measure until there is a reason to stop."""
        try:
            why = self._measure()
        except KeyboardInterrupt:  # between two runs, which handle it themselves
            why = INTERRUPTED
        self._keep(ended=why)
        return self._tuning

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
            self._tell(f"Measuring --{self._tried.flag}={value}.")
            try:
                config = _config_of(self._line, self._tried.flag, value)
                found = try_out(config, value, self._sample, output, before)
            except UsageError as error:
                if not done and not self._tried.values:
                    raise  # it is the user's own line that is refused
                found = refused(value, output, error)
            if found is None:
                return INTERRUPTED
            self._add(found)

    def _add(self, setting: Setting) -> None:
        if not self._tuning.settings:
            say(text.header(self._tried.flag, self._width), sys.stdout)
        say(text.table_row(setting, self._width), sys.stdout)
        settings = [*self._tuning.settings, setting]
        command = None
        if best := ladder.fastest(settings):
            line = line_of(self._line, self._tried.flag, best.value)
            command = shlex.join(["python", "-m", "vllm_caption", *line])
        self._keep(settings=settings, fastest=best and best.value, command=command)

    def _keep(self, **changes: object) -> None:
        self._tuning = msgspec.structs.replace(self._tuning, **changes)
        write_tuning(self._folder, self._tuning)

    def _tell(self, sentence: str) -> None:
        if not self._config.quiet:
            say(sentence, sys.stderr)


def _folder_name(number: int, flag: str, value: str) -> str:
    """Of a setting's run: numbered, since two values may come to the same characters."""
    return re.sub(r"[^\w.=-]+", "_", f"{number + 1}-{flag}={value}")[:100]
