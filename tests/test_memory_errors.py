"""What vLLM's and torch's memory errors mean to a user: advice that helps for each kind."""

from __future__ import annotations

import pytest

from vllm_caption.engines.memory_errors import WHILE_LOADING, is_transient, shortage, with_advice

TAKEN = (
    "ValueError: Free memory on device cuda:3 (61.2/79.1 GiB) on startup is less than desired GPU"
    " memory utilization (0.92, 72.77 GiB). Decrease GPU memory utilization or reduce GPU memory"
    " used by other processes."
)
GIVEN_BACK = (
    "AssertionError: Error in memory profiling. Initial free memory 70.1 GiB, current free memory"
    " 75.3 GiB. This happens when other processes sharing the same container release GPU memory"
    " while vLLM is profiling during initialization."
)
NO_CACHE = "ValueError: No available memory for the cache blocks. Try increasing ..."
TOO_LONG = (
    "ValueError: To serve at least one request with the model's max seq len (128000), (6.84 GiB KV"
    " cache is needed, which is larger than the available KV cache memory (2.1 GiB)."
)
NOT_A_TOKEN = "ValueError: Cannot auto-fit max_model_len: not enough GPU memory available"
AT_WORK = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
WARMING_UP = (
    "RuntimeError: CUDA out of memory occurred when warming up sampler with 8 dummy requests"
)
OTHER = "RuntimeError: CUDA error: no kernel image is available"


@pytest.mark.parametrize(
    ("error", "kind", "flag"),
    [
        (TAKEN, "taken", "nvidia-smi"),
        (GIVEN_BACK, "taken", "nvidia-smi"),
        (NO_CACHE, "cache", "--max-model-len"),
        (TOO_LONG, "cache", "raise --gpu-memory-utilization"),
        (NOT_A_TOKEN, "cache", "--tensor-parallel-size"),
        (AT_WORK, "work", "lower --gpu-memory-utilization"),
        (WARMING_UP, "work", "--max-num-seqs"),
        (f"{AT_WORK} {WHILE_LOADING}", "weights", "quantised"),
    ],
)
def test_memory_error_says_what_to_change(error: str, kind: str, flag: str) -> None:
    assert shortage(error) == kind
    assert with_advice(error).startswith(error)
    assert flag in with_advice(error)


def test_only_memory_held_by_others_may_become_free() -> None:
    errors = (TAKEN, GIVEN_BACK, NO_CACHE, TOO_LONG, NOT_A_TOKEN, AT_WORK, WARMING_UP, OTHER)
    assert [error for error in errors if is_transient(error)] == [TAKEN, GIVEN_BACK]


def test_settings_of_the_cache_are_not_advised_if_the_weights_do_not_fit() -> None:
    advice = with_advice(f"{AT_WORK} {WHILE_LOADING}").removeprefix(AT_WORK)
    assert "--gpu-memory-utilization" not in advice
    assert "--tensor-parallel-size" in advice


@pytest.mark.parametrize("error", [OTHER, f"{OTHER} {WHILE_LOADING}"])
def test_other_errors_are_left_unchanged(error: str) -> None:
    assert shortage(error) is None
    assert with_advice(error) == error
