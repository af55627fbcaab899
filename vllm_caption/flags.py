"""The flags of the command line: names and help, reading of values, and the config that they make.

Flags are listed in the groups that ``--help`` shows; every default comes from `config`. Flags that
vLLM knows keep vLLM's name; flags that are not listed here go to vLLM, which checks them before
anything starts. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields
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
    is_remote,
)
from vllm_caption.errors import CAPTION_FLAGS, ITEM_KINDS, UsageError

COMMANDS: Final = ("run", "demo", "plan", "status", "verify", "report", "merge")
"""The first word of a command line; `run` may be left out."""
REMOTE_SCHEMES: Final = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
EPILOG = """\
other commands, each with its own --help: plan, status, verify, report, merge, demo.

all other flags go to vLLM's engine (--gpu-memory-utilization, --quantization, --dtype, ...) and
are checked before anything starts; see `vllm serve --help=all`.

exit codes: 0 all items captioned; 1 finished, some failed; 2 usage or configuration;
3 could not continue; 130 interrupted."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.default, bool) or action.default in (None, ()):
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {','.join(action.default)})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Takes flags by their full name only; a mistake is a UsageError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **options)

    def error(self, message: str) -> Any:
        """Called by argparse, which would print its usage and exit."""
        raise UsageError("arguments", None, message)


def run_parser() -> Parser:
    """The parser of `run`; see `parse_known` for flags that it does not know."""
    parser = Parser(
        prog="vllm-caption",
        description="Caption design elements with data-parallel vLLM engines. Run it again to"
        " resume: finished items are skipped.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"vllm-caption {__version__}")
    add_input(parser.add_argument_group("input"))
    parser.add_argument(
        "--pilot",
        metavar="N",
        type=positive,
        help="caption N items of all types and sizes, then estimate the full run",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="caption part I of N of the items; `merge` combines the manifests",
    )
    _add_output(parser.add_argument_group("output"))
    captions, engines = parser.add_argument_group("captions"), parser.add_argument_group("engines")
    for add in (_add_captions, _add_images, _add_sampling):
        add(captions)
    for add in (_add_engines, _add_patience):
        add(engines)
    return parser


def add_input(group: Any) -> None:
    """Flags of every command that reads the input."""
    default = InputConfig()
    group.add_argument("--jsons", type=Path, default=default.jsons, help="folder of manifests")
    group.add_argument(
        "--json-detail", type=Path, default=default.json_detail, help="folder of their detail files"
    )
    group.add_argument(
        "--images-root",
        type=parse_images_root,
        default=default.images_root,
        help="what `file` paths are relative to: a folder, s3://BUCKET/PREFIX, gs://..., hdfs://...",
    )
    group.add_argument(
        "--skip-types",
        type=_names,
        default=default.skip_types,
        help="element types that are not captioned, comma-separated, in upper or lower case",
    )
    group.add_argument(
        "--limit", type=positive, default=default.limit, help="caption only the first N items"
    )


def add_output_folder(group: Any) -> None:
    """The flag of every command that reads or writes an output folder."""
    default = RunConfig().output
    group.add_argument("--output", type=Path, default=default, help="folder of captions")


def _add_output(group: Any) -> None:
    default = RunConfig()
    add_output_folder(group)
    group.add_argument(
        "--checkpoint-interval",
        type=positive,
        default=default.checkpoint_interval,
        help="rows per Parquet part",
    )
    group.add_argument(
        "--redo",
        choices=get_args(Redo),
        default=default.resume.redo,
        help="caption these items again",
    )
    group.add_argument(
        "--redo-kind",
        dest="redo_kinds",
        metavar="KIND",
        type=_kinds,
        default=default.resume.redo_kinds,
        help="of the items tried before, caption again only those that failed with one of these"
        " kinds or have one of these flags, comma-separated",
    )
    group.add_argument(
        "--quiet", action="store_true", help="no progress, only warnings and the summary"
    )
    group.add_argument(
        "--log-file", type=Path, help="append all messages there, with times, also with --quiet"
    )
    group.add_argument(
        "--log-json", action="store_true", help="write messages as JSON, one object per line"
    )


def _add_captions(group: Any) -> None:
    run = RunConfig()
    group.add_argument("--prompt", default=run.prompt, help="a file, or a name in prompts/")
    group.add_argument(
        "--no-checks", dest="checks", action="store_false", help="accept every caption as it is"
    )
    group.add_argument(
        "--no-dedup",
        dest="dedup",
        action="store_false",
        help="caption each of several byte-identical images",
    )
    group.add_argument(
        "--max-retries",
        type=natural,
        default=run.max_retries,
        help="retries of an item that failed or whose caption broke a rule",
    )


def _add_images(group: Any) -> None:
    image = ImageConfig()
    group.add_argument(
        "--max-side",
        type=positive,
        default=image.max_side,
        help="longer side of an image in pixels",
    )
    group.add_argument(
        "--min-pixels",
        type=positive,
        default=image.min_pixels,
        help="lower bound of the model's processor",
    )
    group.add_argument(
        "--max-pixels",
        type=positive,
        default=image.max_pixels,
        help="upper bound of the model's processor",
    )
    group.add_argument(
        "--max-image-pixels",
        type=positive,
        default=image.max_image_pixels,
        help="images with more pixels are refused before they are decoded",
    )


def _add_sampling(group: Any) -> None:
    sampling = SamplingConfig()
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
        flag = "--" + name.replace("_", "-")
        group.add_argument(
            flag, type=kind, default=getattr(sampling, name), help="as in vLLM's SamplingParams"
        )
    group.add_argument(
        "--stop", nargs="+", default=sampling.stop, help="strings that end a caption"
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="always generate --max-tokens tokens"
    )


def _add_engines(group: Any) -> None:
    default = EngineConfig()
    group.add_argument(
        "--model", default=default.model, help="name or folder; `demo` is the bundled tiny model"
    )
    group.add_argument(
        "--data-parallel-size",
        "-dp",
        type=positive,
        help="number of engines (default: visible GPUs, or GPUs of the cluster, / GPUs per engine)",
    )
    group.add_argument(
        "--executor",
        choices=get_args(ExecutorName),
        default=default.executor,
        help="where engines run: on this machine or on a Ray cluster",
    )
    group.add_argument(
        "--ray-address", default=default.ray_address, help="address of the cluster, as in ray.init"
    )
    for name, short, text in (
        ("tensor_parallel_size", "-tp", "GPUs per engine"),
        ("pipeline_parallel_size", "-pp", "pipeline stages per engine"),
        ("max_num_seqs", None, "sequences that one engine generates at a time"),
    ):
        flags = [f"--{name.replace('_', '-')}", *([short] if short else [])]
        group.add_argument(*flags, type=positive, default=getattr(default, name), help=text)
    group.add_argument(
        "--prepare-threads",
        type=positive,
        default=default.prepare_threads,
        help="threads per engine that decode images",
    )


def _add_patience(group: Any) -> None:
    default = EngineConfig()
    group.add_argument(
        "--max-engine-restarts",
        type=natural,
        default=default.max_engine_restarts,
        help="crashes in a row without a caption that an engine may have; one more retires it",
    )
    for name, text in (
        ("stall_timeout", "seconds without an answer after which an engine is replaced"),
        ("start_timeout", "seconds that an engine may take to start"),
        ("drain_timeout", "seconds that the items in flight may take after Ctrl+C"),
    ):
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"{name}_s",
            metavar="SECONDS",
            type=above_zero,
            default=getattr(default, f"{name}_s"),
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
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is not {least} or more")
    return value


def above_zero(text: str) -> float:
    """A finite number above 0."""
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def parse_images_root(text: str) -> Path | str:
    """A folder, or the URI of one, unchanged. Raises UsageError."""
    if not is_remote(text):
        return Path(text)
    parts = urlsplit(text)
    if parts.username is not None or parts.password is not None:
        shown = f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}{parts.path}"
        remedy = "holds credentials; give them by environment, profile or role instead"
        raise UsageError("--images-root", shown, remedy)
    if parts.scheme not in REMOTE_SCHEMES:
        known = ", ".join(REMOTE_SCHEMES)
        remedy = f"{parts.scheme}:// is not supported; give a folder, or one of {known}"
        raise UsageError("--images-root", text, remedy)
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
    """Kinds of failure and caption flags."""
    for name in (found := _names(text)):
        if name not in (*ITEM_KINDS, *CAPTION_FLAGS):
            known = f"kinds: {', '.join(ITEM_KINDS)}; flags: {', '.join(CAPTION_FLAGS)}"
            raise argparse.ArgumentTypeError(f"{name} is neither a kind nor a flag ({known})")
    return found


# --- from the values of all flags to the config ---------------------------------------------------


def parse_known(
    parser: Parser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Our flags, and the rest, which is vLLM's. Raises UsageError; ``--help`` exits."""
    options, engine_args = parser.parse_known_args(arguments)
    if engine_args and not engine_args[0].startswith("-"):
        known = engine_args[0] in COMMANDS
        remedy = "comes before its flags" if known else f"is not one of {', '.join(COMMANDS)}"
        raise UsageError("command", engine_args[0], remedy)
    return options, tuple(engine_args)


def make_config(values: dict[str, Any]) -> RunConfig:
    """The settings of a run, from values by the names of the config's fields.

    Raises UsageError where two of them contradict each other.
    """
    if values["redo"] and values["redo_kinds"]:
        remedy = "both choose what is captioned again; give one of them"
        raise UsageError("--redo-kind", ",".join(values["redo_kinds"]), f"and --redo {remedy}")
    if values["min_pixels"] > values["max_pixels"]:
        remedy = f"is more than --max-pixels {values['max_pixels']}"
        raise UsageError("--min-pixels", values["min_pixels"], remedy)
    if is_remote(values["images_root"]):
        values = values | {"window_factor": REMOTE_WINDOW_FACTOR}
    return RunConfig(
        input=InputConfig(**_taken(InputConfig, values)),
        image=ImageConfig(**_taken(ImageConfig, values)),
        sampling=SamplingConfig(**_taken(SamplingConfig, values)),
        engine=EngineConfig(**_taken(EngineConfig, values)),
        resume=ResumeConfig(**_taken(ResumeConfig, values)),
        **_taken(RunConfig, values),
    )


def _taken(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}
