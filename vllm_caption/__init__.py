"""Offline, high-throughput captioning of design elements on data-parallel vLLM engines.

    import vllm_caption

    run = vllm_caption.caption("images", output="captions", model="Qwen/Qwen2.5-VL-7B-Instruct")
    run.captioned, run.failed       # int, int
    run.table                       # pyarrow.Table, one row per item
    vllm_caption.read("captions")   # the same table, later

Nothing heavy is imported until one of these names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm_caption.api.prompts import load_prompt
    from vllm_caption.api.run import RunResult, caption
    from vllm_caption.api.table import read
    from vllm_caption.captions.prompt import Prompt
    from vllm_caption.errors import RunStopped, UsageError

__version__ = "0.1.0"
__all__ = [
    "Prompt",
    "RunResult",
    "RunStopped",
    "UsageError",
    "caption",
    "load_prompt",
    "read",
]

_HOMES: Final = {
    "caption": "api.run",
    "RunResult": "api.run",
    "read": "api.table",
    "load_prompt": "api.prompts",
    "Prompt": "captions.prompt",
    "UsageError": "errors",
    "RunStopped": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
