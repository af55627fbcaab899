"""Reads vLLM's flags as the user wrote them, where a decision of ours depends on one of them.

vLLM itself parses and checks them (see `engines.vllm_engine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_SHORT: Final = {"q": "quantization"}


def named_flags(engine_args: Sequence[str]) -> dict[str, str]:
    """Name → value. `--kv-cache-dtype fp8` and `--kv_cache_dtype=fp8` are both `kv_cache_dtype`; a
    key of a value (`--hf-overrides.x 1`) keeps its full name; a flag without a value has ""."""
    found: dict[str, str] = {}
    name = ""
    for word in engine_args:
        if word.startswith("-") and not word[1:2].isdigit():
            flag, _, value = word.partition("=")
            name = flag.lstrip("-")
            if not flag.startswith("--"):
                name = _SHORT.get(name, name)
            name = name.replace("-", "_")
            found[name] = value
        elif name:
            found[name] = f"{found[name]} {word}".strip()
    return found


def given_flags(engine_args: Sequence[str]) -> set[str]:
    """The names alone, without what follows a dot."""
    return {name.partition(".")[0] for name in named_flags(engine_args)}
