"""vLLM's flags as a user wrote them, where one of ours depends on one of them.

vLLM itself parses and checks them (see `engine`); this only looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_SHORT: Final = {"q": "quantization"}


def named_flags(engine_args: Sequence[str]) -> dict[str, str]:
    """name → value: `--kv-cache-dtype fp8` and `--kv_cache_dtype=fp8` as `kv_cache_dtype`, a part
    of a value (`--hf-overrides.x 1`) by its whole name, a flag without a value as ""."""
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
    """The names alone, without the parts behind a dot."""
    return {name.partition(".")[0] for name in named_flags(engine_args)}
