"""Reads vLLM's flags as the user wrote them: their names, and values that a decision of ours needs.

vLLM itself parses and checks them (see `engines.vllm_engine`); only their names are checked here,
against those in vLLM's source, since importing vLLM takes longer than anyone waits for a typing
mistake.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Final

from vllm_caption.errors import UsageError
from vllm_caption.formatting import did_you_mean, flag_of

GPU_FACTORS: Final = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
)
"""The GPUs of one engine are their product; other parallel sizes share these GPUs."""
GPU_MEMORY_UTILIZATION: Final = 0.92
"""vLLM's default for --gpu-memory-utilization (0.32)."""
_SHORT: Final = {
    "q": "quantization",
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "pcp": "prefill_context_parallel_size",
    "dcp": "decode_context_parallel_size",
    "n": "nnodes",
    "r": "node_rank",
    "dpn": "data_parallel_rank",
    "dpr": "data_parallel_start_rank",
    "dpl": "data_parallel_size_local",
    "dpa": "data_parallel_address",
    "dpp": "data_parallel_rpc_port",
    "dpb": "data_parallel_backend",
    "dph": "data_parallel_hybrid_lb",
    "dpe": "data_parallel_external_lb",
    "dpm": "data_parallel_multi_port_external_lb",
}
_ALIASES: Final = {"device_memory_utilization": "gpu_memory_utilization"}
CONFIG_FILE: Final = "config"
"""vLLM's flag for a file of flags, which is not read here."""
_INDEPENDENT: Final = (
    "is for vLLM's own data parallelism; the engines of this job are independent: set their number"
    " with --data-parallel-size"
)
_ONE_NODE: Final = (
    "is for engines on several nodes; use --executor ray, with --distributed-executor-backend ray"
    " where one engine needs the GPUs of several nodes"
)
_REFUSED: Final = {
    **{name: _INDEPENDENT for name in _SHORT.values() if name.startswith("data_parallel_")},
    "enable_elastic_ep": _INDEPENDENT,
    "elastic_ep_max_dp_size": _INDEPENDENT,
    "nnodes": _ONE_NODE,
    "node_rank": _ONE_NODE,
    "device_ids": "would give every engine the same GPUs; choose them with CUDA_VISIBLE_DEVICES",
}
"""Flags with which an engine would use other GPUs than it is given, and what to do instead."""

_SOURCE: Final = "engine/arg_utils.py"
_ADDS_FLAGS: Final = "add_cli_args"
_BESIDE_THE_PARSER: Final = frozenset({"-O", f"--{CONFIG_FILE}"})
"""What vLLM takes out of the words before it parses them."""
_PLUGINS: Final = "vllm.platform_plugins"
"""Packages that name themselves here may add flags to vLLM's."""
_VALUE: Final = re.compile(r"[^-]|-$|-[.\d]|[^=]* ")
"""How a word that is not a flag begins: a negative number, or words with blanks, say."""


def is_value(word: str) -> bool:
    """Whether a word of a command line is no flag."""
    return not word or _VALUE.match(word) is not None


def check_names(
    engine_args: Sequence[str],
    ours: Collection[str],
    near: Collection[str] = (),
    elsewhere: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Raise UsageError for a flag that is neither one of ``ours`` nor vLLM's. ``elsewhere``: flags
    of other commands, and which these are.

    Where vLLM is not installed, or a plugin may add flags to it, nothing is known to be wrong but a
    flag that is close to one of ``near``: those of a command that has few.
    """
    written = [word.partition("=")[0] for word in engine_args if not is_value(word)]
    known = flags_of_vllm() if written else frozenset()  # reading them takes a moment
    for flag in written:
        if _is_among(known, flag):
            continue
        name = flag.partition(".")[0].replace("_", "-")
        if commands := (elsewhere or {}).get(name):
            *others, last = (f"`{command}`" for command in commands)
            listed = f"{', '.join(others)} and {last}" if others else last
            raise UsageError(flag, None, f"is a flag of {listed}; leave it out here")
        hint = did_you_mean(name, near)
        if known and not _has_plugins():
            opposites = [k.replace("--", "--no-", 1) for k in known if name.startswith("--no-")]
            hint = hint or did_you_mean(name, {*ours, *known, *opposites})
            hint = hint or "see --help, and `vllm serve --help=all` for those of vLLM's engine"
        if hint:
            raise UsageError(flag, None, f"unknown flag; {hint}")


@cache
def flags_of_vllm() -> frozenset[str]:
    """The names that vLLM's source gives its engine's flags, long and short; empty where there is
    no such source."""
    package = importlib.util.find_spec("vllm")
    folders = package.submodule_search_locations if package else None
    try:
        source = Path(folders[0], _SOURCE).read_text("utf-8") if folders else ""
        found = frozenset(_added_flags(ast.parse(source)))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return frozenset()
    return found and found | _BESIDE_THE_PARSER


def _added_flags(source: ast.Module) -> Iterator[str]:
    for function in ast.walk(source):
        if isinstance(function, ast.FunctionDef) and function.name == _ADDS_FLAGS:
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument":
                    names = (name.value for name in call.args if isinstance(name, ast.Constant))
                    yield from (n for n in names if isinstance(n, str) and n.startswith("-"))


def _is_among(known: Collection[str], flag: str) -> bool:
    """`--hf-overrides.x` is `--hf-overrides`, `--no-x` is `--x`, and `-O3` is `-O`."""
    name = flag.partition(".")[0]
    if not name.startswith("--"):
        return name in known or name[:2] in known
    name = name.replace("_", "-")
    return name in known or name.replace("--no-", "--", 1) in known


def _has_plugins() -> bool:
    return bool(metadata.entry_points(group=_PLUGINS))


def named_flags(engine_args: Sequence[str]) -> dict[str, str]:
    """Name → value. `--kv-cache-dtype fp8` and `--kv_cache_dtype=fp8` are both `kv_cache_dtype`; a
    key of a value (`--hf-overrides.x 1`) keeps its full name; a flag without a value has "".
    `-q fp8`, `-q=fp8` and `-qfp8` are all `quantization`."""
    found: dict[str, str] = {}
    name = ""
    for word in engine_args:
        if word.startswith("-") and not word[1:2].isdigit():
            flag, _, value = word.partition("=")
            name = flag.lstrip("-")
            if not flag.startswith("--"):
                if name not in _SHORT and name[:1] in _SHORT:
                    name, value = name[0], word[2:]
                name = _SHORT.get(name, name)
            name = name.replace("-", "_")
            name = _ALIASES.get(name, name)
            found[name] = value
        elif name:
            found[name] = f"{found[name]} {word}".strip()
    return found


def given_flags(engine_args: Sequence[str]) -> set[str]:
    """The names alone, without what follows a dot."""
    return {name.partition(".")[0] for name in named_flags(engine_args)}


def gpus_per_engine(engine_args: Sequence[str]) -> int:
    """How many GPUs one engine uses. A size that is no number counts 1: vLLM refuses it."""
    flags = named_flags(engine_args)
    sizes = (flags.get(name, "") for name in GPU_FACTORS)
    return prod(int(size) if size.isdecimal() and int(size) else 1 for size in sizes)


def check_parallel_flags(engine_args: Sequence[str]) -> None:
    """Raise UsageError for a flag with which engines would take GPUs that are not theirs."""
    flags = named_flags(engine_args)
    for name, remedy in _REFUSED.items():
        if name in flags:
            raise UsageError(flag_of(name), flags[name] or None, remedy)
    if flags.get("distributed_executor_backend") == "external_launcher":
        remedy = (
            "expects processes that torchrun started, but this job starts its engines; leave it out"
        )
        raise UsageError("--distributed-executor-backend", "external_launcher", remedy)
