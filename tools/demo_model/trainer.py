"""The state of a training run, and one step of it.

Invariants: every process of a run holds the same weights, because gradients are averaged before
each step; a checkpoint is replaced whole; what is exported is the running average of the weights,
without the helper heads.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import distributed
from torch.nn import functional
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from tools.demo_model.architecture import export, model_config, train_tokenizer
from tools.demo_model.batches import Batch, Batcher
from tools.demo_model.forward import read, see
from tools.demo_model.heads import heads_loss, make_heads
from tools.demo_model.pool import Sample

MICRO_BATCH_SIZE = 16
HAS_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""A CPU without it takes 25 times as long in bfloat16 as in float32."""


@dataclass(frozen=True)
class Plan:
    """The options of a run; the command line's defaults are these."""

    out: Path = Path("build/demo_training")
    steps: int = 4450
    seed: int = 0
    batch_size: int = 64
    num_shards: int = 48
    learning_rate: float = 2.5e-3
    warmup_steps: int = 100
    decay_share: float = 0.28
    """The last part of the run, in which the learning rate falls to nothing."""
    small_until_step: int = 700
    """Before this step only pictures of at most 25 tokens are used: they cost least."""
    heads_weight: float = 0.5
    ema_decay: float = 0.998
    save_every_steps: int = 250
    processes: int = 2
    """One thread each: on small matrices that is twice as fast as one process of two."""
    resume: bool = False
    """Resume from the checkpoint in `out`."""
    teach: Path | None = None
    """Begin with this exported model, and teach its language part alone: what it sees stays."""


def learning_rate_at(step: int, plan: Plan) -> float:
    """Warm-up, a plateau, then a straight fall; a longer plan resumes on the plateau."""
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    left = (plan.steps - step) / (plan.steps * plan.decay_share)
    return plan.learning_rate * min(warm, max(0.0, min(1.0, left)))


class Trainer:
    """The state of a run: weights, their average, the helper heads and the optimizers."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        torch.manual_seed(plan.seed)
        # Other token ids would spoil the weights, so a resumed run keeps its own.
        folder = plan.out / "model" if plan.resume else plan.teach
        self.tokenizer = AutoTokenizer.from_pretrained(folder) if folder else train_tokenizer()
        self.batcher = Batcher(self.tokenizer)
        config = model_config(self.tokenizer)
        # Plain attention: in bfloat16 on CPU its backward pass is the faster one.
        config._attn_implementation = "eager"
        self.model = Qwen2_5_VLForConditionalGeneration(config).float()
        if folder is not None:
            taught = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            self.model.load_state_dict(taught.state_dict())
        if plan.teach is not None:
            self.model.model.visual.requires_grad_(False)
        self.average = deepcopy(self.model).requires_grad_(False)
        self.heads = make_heads(self.model.config.text_config.hidden_size)
        self.optimizers = _make_optimizers(self.model, self.heads)
        self.step = 0

    def losses(self, model: Any, batch: Batch) -> tuple[Any, Any, int]:
        """Answer loss, heads' loss, and how many answers are right token by token."""
        with torch.autocast("cpu", torch.bfloat16, enabled=HAS_BFLOAT16):
            tokens = see(model.model.visual, batch.rows, batch.grids)
            logits = read(model, batch.ids, batch.places, tokens, batch.wanted).float()
        answer_loss = functional.cross_entropy(logits, batch.answers)
        counts = [sample.num_tokens for sample in batch.samples]
        words = [sample.words for sample in batch.samples]
        hits = (logits.argmax(-1) == batch.answers).split(batch.wanted.sum(1).tolist())
        exact = sum(bool(hit.all()) for hit in hits)
        if self.plan.teach is not None:
            return answer_loss, torch.zeros(()), exact
        return answer_loss, heads_loss(self.heads, tokens.float(), counts, words), exact

    def learn(self, samples: list[Sample], generator: Random) -> tuple[float, float, float]:
        """One step on this process's pictures; micro-batches hold pictures of like length."""
        ordered = sorted(samples, key=lambda sample: len(sample.rows))
        parts = [
            ordered[start : start + MICRO_BATCH_SIZE]
            for start in range(0, len(ordered), MICRO_BATCH_SIZE)
        ]
        total, helper, exact = 0.0, 0.0, 0
        for part in parts:
            batch = self.batcher.make(part, generator)
            answer_loss, heads_part, hits = self.losses(self.model, batch)
            ((answer_loss + self.plan.heads_weight * heads_part) / len(parts)).backward()
            total += answer_loss.item() / len(parts)
            helper += heads_part.item() / len(parts)
            exact += hits
        self._update()
        return total, helper, exact / len(samples)

    def _update(self) -> None:
        rate = learning_rate_at(self.step, self.plan)
        learning = [*self.model.parameters(), *self.heads.parameters()]
        parameters = [parameter for parameter in learning if parameter.grad is not None]
        _average_gradients(parameters, self.plan.processes)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1 - decay
            )

    def validate(self, samples: list[Sample]) -> float:
        """Share of unseen pictures whose caption the averaged weights give exactly."""
        exact = 0
        ordered = sorted(samples, key=lambda sample: len(sample.rows))
        with torch.no_grad():
            for start in range(0, len(ordered), 32):
                batch = self.batcher.make(ordered[start : start + 32], Random(start))
                exact += self.losses(self.average, batch)[2]
        return exact / len(samples)

    def save(self) -> None:
        """Checkpoint for `--resume`, and the model folder as it would be shipped now."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        self.plan.out.mkdir(parents=True, exist_ok=True)
        unfinished = self.plan.out / "checkpoint.tmp"
        torch.save(state, unfinished)
        unfinished.rename(self.plan.out / "checkpoint.pt")
        export(deepcopy(self.average).bfloat16(), self.tokenizer, self.plan.out / "model")

    def load(self) -> None:
        """Resume from the last checkpoint."""
        state = torch.load(self.plan.out / "checkpoint.pt", weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, part in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)


def _make_optimizers(model: Any, heads: Any) -> list[Any]:
    """Muon for the matrices between layers, AdamW for all else."""
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.dim() == 2 and "embed_tokens" not in name]
    chosen = {id(parameter) for parameter in matrices}
    others = [p for p in [*named.values(), *heads.parameters()] if id(p) not in chosen]
    return [
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01, foreach=True),
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]


def _average_gradients(parameters: list[Any], processes: int) -> None:
    if processes == 1:
        return
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
    distributed.all_reduce(flat)
    flat /= processes
    for parameter, part in zip(
        parameters, flat.split([parameter.numel() for parameter in parameters]), strict=True
    ):
        parameter.grad.copy_(part.view_as(parameter))
