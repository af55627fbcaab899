"""Answers as long as the question says (`len17` in the file's name), for all contestants alike:
`--logits-processors=benchmarks.throughput.lengths:ForcedLengths`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoTokenizer
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

_LENGTH = re.compile(r"len(\d+)")


class ForcedLengths(LogitsProcessor):  # type: ignore[misc]
    """Force the end-of-text token exactly when the answer is long enough."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)
        self._eos = self._tokenizer.eos_token_id
        self._asked: dict[int, tuple[int, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """It decides what is sampled."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Requests come, go and move."""
        process_dict_updates(self._asked, batch_update, self._length)

    def _length(
        self, params: Any, prompt: list[int] | None, answer: list[int]
    ) -> tuple[int, list[int]] | None:
        found = _LENGTH.search(self._tokenizer.decode(prompt or []))
        return (int(found[1]), answer) if found else None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """One row per request."""
        for row, (length, answer) in self._asked.items():
            if len(answer) < length - 1:
                logits[row, self._eos] = -torch.inf
            else:
                logits[row] = -torch.inf
                logits[row, self._eos] = 0.0
        return logits
