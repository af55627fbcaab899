"""Too little GPU memory for an engine: what the error means, what to change, and smaller settings.

Pure: from an error's text and the settings it came with to the settings to try next. The texts are
torch's and vLLM's own (0.32: `kv_cache_utils.py`, `worker/utils.py`, `gpu_model_runner.py` in v1).
"""

from __future__ import annotations

import math
import re
from typing import Final, Literal

import msgspec

from vllm_caption.messages import MemorySettings

Shortage = Literal["taken", "cache", "work"]
"""Of what an engine has too little: memory that others left, room for its KV cache, or room to
work in."""

_SIGNS: Final[tuple[tuple[str, Shortage], ...]] = (
    ("less than desired", "taken"),
    ("No available memory for the cache blocks", "cache"),
    ("KV cache is needed", "cache"),
    ("Cannot auto-fit max_model_len", "cache"),
    ("out of memory", "work"),
    ("OutOfMemoryError", "work"),
)
_ADVICE: Final[dict[Shortage, str]] = {
    "taken": "other processes hold the GPU's memory (see nvidia-smi): end them, or lower"
    " --gpu-memory-utilization",
    "cache": "the model leaves too little room for its KV cache: raise --gpu-memory-utilization,"
    " lower --max-model-len or --max-num-seqs, or give each engine more GPUs with"
    " --tensor-parallel-size",
    "work": "the engine has too little room to work in: lower --gpu-memory-utilization,"
    " --max-num-seqs or --max-model-len, or give each engine more GPUs with --tensor-parallel-size",
}
_FREE_OF_TOTAL: Final = re.compile(r"\(([\d.]+)/([\d.]+) GiB\)")
AUTO_LENGTH: Final = -1
"""vLLM's `--max-model-len auto`: the longest that fits."""
LEAST_UTILIZATION: Final = 0.3
MOST_UTILIZATION: Final = 0.95


def shortage(error: str) -> Shortage | None:
    """What an engine's error says it lacks; None for any other error."""
    return next((kind for sign, kind in _SIGNS if sign in error), None)


def with_advice(error: str) -> str:
    """The error, and what to change where memory is its cause."""
    kind = shortage(error)
    return error if kind is None else f"{error}; {_ADVICE[kind]}, or let --auto-fit find what fits"


def smaller(settings: MemorySettings, error: str) -> MemorySettings | None:
    """The settings to try after this error; None when there is nothing left to try."""
    kind = shortage(error)
    if kind == "taken":
        return _with_what_is_free(settings, error)
    if kind == "cache":
        return _with_more_cache(settings)
    return _with_less_work(settings) if kind == "work" else None


def describe(new: MemorySettings, old: MemorySettings) -> str:
    """The change, as flags of the command line."""
    changes = []
    for name in MemorySettings.__struct_fields__:
        value = getattr(new, name)
        if value != getattr(old, name):
            shown = "auto" if name == "max_model_len" and value == AUTO_LENGTH else value
            changes.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(changes)


def _with_what_is_free(settings: MemorySettings, error: str) -> MemorySettings | None:
    found = _FREE_OF_TOTAL.search(error)
    if found is None:
        return None
    free, total = (float(part) for part in found.groups())
    utilization = math.floor(97 * free / total) / 100  # a little of it is gone at the next look
    if not LEAST_UTILIZATION <= utilization < settings.gpu_memory_utilization:
        return None
    return msgspec.structs.replace(settings, gpu_memory_utilization=utilization)


def _with_more_cache(settings: MemorySettings) -> MemorySettings | None:
    replace = msgspec.structs.replace
    if settings.max_model_len != AUTO_LENGTH:
        return replace(settings, max_model_len=AUTO_LENGTH)
    if settings.kv_cache_memory_bytes is not None:
        more = settings.kv_cache_memory_bytes * 16
        return replace(settings, kv_cache_memory_bytes=more) if more <= 1 << 30 else None
    if settings.gpu_memory_utilization < MOST_UTILIZATION:
        return replace(settings, gpu_memory_utilization=MOST_UTILIZATION)
    return None


def _with_less_work(settings: MemorySettings) -> MemorySettings | None:
    replace = msgspec.structs.replace
    if settings.max_num_seqs > 1 and settings.gpu_memory_utilization <= 0.8:
        return replace(settings, max_num_seqs=settings.max_num_seqs // 2)
    utilization = round(settings.gpu_memory_utilization - 0.05, 2)
    if utilization < LEAST_UTILIZATION:
        return None
    return replace(settings, gpu_memory_utilization=utilization)
