"""On the stand-in GPU no kernel writes the sampled tokens, so they are put in by hand.

Python imports this module at its start in every process that finds it on PYTHONPATH. It waits for
vLLM's samplers, of both model runners, and lets them answer random letters.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

METHODS = {"vllm.v1.worker.gpu.sample.sampler": "__call__", "vllm.v1.sample.sampler": "forward"}
"""Module of a class `Sampler` → the method that samples."""
LETTERS = (32, 90)
"""Token ids that are neither special tokens nor the end."""


def answer_letters(module: ModuleType, method: str) -> None:
    """Let a sampler do its work, and then answer something."""
    import torch

    sample = getattr(module.Sampler, method)

    def sampled(*arguments: Any, **options: Any) -> Any:
        output = sample(*arguments, **options)
        tokens = output.sampled_token_ids
        tokens.copy_(torch.randint(*LETTERS, tokens.shape, dtype=tokens.dtype))
        if (number := getattr(output, "num_sampled", None)) is not None:
            number.copy_(torch.ones(number.shape, dtype=number.dtype))
            rejected = output.num_rejected
            rejected.copy_(torch.zeros(rejected.shape, dtype=rejected.dtype))
        return output

    setattr(module.Sampler, method, sampled)


class SamplerFinder(importlib.abc.MetaPathFinder):
    """Finds the samplers as the other finders do, and changes them once they are loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in METHODS:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder != self)
        spec = next(filter(None, found), None)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            answer_letters(module, METHODS[name])

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, SamplerFinder())
