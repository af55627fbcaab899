"""Every flag of the command line, in the groups that `--help` shows; defaults come from `config`.

Flags that vLLM knows keep vLLM's name. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from vllm_caption import __version__
from vllm_caption.config import (
    EngineConfig,
    ExecutorName,
    ImageConfig,
    InputConfig,
    Redo,
    RunConfig,
    SamplingConfig,
)
from vllm_caption.errors import ITEM_KINDS, UsageError
from vllm_caption.shards import Shard
from vllm_caption.storage import parse_images_root

EPILOG = """\
every other flag goes to vLLM's engine (--gpu-memory-utilization, --quantization, --dtype, ...) and
is checked before anything starts; see `vllm serve --help=all`.

exit codes: 0 all items captioned; 1 finished, some failed; 2 usage or configuration;
3 could not go on; 130 interrupted."""


class Parser(argparse.ArgumentParser):
    """Flags in full only; a mistake is a UsageError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **options
        )

    def error(self, message: str) -> Any:
        """Instead of a usage text and an exit of its own."""
        raise UsageError("arguments", None, message)


def run_parser() -> Parser:
    """Of `run`; what it does not know is vLLM's."""
    parser = Parser(
        prog="vllm-caption",
        description="Caption design elements with data-parallel vLLM engines. Run it again to go"
        " on where it stopped; what is done is skipped.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"vllm-caption {__version__}")
    add_input(parser.add_argument_group("input"))
    parser.add_argument(
        "--pilot",
        metavar="N",
        type=_positive,
        help="caption N items of all types and sizes, then say what the full run would take",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="caption the I-th of N parts of the items; `merge` makes one manifest of all",
    )
    _add_output(parser.add_argument_group("output"))
    _add_captions(parser.add_argument_group("captions"))
    _add_engines(parser.add_argument_group("engines"))
    return parser


def add_input(group: Any) -> None:
    """Where the manifests and images are, and which elements are taken."""
    default = InputConfig()
    group.add_argument("--jsons", type=Path, default=default.jsons, help="folder of manifests")
    group.add_argument(
        "--json-detail", type=Path, default=default.json_detail, help="folder of their details"
    )
    group.add_argument(
        "--images-root",
        type=parse_images_root,
        default=default.images_root,
        help="where `file` paths begin: a folder, or s3://BUCKET/PREFIX, gs://..., hdfs://...",
    )
    group.add_argument(
        "--skip-types",
        type=_names,
        default=default.skip_types,
        help="element types that are not captioned, comma-separated, in any case",
    )
    group.add_argument(
        "--limit", type=_positive, default=default.limit, help="take the first N items only"
    )


def add_output_folder(group: Any) -> None:
    """The one flag of every command that reads or writes an output folder."""
    default = RunConfig().output
    group.add_argument("--output", type=Path, default=default, help="folder of captions")


def _add_output(group: Any) -> None:
    default = RunConfig()
    add_output_folder(group)
    group.add_argument(
        "--checkpoint-interval",
        type=_positive,
        default=default.checkpoint_interval,
        help="rows per Parquet part",
    )
    group.add_argument(
        "--redo", choices=get_args(Redo), default=default.redo, help="caption these items anew"
    )
    group.add_argument(
        "--redo-kind",
        dest="redo_kinds",
        metavar="KIND",
        type=_kinds,
        default=default.redo_kinds,
        help="of the items tried before, only those that failed with these kinds or have these"
        " flags, comma-separated",
    )
    group.add_argument(
        "--quiet", action="store_true", help="no progress, only what matters and the summary"
    )
    group.add_argument(
        "--log-file", type=Path, help="append everything that is told, with times, also if quiet"
    )
    group.add_argument(
        "--log-json", action="store_true", help="tell it as JSON, one object per line"
    )


def _add_captions(group: Any) -> None:
    run, image, sampling = RunConfig(), ImageConfig(), SamplingConfig()
    group.add_argument("--prompt", default=run.prompt, help="a file, or a name in prompts/")
    group.add_argument(
        "--no-checks", dest="checks", action="store_false", help="take every caption as it is"
    )
    group.add_argument(
        "--no-dedup",
        dest="dedup",
        action="store_false",
        help="caption byte-identical images one by one",
    )
    group.add_argument(
        "--max-retries",
        type=_natural,
        default=run.max_retries,
        help="further tries of an item that failed or broke a rule",
    )
    group.add_argument(
        "--max-side", type=_positive, default=image.max_side, help="longer side of an image, pixels"
    )
    group.add_argument(
        "--min-pixels", type=_positive, default=image.min_pixels, help="of the model's processor"
    )
    group.add_argument(
        "--max-pixels", type=_positive, default=image.max_pixels, help="of the model's processor"
    )
    group.add_argument(
        "--max-image-pixels",
        type=_positive,
        default=image.max_image_pixels,
        help="larger images are refused before they are decoded",
    )
    for name, kind in (
        ("max_tokens", _positive),
        ("temperature", float),
        ("top_p", float),
        ("top_k", int),
        ("seed", int),
        ("repetition_penalty", float),
        ("presence_penalty", float),
        ("frequency_penalty", float),
        ("min_tokens", _natural),
    ):
        flag = "--" + name.replace("_", "-")
        group.add_argument(
            flag, type=kind, default=getattr(sampling, name), help="as vLLM's SamplingParams"
        )
    group.add_argument(
        "--stop", nargs="+", default=sampling.stop, help="strings that end a caption"
    )
    group.add_argument("--ignore-eos", action="store_true", help="always use up --max-tokens")


def _add_engines(group: Any) -> None:
    default = EngineConfig()
    group.add_argument(
        "--model", default=default.model, help="name or folder; `demo` is the bundled tiny model"
    )
    group.add_argument(
        "--data-parallel-size",
        "-dp",
        type=_positive,
        help="engines (default: every visible GPU, or every GPU of the cluster, / GPUs per engine)",
    )
    group.add_argument(
        "--executor",
        choices=get_args(ExecutorName),
        default=default.executor,
        help="where engines run: on this machine, or on a Ray cluster",
    )
    group.add_argument(
        "--ray-address", default=default.ray_address, help="of the cluster, as in ray.init"
    )
    for name, short, text in (
        ("tensor_parallel_size", "-tp", "GPUs per engine"),
        ("pipeline_parallel_size", "-pp", "pipeline stages per engine"),
        ("max_num_seqs", None, "sequences that one engine generates at a time"),
    ):
        flags = [f"--{name.replace('_', '-')}", *([short] if short else [])]
        group.add_argument(*flags, type=_positive, default=getattr(default, name), help=text)
    group.add_argument(
        "--max-engine-restarts",
        type=_natural,
        default=default.max_engine_restarts,
        help="starts after which an engine that finishes nothing is taken out",
    )
    group.add_argument(
        "--auto-fit",
        action="store_true",
        help="where the GPU's memory does not do, try smaller settings and say which",
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
            type=float,
            default=getattr(default, f"{name}_s"),
            help=text,
        )
    group.add_argument(
        "--prepare-threads",
        type=_positive,
        default=default.prepare_threads,
        help="threads per engine that decode images",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _kinds(text: str) -> tuple[str, ...]:
    from vllm_caption.checks import FLAGS

    for name in (names := _names(text)):
        if name not in (*ITEM_KINDS, *FLAGS):
            known = f"kinds: {', '.join(ITEM_KINDS)}; flags: {', '.join(FLAGS)}"
            raise argparse.ArgumentTypeError(f"{name} is neither a kind nor a flag ({known})")
    return names
