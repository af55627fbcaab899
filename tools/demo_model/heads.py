"""Classification heads on the vision tower: they speed training up and are left out of the model.

Invariants: one head per word of a scene; a head sees the picture's tokens through one learned
attention, as the language model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from tools.demo_model.captions import (
    BACKDROPS,
    CANVASES,
    COLOURS,
    FILLS,
    POSITIONS,
    SHAPES,
    SIZES,
    Words,
)

Tensor = Any

CLASSES: dict[str, list[str]] = {
    "shape": list(SHAPES),
    "colour": list(COLOURS),
    "fill": list(FILLS),
    "size": list(SIZES),
    "position": list(POSITIONS),
    "canvas": list(CANVASES),
    "backdrop": list(BACKDROPS),
}


def make_heads(hidden_size: int) -> Any:
    """One scoring row and one linear layer per word."""
    return torch.nn.ModuleDict(
        {
            name: torch.nn.ModuleList(
                [torch.nn.Linear(hidden_size, 1), torch.nn.Linear(hidden_size, len(classes))]
            )
            for name, classes in CLASSES.items()
        }
    )


def heads_loss(heads: Any, tokens: Tensor, counts: Sequence[int], words: Sequence[Words]) -> Tensor:
    """Mean cross-entropy over the words."""
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    losses = []
    for name, (score, classify) in heads.items():
        weight = score(tokens).float().clamp(-15, 15).exp()
        total = torch.zeros(len(counts), 1).index_add(0, owner, weight)
        pooled = torch.zeros(len(counts), tokens.shape[1]).index_add(
            0, owner, tokens.float() * weight
        )
        labels = torch.tensor([CLASSES[name].index(getattr(word, name)) for word in words])
        losses.append(functional.cross_entropy(classify(pooled / total).float(), labels))
    return torch.stack(losses).mean()
