"""The model's forward pass for training: transformers' modules and weights, batched anew.

Invariants: for the same weights the logits are those of `Qwen2_5_VLForConditionalGeneration`
(a test compares them); every vision block attends to the whole picture, so windows never count.
Two things make it fast: a still's two equal frames are embedded as one, and pictures of the same
number of patches share one attention call.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tools.demo_model.patches import MEAN, STD

Tensor = Any
"""torch.Tensor; the type checker does not follow torch here."""

_PER_CHANNEL = 14 * 14
_MIDDLE = 128
_SCALE = torch.from_numpy(np.repeat(1 / (255 * STD), _PER_CHANNEL))
_SHIFT = torch.from_numpy(np.repeat((_MIDDLE / 255 - MEAN) / STD, _PER_CHANNEL))


def see(visual: Any, rows: Tensor, grids: list[tuple[int, int]]) -> Tensor:
    """The vision tower: all pictures' tokens, one after the other."""
    weight = visual.patch_embed.proj.weight
    kernel = weight.sum(dim=2).reshape(weight.shape[0], -1)
    # Normalising is linear too, so the weights take it over; levels less 128 are exact in bfloat16.
    hidden = functional.linear(rows.float() - _MIDDLE, kernel * _SCALE, kernel @ _SHIFT)
    cos, sin = _rotations(grids, hidden.shape[1] // visual.blocks[0].attn.num_heads)
    lengths = [height * width for height, width in grids]
    for block in visual.blocks:
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin, lengths)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden)


def _rotations(grids: list[tuple[int, int]], head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine per patch: its row turns half of the pairs, its column the other half."""
    frequencies = 1 / 10000 ** (np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2))
    places = np.concatenate([_places(height, width) for height, width in grids])
    angles = (places[:, :, None] * frequencies).reshape(len(places), -1)
    doubled = torch.from_numpy(np.concatenate([angles, angles], axis=1).astype(np.float32))
    return doubled.cos()[:, None], doubled.sin()[:, None]


def _places(height: int, width: int) -> NDArray[np.float32]:
    """Row and column of each patch, in the order of the merge blocks."""
    rows, columns = np.mgrid[0:height, 0:width]
    blocks = np.stack([rows, columns], axis=-1).reshape(height // 2, 2, width // 2, 2, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.float32)


def _attend(attn: Any, hidden: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]) -> Tensor:
    qkv = attn.qkv(hidden).view(len(hidden), 3, attn.num_heads, -1)
    query, key, value = qkv.unbind(1)
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    outputs, start = [], 0
    for length, group in groupby(lengths):
        count = len(list(group))
        stop = start + count * length
        split = [
            part[start:stop].view(count, length, attn.num_heads, -1).transpose(1, 2)
            for part in (query, key, value)
        ]
        mixed = _mix(*split)
        outputs.append(mixed.transpose(1, 2).reshape(count * length, -1))
        start = stop
    return attn.proj(torch.cat(outputs))


def _mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain attention: in bfloat16 on CPU its backward pass takes half of the fused one's time."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.float().softmax(-1).to(value.dtype) @ value


def _rotate(part: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = part.float().chunk(2, dim=-1)
    turned = part * cos + torch.cat([-second, first], dim=-1) * sin
    return turned.to(part.dtype)


def positions(ids: NDArray[np.int64], grid: tuple[int, int], image_id: int) -> NDArray[np.int64]:
    """Three position rows (time, height, width) of one sequence with one picture."""
    seen = ids == image_id
    first, count = int(seen.argmax()), int(seen.sum())
    height, width = grid[0] // 2, grid[1] // 2
    rows, columns = np.mgrid[0:height, 0:width].reshape(2, -1) + first
    before = np.tile(np.arange(first), (3, 1))
    inside = np.stack([np.full(count, first), rows, columns])
    after = np.arange(len(ids) - first - count) + first + max(height, width)
    return np.concatenate([before, inside, np.tile(after, (3, 1))], axis=1)


def read(model: Any, ids: Tensor, places: Tensor, tokens: Tensor, wanted: Tensor) -> Tensor:
    """The language model's logits at the wanted places of right-padded sequences.

    Padding comes after everything that is wanted, so causal attention needs no mask for it.
    """
    language = model.model.language_model
    embedded = language.embed_tokens(ids)
    spots = (ids == model.config.image_token_id)[..., None].expand_as(embedded)
    embedded = embedded.masked_scatter(spots, tokens.to(embedded.dtype))
    hidden = language(inputs_embeds=embedded, position_ids=places, use_cache=False)
    return model.lm_head(hidden.last_hidden_state[wanted])
