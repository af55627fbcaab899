"""What vLLM's and torch's memory errors come to: advice, and the settings that are tried next."""

from __future__ import annotations

import pytest

from vllm_caption.engines.memory_fit import AUTO_LENGTH, describe, shortage, smaller, with_advice
from vllm_caption.messages import MemorySettings

TAKEN = (
    "ValueError: Free memory on device cuda:3 (61.2/79.1 GiB) on startup is less than desired GPU"
    " memory utilization (0.92, 72.77 GiB). Decrease GPU memory utilization or reduce GPU memory"
    " used by other processes."
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
AUTO = MemorySettings(gpu_memory_utilization=0.92, max_model_len=AUTO_LENGTH)


@pytest.mark.parametrize(
    ("error", "kind", "flag"),
    [
        (TAKEN, "taken", "nvidia-smi"),
        (NO_CACHE, "cache", "--max-model-len"),
        (TOO_LONG, "cache", "raise --gpu-memory-utilization"),
        (NOT_A_TOKEN, "cache", "--tensor-parallel-size"),
        (AT_WORK, "work", "lower --gpu-memory-utilization"),
        (WARMING_UP, "work", "--max-num-seqs"),
    ],
)
def test_error_of_memory_says_what_to_change(error: str, kind: str, flag: str) -> None:
    assert shortage(error) == kind
    assert with_advice(error).startswith(error)
    assert flag in with_advice(error)
    assert "--auto-fit" in with_advice(error)


def test_other_errors_are_left_as_they_are() -> None:
    assert shortage(OTHER) is None
    assert with_advice(OTHER) == OTHER
    assert smaller(AUTO, OTHER) is None


@pytest.mark.parametrize(
    ("settings", "error", "change"),
    [
        (AUTO, TAKEN, "--gpu-memory-utilization 0.75"),
        (MemorySettings(0.92, 32768), TOO_LONG, "--max-model-len auto"),
        (AUTO, NO_CACHE, "--gpu-memory-utilization 0.95"),
        (AUTO, AT_WORK, "--gpu-memory-utilization 0.87"),
        (MemorySettings(0.8, AUTO_LENGTH, 8), WARMING_UP, "--max-num-seqs 4"),
        (MemorySettings(0.9, AUTO_LENGTH, 8, 1024), NOT_A_TOKEN, "--kv-cache-memory-bytes 16384"),
    ],
)
def test_next_settings_change_one_thing_that_helps(
    settings: MemorySettings, error: str, change: str
) -> None:
    new = smaller(settings, error)
    assert new is not None
    assert describe(new, settings) == change


@pytest.mark.parametrize("error", [TAKEN, NO_CACHE, TOO_LONG, NOT_A_TOKEN, AT_WORK, WARMING_UP])
def test_trying_comes_to_an_end(error: str) -> None:
    settings: MemorySettings | None = MemorySettings(0.92, 32768, 8, 1024)
    tried = []
    while settings is not None:
        assert settings not in tried
        tried.append(settings)
        settings = smaller(settings, error)
    assert len(tried) < 20


def test_memory_that_others_hold_nearly_whole_is_not_worth_a_try() -> None:
    assert smaller(AUTO, TAKEN.replace("61.2/79.1", "4.0/79.1")) is None
