"""From pictures and questions to the arrays of a training step.

Invariants: the token ids are those of the chat template's rendering followed by the caption and
the end of the turn; `wanted` marks the places whose next token belongs to the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import torch

from tools.demo_model.captions import caption
from tools.demo_model.forward import positions
from tools.demo_model.pool import Sample
from tools.demo_model.questions import Questions, draw_system_message

Tensor = Any


@dataclass(frozen=True)
class Batch:
    """Pictures sorted by length, and one question and answer for each."""

    rows: Tensor
    grids: list[tuple[int, int]]
    ids: Tensor
    places: Tensor
    wanted: Tensor
    answers: Tensor
    """The next token at each wanted place, sequence by sequence."""
    samples: Sequence[Sample]


class Batcher:
    """Holds the tokenizer and the questions."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._questions = Questions()
        self._image_id: int = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._pad_id: int = tokenizer.pad_token_id
        self._encode = lru_cache(maxsize=50_000)(self._encode_anew)

    def _encode_anew(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text).input_ids)

    def _sequence(self, sample: Sample, generator: Random) -> tuple[list[int], int]:
        """Token ids, and how many of them are the answer."""
        question, style = self._questions.draw(generator)
        system = draw_system_message(generator)
        head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        opening = self._encode(f"{head}<|im_start|>user\n<|vision_start|>")
        asked = self._encode(f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n")
        answer = self._encode(f"{caption(sample.words, style)}<|im_end|>")
        image = [self._image_id] * sample.num_tokens
        return [*opening, *image, *asked, *answer], len(answer)

    def make(self, samples: Sequence[Sample], generator: Random) -> Batch:
        """One micro-batch."""
        samples = sorted(samples, key=lambda sample: len(sample.rows))
        sequences = [self._sequence(sample, generator) for sample in samples]
        longest = max(len(ids) for ids, _ in sequences)
        ids = np.full((len(samples), longest), self._pad_id, np.int64)
        places = np.zeros((3, len(samples), longest), np.int64)
        wanted = np.zeros((len(samples), longest), bool)
        answers: list[int] = []
        for index, (sample, (sequence, length)) in enumerate(zip(samples, sequences, strict=True)):
            array = np.array(sequence)
            ids[index, : len(array)] = array
            grid = (sample.grid_h, sample.grid_w)
            places[:, index, : len(array)] = positions(array, grid, self._image_id)
            wanted[index, len(array) - length - 1 : len(array) - 1] = True
            answers += sequence[-length:]
        return Batch(
            torch.from_numpy(np.concatenate([sample.rows for sample in samples])),
            [(sample.grid_h, sample.grid_w) for sample in samples],
            torch.from_numpy(ids),
            torch.from_numpy(places),
            torch.from_numpy(wanted),
            torch.tensor(answers),
            samples,
        )
