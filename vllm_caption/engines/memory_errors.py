"""An engine ran out of memory: what its error means, and what to change.

Pure: from the text of an error to advice. The texts are torch's and vLLM's own (0.32:
`kv_cache_utils.py`, `worker/utils.py`, `gpu_model_runner.py` in v1).
"""

from __future__ import annotations

from typing import Final, Literal

Shortage = Literal["taken", "weights", "cache", "work"]
"""What an engine lacks: memory that other processes have taken, or room for the weights, for the KV
cache, or to work in."""

WHILE_LOADING: Final = "while the weights were loaded"
"""`EngineLog.explain` adds this to an error that occurred before the weights were loaded: torch's
text is the same as later, but no setting of the cache makes the weights smaller."""

_OUT_OF_MEMORY: Final = ("out of memory", "OutOfMemoryError")
_SIGNS: Final[tuple[tuple[str, Shortage], ...]] = (
    ("less than desired", "taken"),
    ("Error in memory profiling", "taken"),  # given back while vLLM measured
    ("No available memory for the cache blocks", "cache"),
    ("KV cache is needed", "cache"),
    ("Cannot auto-fit max_model_len", "cache"),
)
_MORE_GPUS: Final = "give each engine more GPUs with --tensor-parallel-size"
_ADVICE: Final[dict[Shortage, str]] = {
    "taken": "other processes hold the GPU's memory (see nvidia-smi): end them, or lower"
    " --gpu-memory-utilization",
    "weights": "the weights do not fit in GPU memory: take a smaller or quantised model, or"
    f" {_MORE_GPUS}; check with nvidia-smi that no other process holds memory",
    "cache": "the model leaves too little room for its KV cache: raise --gpu-memory-utilization,"
    f" lower --max-model-len or --max-num-seqs, or {_MORE_GPUS}",
    "work": "the engine has too little memory to work in: lower --gpu-memory-utilization,"
    f" --max-num-seqs or --max-num-batched-tokens, or {_MORE_GPUS}",
}


def shortage(error: str) -> Shortage | None:
    """What an engine lacks according to its error; None for any other error."""
    if any(sign in error for sign in _OUT_OF_MEMORY):
        return "weights" if WHILE_LOADING in error else "work"
    return next((kind for sign, kind in _SIGNS if sign in error), None)


def is_transient(error: str) -> bool:
    """Whether the same start may succeed in a moment, when an ended process no longer holds
    memory."""
    return shortage(error) == "taken"


def with_advice(error: str) -> str:
    """The error, and what to change if memory is the cause."""
    kind = shortage(error)
    return error if kind is None else f"{error}; {_ADVICE[kind]}"
