"""The command line: arguments → frozen config → exit code.

Flags that vLLM knows keep vLLM's name; flags that are not listed here go to vLLM, which checks
them before anything starts. Nothing heavy is imported before the arguments are parsed.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_args

from vllm_caption import __version__
from vllm_caption.config import (
    EngineConfig,
    ImageConfig,
    InputConfig,
    Redo,
    RunConfig,
    SamplingConfig,
)
from vllm_caption.errors import CaptionJobError, UsageError

EXIT_USAGE, EXIT_STOPPED = 2, 3
COMMANDS = ("run", "demo", "plan")

EPILOG = """\
every other flag goes to vLLM's engine (--gpu-memory-utilization, --quantization, --dtype, ...) and
is checked before anything starts; see `vllm serve --help=all`.

exit codes: 0 all items captioned; 1 finished, some failed; 2 usage or configuration;
3 could not go on; 130 interrupted."""


def command() -> NoReturn:
    """The process of ``python -m vllm_caption`` and ``vllm-caption``.

    Everything is saved when `main` returns, so threads that still wait for a process to start
    must not hold the exit.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no name may be too much for a terminal
            stream.reconfigure(errors="backslashreplace")
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "run"
    try:
        if command == "demo":
            from vllm_caption.demo.command import run_demo

            return run_demo(arguments)
        if command == "plan":
            from vllm_caption.plan.command import run_plan

            return run_plan(*parse_plan(arguments))
        config = parse_run(arguments)
        from vllm_caption.run import run_job

        return run_job(config).exit_code
    except UsageError as error:
        print(f"vllm-caption: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except CaptionJobError as error:
        print(f"vllm-caption: stopped: {error}", file=sys.stderr)
        return EXIT_STOPPED


def parse_run(arguments: Sequence[str]) -> RunConfig:
    """The frozen settings of one run. Raises UsageError; ``--help`` exits."""
    namespace, engine_args = _run_parser().parse_known_args(arguments)
    return _config(vars(namespace), engine_args)


def parse_plan(arguments: Sequence[str]) -> tuple[RunConfig, argparse.Namespace]:
    """The settings of the run that is planned, and the plan's own flags; needs no vLLM."""
    from vllm_caption.plan.command import add_flags

    parser = _run_parser()
    add_flags(parser)
    namespace, engine_args = parser.parse_known_args(arguments)
    return _config(vars(namespace), engine_args, needs_vllm=False), namespace


def _config(
    values: dict[str, Any], engine_args: list[str], *, needs_vllm: bool = True
) -> RunConfig:
    stray = [a for i, a in enumerate(engine_args) if not a.startswith("-") and i == 0]
    if stray:
        raise UsageError("command", stray[0], f"is not one of {', '.join(COMMANDS)}")
    from vllm_caption.hardware import default_data_parallel_size

    values["engine_args"] = tuple(engine_args)
    if values["data_parallel_size"] is None:
        per_engine = values["tensor_parallel_size"] * values["pipeline_parallel_size"]
        try:
            values["data_parallel_size"] = default_data_parallel_size(per_engine)
        except UsageError:
            if needs_vllm:
                raise
            values["data_parallel_size"] = 1
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


def _taken(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError("arguments", None, message)


def _run_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vllm-caption",
        description="Caption design elements with data-parallel vLLM engines. Run it again to go"
        " on where it stopped; what is done is skipped.",
        epilog=EPILOG,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vllm-caption {__version__}")
    _add_input(parser.add_argument_group("input"))
    _add_output(parser.add_argument_group("output"))
    _add_captions(parser.add_argument_group("captions"))
    _add_engines(parser.add_argument_group("engines"))
    return parser


def _add_input(group: Any) -> None:
    default = InputConfig()
    group.add_argument("--jsons", type=Path, default=default.jsons, help="folder of manifests")
    group.add_argument(
        "--json-detail", type=Path, default=default.json_detail, help="folder of their details"
    )
    group.add_argument(
        "--images-root", type=Path, default=default.images_root, help="where `file` paths begin"
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


def _add_output(group: Any) -> None:
    default = RunConfig()
    group.add_argument("--output", type=Path, default=default.output, help="folder of captions")
    group.add_argument(
        "--checkpoint-interval",
        type=_positive,
        default=default.checkpoint_interval,
        help="rows per Parquet part",
    )
    group.add_argument(
        "--redo", choices=get_args(Redo), default=default.redo, help="caption these items anew"
    )
    group.add_argument("--quiet", action="store_true", help="no progress, only the summary")


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
        help="engines (default: every visible GPU / GPUs per engine)",
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


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
