"""The flags of the command line: names and help, reading of values, and the config that they make.

Flags are listed in the groups that ``--help`` shows; every default comes from `config`. Flags that
vLLM knows keep vLLM's name; flags that are not listed here go to vLLM, which checks them before
anything starts. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, get_args
from urllib.parse import urlsplit

from vllm_caption import __version__
from vllm_caption.config import (
    REMOTE_WINDOW_FACTOR,
    EngineConfig,
    ExecutorName,
    ImageConfig,
    InputConfig,
    Redo,
    ResumeConfig,
    RunConfig,
    SamplingConfig,
    Shard,
    absence,
    is_archive,
    is_folder,
    is_remote,
    is_table,
)
from vllm_caption.engine_flags import check_names, check_parallel_flags
from vllm_caption.errors import CAPTION_FLAGS, ITEM_KINDS, UsageError
from vllm_caption.formatting import did_you_mean, flag_of

COMMANDS: Final = (
    *("run", "demo", "doctor", "plan", "tune", "status", "verify", "report", "merge", "export"),
)
"""The first word of a command line; `run` may be left out."""
FLAGS_OF_COMMANDS: Final = {
    "--gallery": ("report",),
    "--html": ("report",),
    "--images": ("plan",),
    "--images-per-s": ("plan",),
    "--items": ("report",),
    "--json": ("doctor", "plan", "status", "verify"),
    "--repair": ("verify",),
    "--sample": ("tune",),
    "--try": ("tune",),
    "--tune-output": ("tune",),
    "--watch": ("status",),
}
"""Flags that a run does not have, each with the commands that have it."""
_REDO_FLAGS: Final = {
    "redo_files": "--redo-file",
    "redo_kinds": "--redo-kind",
    "redo": "--redo",
}
REMOTE_SCHEMES: Final = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_PATHS: Final = ("--input", "--output", "--images-root", "--jsons", "--json-detail")
EPILOG = """\
other commands, each with its own --help: demo (captions of a bundled sample), doctor (would a run
start here?), plan (what would it do?), tune (which settings are fastest?), status (what is it
doing?), verify (do captions, manifest and input agree?), report (a page of the captions), merge
(of shards), export (to one file). Put the command before the arguments of the run.

all other flags go to vLLM's engine (--gpu-memory-utilization, --quantization, --dtype, ...) and
are checked before anything starts; see `vllm serve --help=all`.

exit codes: 0 all items captioned; 1 finished, some failed; 2 usage or configuration;
3 could not continue; 130 interrupted."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where it says something."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs stay paragraphs."""
        paragraphs = text.split("\n\n")
        return "\n\n".join(super(_Help, self)._fill_text(p, width, indent) for p in paragraphs)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.default, bool) or action.default in (None, (), []):
            return action.help
        if isinstance(action.default, tuple):
            if not all(isinstance(value, str) for value in action.default):
                return action.help
            return f"{action.help} (default: {','.join(action.default)})"
        return super()._get_help_string(action)


_REQUIRED: Final = "the following arguments are required: "
"""How argparse's message about them begins."""
_NO_VALUE: Final = "ignored explicit argument "
"""How argparse's message about the value of a switch begins."""


class Parser(argparse.ArgumentParser):
    """Takes flags by their full name only, with `-` or, as vLLM does, with `_` between its words; a
    mistake is a UsageError that names the flag."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, exit_on_error=False, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The values; a word that means nothing here is a UsageError."""
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            flag = rest[0].partition("=")[0]
            what = "unknown flag" if flag.startswith("-") else "unexpected argument"
            remedy = did_you_mean(flag, self.flags) or f"see {self.prog} --help"
            if not flag.startswith("-") and "--input" in self.flags:
                other = "output" if options.input is not None else "input"
                remedy = f"name the {other} with --{other}"
            raise UsageError(flag or "''", None, f"{what}; {remedy}")
        return options

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The values, and the words that mean nothing here."""
        words = [self._with_dashes(word) for word in (sys.argv[1:] if args is None else args)]
        try:
            return super().parse_known_args(words, namespace)
        except argparse.ArgumentError as error:
            name = (error.argument_name or "arguments").partition("/")[0]  # --long/-short
            is_switch = error.message.startswith(_NO_VALUE)
            raise UsageError(name, None, "takes no value" if is_switch else error.message) from None

    def error(self, message: str) -> Any:
        """Called by argparse for a mistake that no single flag made; it would print its usage and
        exit."""
        if message.startswith(_REQUIRED):
            remedy = f"is missing; see {self.prog} --help"
            raise UsageError(message.removeprefix(_REQUIRED), None, remedy)
        raise UsageError("arguments", None, message)

    def _with_dashes(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        spelt = dashed(flag)
        return f"{spelt}{equals}{value}" if spelt in self.flags else word

    def add_first_group(self, title: str) -> Any:
        """A group that ``--help`` shows before those that are there."""
        group = self.add_argument_group(title)
        self._action_groups.insert(2, self._action_groups.pop())  # after arguments and --help
        return group

    @property
    def flags(self) -> Mapping[str, argparse.Action]:
        """Every flag, long and short, and what argparse knows about it."""
        return self._option_string_actions


def run_parser() -> Parser:
    """The parser of `run`; see `parse_known` for flags that it does not know."""
    parser = Parser(
        prog="vllm-caption",
        usage="%(prog)s [INPUT] [FLAG ...]",
        description="Caption images with vLLM, one engine per GPU. Run the same command again to"
        " resume: finished items are skipped.\n\nexample: vllm-caption images --output captions",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"vllm-caption {__version__}")
    run = RunConfig()
    inputs = parser.add_argument_group("input")
    add_input(inputs, of_run=True)
    help_text = "caption a sample of N items of all types and sizes, and estimate the full run"
    _add(inputs, run, "pilot", help_text, type=positive, metavar="N")
    help_text = "price of one GPU for one hour; costs are then shown, in the same currency"
    _add(inputs, run, "gpu_hour_price", help_text, type=above_zero, metavar="PRICE")
    help_text = "caption only part I of N; `merge` combines the manifests"
    _add(inputs, run.input, "shard", help_text, type=_shard, metavar="I/N")
    _add_output(parser.add_argument_group("output"), run)
    captions = parser.add_argument_group("captions")
    _add_captions(captions, run)
    _add_images(captions, run.image)
    _add_sampling(captions, run.sampling)
    _add_engines(parser.add_argument_group("engines"), run.engine)
    return parser


def _add(group: Any, config: object, name: str, text: str, *short: str, **options: Any) -> None:
    """A flag with the name and the default of a field of ``config``."""
    flag = flag_of(name)
    if options.get("type") in (positive, natural, int, float):
        options.setdefault("metavar", "N" if options["type"] is not float else "X")
    group.add_argument(flag, *short, default=getattr(config, name), help=text, **options)


def add_input(group: Any, *, of_run: bool = False) -> None:
    """Flags of every command that reads the input; ``of_run``: as a run takes them, whose line may
    begin with the input."""
    config = InputConfig()
    text = "a folder of images; a table with one row per image (.jsonl, .csv, .tsv, .parquet, or a"
    text += " folder of .parquet); a .tar or a folder of them"
    if of_run:
        text += ". May be given as the first argument, without the flag"
    _add(group, config, "input", text, type=parse_path, metavar="PATH")
    text = "column that names the image (default: image, file, file_name or path)"
    _add(group, config, "image_column", text, metavar="NAME")
    text = "column to keep in the manifest as item_id"
    _add(group, config, "id_column", text, metavar="NAME")
    text = "column with the type of the image, or a list of them if a row holds several"
    _add(group, config, "type_column", text, metavar="NAME")
    text = f"without --input: folder of designs, one JSON file each (default: {config.jsons})"
    _add_given(group, "jsons", text, type=parse_path)
    text = f"without --input: folder of their details (default: {config.json_detail})"
    _add_given(group, "json_detail", text, type=parse_path)
    text = "where the images are: a folder, s3://BUCKET/PREFIX, gs://..., hdfs://..."
    text += (
        f" (default: {config.images_root}; with --input, that folder, or the folder of the table or"
    )
    text += " tar)"
    _add_given(group, "images_root", text, type=parse_images_root)
    text = "element types to skip, comma-separated, in upper or lower case"
    _add(group, config, "skip_types", text, type=_names)
    text = "take only the first N items"
    if of_run:
        text += "; with --redo, re-caption the next N"
    _add(group, config, "limit", text, type=positive)


def _add_given(group: Any, name: str, text: str, **options: Any) -> None:
    """A flag whose default depends on others: left out, it is not among the values."""
    flag = flag_of(name)
    group.add_argument(flag, default=argparse.SUPPRESS, help=text, **options)


def add_output_folder(group: Any, *, place: str = "") -> None:
    """The flag of every command that reads or writes an output folder; ``place``: of the argument
    that may name it without the flag."""
    text = "folder of captions"
    if place:
        text += f"; may be given as the {place} argument, without the flag"
    _add(group, RunConfig(), "output", text, type=parse_path)


def _add_output(group: Any, run: RunConfig) -> None:
    add_output_folder(group)
    naming = group.add_mutually_exclusive_group()
    text = (
        "name captions x.png.txt (file) or x.txt (stem); default: as in the folder so far, or file"
    )
    _add(naming, run, "caption_name", text, choices=("file", "stem"))
    text = "write no .txt files; the manifest holds the captions"
    naming.add_argument(
        "--no-txt", dest="caption_name", action="store_const", const="none", help=text
    )
    _add(group, run, "checkpoint_interval", "rows per Parquet part", type=positive)
    text = "re-caption these, except those that a person wrote; the same command resumes"
    _add(group, run.resume, "redo", text, choices=get_args(Redo))
    group.add_argument(
        "--redo-kind",
        dest="redo_kinds",
        metavar="KIND",
        type=_kinds,
        default=run.resume.redo_kinds,
        help="re-caption items that failed with one of these kinds, or whose caption has one of"
        " these flags; comma-separated",
    )
    group.add_argument(
        "--redo-file",
        dest="redo_files",
        metavar="NAME",
        nargs="+",
        action="extend",
        type=_file_pattern,
        default=list(run.resume.redo_files),
        help="caption only these items, even if they have a caption; 'icons/*' is a pattern",
    )
    text = "with a --redo flag: also replace captions that people edited or added"
    _add_switch(group, run.resume, "overwrite_edited", text)
    _add_switch(group, run, "quiet", "print no progress, only messages and the summary")
    text = "append all messages to this file, with their times, even with --quiet"
    _add(group, run, "log_file", text, type=parse_path)
    _add_switch(group, run, "log_json", "write messages as JSON, one object per line")


def _add_switch(group: Any, config: object, name: str, text: str) -> None:
    _add(group, config, name, text, action="store_true")


def _add_captions(group: Any, run: RunConfig) -> None:
    _add(group, run, "prompt", "a prompt file, or the name of one in prompts/", type=_parse_prompt)
    for name, text in (
        (
            "checks",
            "accept every caption, unless it is only reasoning or JSON that breaks its schema",
        ),
        ("dedup", "caption byte-identical images separately"),
    ):
        group.add_argument(f"--no-{name}", dest=name, action="store_false", help=text)
    text = "how many times to retry an item that failed or whose caption broke a rule"
    _add(group, run, "max_retries", text, type=natural)
    text = "stop the run after N answers with the same error and no caption between them, or 16 × N"
    text += " once something has been captioned; 0: never"
    _add(group, run, "max_same_errors", text, type=natural)


def _add_images(group: Any, image: ImageConfig) -> None:
    for name, text in (
        ("max_side", "shrink images whose longer side exceeds N pixels"),
        ("min_pixels", "smaller images are enlarged to N pixels, by the model's processor"),
        ("max_pixels", "larger images are shrunk to N pixels, by the model's processor"),
        ("max_image_pixels", "images with more than N pixels fail, without being decoded"),
    ):
        _add(group, image, name, text, type=positive)


def _add_sampling(group: Any, sampling: SamplingConfig) -> None:
    for name, kind in (
        ("max_tokens", positive),
        ("temperature", float),
        ("top_p", float),
        ("top_k", int),
        ("seed", int),
        ("repetition_penalty", float),
        ("presence_penalty", float),
        ("frequency_penalty", float),
        ("min_tokens", natural),
    ):
        _add(group, sampling, name, "as in vLLM's SamplingParams", type=kind)
    group.add_argument(
        "--stop",
        nargs="+",
        action="extend",
        default=list(sampling.stop),
        help="strings that end a caption",
    )
    _add_switch(group, sampling, "ignore_eos", "always generate --max-tokens tokens")


def _add_engines(group: Any, engine: EngineConfig) -> None:
    text = "a folder, or a name on the Hugging Face Hub; `demo` is the bundled tiny model"
    _add(group, engine, "model", text, type=_parse_model)
    group.add_argument(  # its default depends on the machine
        "--data-parallel-size",
        "-dp",
        type=positive,
        metavar="N",
        help="number of engines (default: GPUs of the machine or cluster / GPUs per engine)",
    )
    text = "run the engines on this machine or on a Ray cluster"
    _add(group, engine, "executor", text, choices=get_args(ExecutorName))
    _add(group, engine, "ray_address", "address of the cluster, as in ray.init")
    _add(group, engine, "tensor_parallel_size", "GPUs per engine", "-tp", type=positive)
    text = "pipeline stages per engine"
    _add(group, engine, "pipeline_parallel_size", text, "-pp", type=positive)
    text = "captions that one engine generates at a time"
    _add(group, engine, "max_num_seqs", text, type=positive)
    text = "images per engine that are read and decoded at a time"
    _add(group, engine, "prepare_threads", text, type=positive)
    text = "restart an engine at most N times in a row without a caption between its crashes"
    _add(group, engine, "max_engine_restarts", text, type=natural)
    for name, text in (
        ("stall_timeout", "restart an engine that makes no progress for this long"),
        ("item_timeout", "time limit for reading and decoding an image"),
        ("start_timeout", "time limit for starting an engine"),
        ("drain_timeout", "time limit for finishing the items in flight after Ctrl+C"),
    ):
        group.add_argument(
            flag_of(name),
            dest=f"{name}_s",
            metavar="SECONDS",
            type=above_zero,
            default=getattr(engine, f"{name}_s"),
            help=text,
        )


# --- from the text of a flag to its value; argparse reports what is wrong with it ----------------


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """A whole number, 0 or more."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is not {least} or more")
    return value


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def parse_path(text: str) -> Path:
    """A file or folder. `~` is the home folder here too, since a shell leaves it in `--output=~/x`;
    no library gets to see it."""
    return Path(_parse_name(text))


def _parse_model(text: str) -> str:
    return _parse_name(text, f"name a folder, or a model on the Hub such as {EngineConfig().model}")


def _parse_prompt(text: str) -> str:
    return _parse_name(text, f"name a prompt file, or one of prompts/ such as {RunConfig().prompt}")


def _parse_name(text: str, remedy: str = "name a file or folder (the current one is `.`)") -> str:
    """A path, or another name; ``remedy``: for none."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"it is empty; {remedy}")
    found = os.path.expanduser(text)  # noqa: PTH111 (pathlib raises another error)
    if found.startswith("~"):
        remedy = "write ./~… for a name that begins with ~"
        raise argparse.ArgumentTypeError(f"{text}: there is no such home folder; {remedy}")
    return found


def parse_images_root(text: str) -> Path | str:
    """A folder, or the URI of one, unchanged. Raises UsageError."""
    if not is_remote(text):
        return parse_path(text)
    parts = urlsplit(text)
    if parts.username is not None or parts.password is not None:
        shown = f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}{parts.path}"
        remedy = "contains credentials; pass them by environment, profile or role instead"
        raise UsageError("--images-root", shown, remedy)
    if parts.scheme not in REMOTE_SCHEMES:
        known = ", ".join(REMOTE_SCHEMES)
        remedy = f"{parts.scheme}:// is not supported; give a folder, or one of {known}"
        raise UsageError("--images-root", text, remedy)
    return text


def _file_pattern(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError(
            "it is empty; give a name as in the `file` column of the manifest"
        )
    return text


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names(text: str) -> tuple[str, ...]:
    """As a,b,c."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _kinds(text: str) -> tuple[str, ...]:
    """Kinds of failure and caption flags; none would quietly be no redo at all."""
    if not (found := _names(text)):
        raise argparse.ArgumentTypeError(
            "it is empty; name kinds or flags, such as poison,too_long"
        )
    for name in found:
        if name not in (*ITEM_KINDS, *CAPTION_FLAGS):
            known = f"kinds: {', '.join(ITEM_KINDS)}; flags: {', '.join(CAPTION_FLAGS)}"
            raise argparse.ArgumentTypeError(f"{name} is neither a kind nor a flag ({known})")
    return found


# --- from the values of all flags to the config ---------------------------------------------------


def parse_known(
    parser: Parser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Our flags, and the rest, which is vLLM's. Raises UsageError; ``--help`` exits."""
    if arguments and not arguments[0].startswith("-") and not _exists(arguments[0]):
        raise _no_command(arguments[0], arguments)
    options, engine_args = parser.parse_known_args(_with_input_flag(arguments))
    if engine_args and not engine_args[0].startswith("-"):
        word = engine_args[0]
        if options.input is not None and word not in COMMANDS and _exists(word):
            remedy = (
                f"is a second input after {options.input}; name one, such as the folder of both"
            )
            raise UsageError(word, None, remedy)
        raise _one_too_many(parser, arguments, word) or _no_command(word, arguments)
    check_names(engine_args, parser.flags, elsewhere=FLAGS_OF_COMMANDS)
    return options, tuple(engine_args)


def _one_too_many(parser: Parser, arguments: Sequence[str], word: str) -> UsageError | None:
    """The mistake of a value after a switch, or of a second one after a flag that takes one; None
    if the word is another."""
    if word in COMMANDS or did_you_mean(word, COMMANDS):
        return None
    values: list[str] = []
    for before in reversed(arguments[: len(arguments) - arguments[::-1].index(word)]):
        if before.startswith("-"):
            break
        values.insert(0, before)
    else:
        return None
    flag, equals, value = before.partition("=")
    flag, values = dashed(flag), [value, *values] if equals else values
    action = parser.flags.get(flag)
    if action is not None and action.nargs == 0:
        remedy = "; an input comes before all flags, or after --input" if _exists(word) else ""
        return UsageError(flag, word, f"takes no value{remedy}")
    if action is None or action.nargs is not None or len(values) < 2 or _exists(word):
        return None
    remedy = "takes one value"
    if "--try" in parser.flags:
        name = action.option_strings[0].lstrip("-")
        remedy = f"{remedy}; to measure several: --try {name}={','.join(values)}"
    return UsageError(flag, " ".join(values), remedy)


def _no_command(word: str, arguments: Sequence[str]) -> UsageError:
    if word in COMMANDS:
        others = list(arguments)
        others.remove(word)
        line = shlex.join(["vllm-caption", word, *others])
        return UsageError("command", word, f"put the command first: {line}")
    if _exists(word):
        return UsageError("--input", word, "put it before all flags, or after --input")
    if "/" in word:
        remedy = f"{absence(Path(word))}; name a folder of images, a table or a tar"
        return UsageError("--input", word, remedy)
    nor = "nor an existing file or folder"
    if hint := did_you_mean(word, (*COMMANDS, "--help", "--version")):
        return UsageError(word, None, f"is neither a command {nor}; {hint}")
    commands, instead = ", ".join(COMMANDS[1:]), absence(Path(word)).partition(" (")[2]
    return UsageError(word, None, f"is neither a command ({commands}) {nor} ({instead}")


def _with_input_flag(arguments: Sequence[str]) -> Sequence[str]:
    """The input may stand first. Nowhere else: `--gpu-memory-utilization 0.8` is vLLM's flag with
    its value, which no parser here can tell from a path."""
    if not arguments or arguments[0].startswith("-") or not _exists(arguments[0]):
        return arguments
    return ["--input", *arguments]


def dashed(flag: str) -> str:
    """A flag as it is listed: with `-` between its words."""
    return flag.replace("_", "-")


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (never raises)


def in_words_of(arguments: Sequence[str], error: UsageError) -> str:
    """The error as somebody who typed this line understands it: a flag that names a folder is shown
    only if it was typed, since the folder may stand there without it, or be a default."""
    if error.field not in _PATHS or any(_is_flag(word, error.field) for word in arguments):
        return str(error)
    path = os.fspath(error.value) if isinstance(error.value, Path) else str(error.value)
    is_word = any(os.path.normpath(word) == os.path.normpath(path) for word in arguments)
    return f"{path}{'' if is_word else f' (the default of {error.field})'}: {error.remedy}"


def _is_flag(word: str, flag: str) -> bool:
    return dashed(word.partition("=")[0]) == flag


def without_flags(arguments: Iterable[str], flags: Container[str]) -> list[str]:
    """A command line without these flags and their values."""
    kept: list[str] = []
    drops = False
    for word in arguments:
        if word.startswith("-") and not word[1:2].isdigit():
            drops = dashed(word.partition("=")[0]) in flags
        if not drops:
            kept.append(word)
    return kept


def make_config(values: dict[str, Any]) -> RunConfig:
    """The settings of a run, from values by the names of the config's fields.

    Raises UsageError where two of them contradict each other, and for engine flags that do.
    """
    check_parallel_flags(values.get("engine_args", ()))
    given = [name for name in ("redo_files", "redo_kinds", "redo") if values[name]]
    if len(given) > 1:
        first, second = (_REDO_FLAGS[name] for name in given[:2])
        remedy = f"conflicts with {second}: both choose what to re-caption; give one of them"
        raise UsageError(first, ",".join(values[given[0]]), remedy)
    if values["overwrite_edited"] and not given:
        remedy = "needs --redo, --redo-kind or --redo-file, which choose the captions to replace"
        raise UsageError("--overwrite-edited", None, remedy)
    if values["min_pixels"] > values["max_pixels"]:
        remedy = f"is more than --max-pixels {values['max_pixels']}; change one of them"
        raise UsageError("--min-pixels", values["min_pixels"], remedy)
    _check_output(values)
    named = tuple(values["redo_files"])
    values = values | {"redo_files": named, "patterns": named, "stop": tuple(values["stop"])}
    if is_remote(values.get("images_root", "")):
        values = values | {"window_factor": REMOTE_WINDOW_FACTOR}
    elements = make_input_config(values)
    del values["input"]  # a path there, and a section of the settings here
    return RunConfig(
        input=elements,
        image=ImageConfig(**_taken(ImageConfig, values)),
        sampling=SamplingConfig(**_taken(SamplingConfig, values)),
        engine=EngineConfig(**_taken(EngineConfig, values)),
        resume=ResumeConfig(**_taken(ResumeConfig, values)),
        **_taken(RunConfig, values),
    )


def make_input_config(values: dict[str, Any]) -> InputConfig:
    """The settings of the input, from values by the names of the config's fields.

    Raises UsageError where two of them contradict each other.
    """
    config = InputConfig(**_taken(InputConfig, values))
    path = config.input
    if path is None:
        for name in ("image_column", "id_column", "type_column"):
            if (value := values.get(name)) is not None:
                flag = flag_of(name)
                raise UsageError(flag, value, "is for a table; name the table with --input")
        return config
    for name in ("jsons", "json_detail"):
        if name in values:
            flag = flag_of(name)
            raise UsageError(
                "--input", path, f"conflicts with {flag}: both name the input; give one of them"
            )
    config = replace(config, without=(values["output"],))
    if "images_root" in values:
        return config
    return replace(config, images_root=path if is_folder(path) else path.parent)


def _check_output(values: dict[str, Any]) -> None:
    """Captions may lie beside their images; among designs, what a run writes would be read as
    one."""
    output, path = os.path.realpath(values["output"]), values["input"]
    designs = InputConfig()
    for name in ("jsons", "json_detail"):
        folder = values.get(name, getattr(designs, name) if path is None else None)
        if folder is not None and output == os.path.realpath(folder):
            flag = flag_of(name)
            raise UsageError(
                "--output", values["output"], f"is also the folder of {flag}; choose another"
            )
    in_parts = path is not None and is_folder(path) and (is_table(path) or is_archive(path))
    if in_parts and output == os.path.realpath(path):
        raise UsageError(
            "--output", values["output"], "is also the folder of --input; choose another"
        )


def _taken(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}
