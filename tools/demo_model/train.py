"""Train the demo model: `python -m tools.demo_model.train --steps N --out DIR --resume`, or teach a
finished one more: `--teach vllm_caption/demo/model --learning-rate 1e-3`.

Invariants: a run depends on its seed, its plan and on where it was resumed; the pictures are all
drawn before the first step; the first process alone writes and reports.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from dataclasses import fields
from pathlib import Path
from random import Random

import torch
from torch import distributed, multiprocessing
from tqdm import tqdm

from tools.demo_model.pool import Sample, draw_sample, read_shard, write_shard
from tools.demo_model.trainer import Plan, Trainer

SHARD_SIZE = 1500
VALIDATION_SIZE = 384
SMALL_TOKENS = 25


def run(rank: int, plan: Plan, meeting_point: str) -> None:
    """One process of a run, from its first step to its last."""
    torch.set_num_threads(1)
    if plan.processes > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=plan.processes
        )
    trainer = Trainer(plan)
    if plan.resume:
        trainer.load()
    samples = _gather_pool(plan, rank)
    small = [sample for sample in samples if sample.num_tokens <= SMALL_TOKENS]
    generator = Random(f"{plan.seed}/{trainer.step}/{rank}")
    report = Report(trainer) if rank == 0 else None
    while trainer.step < plan.steps:
        source = small if _is_small_step(trainer.step, plan) else samples
        figures = trainer.learn(
            generator.sample(source, plan.batch_size // plan.processes), generator
        )
        if report is not None:
            report.after_step(figures)


def _is_small_step(step: int, plan: Plan) -> bool:
    """Small pictures alone at first, then at every other step: they are the harder ones to read.

    All processes agree, so that none waits for another's longer pictures.
    """
    return step < plan.small_until_step or step % 2 == 0


class Report:
    """Progress, checkpoints and the share of exact captions on unseen pictures."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        generator = Random(f"validation/{trainer.plan.seed}")
        self._unseen = [draw_sample(generator) for _ in range(VALIDATION_SIZE)]
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=50)
        self._bar = tqdm(
            total=trainer.plan.steps, initial=trainer.step, mininterval=20, unit="step"
        )

    def after_step(self, figures: tuple[float, float, float]) -> None:
        """Count a step; now and then save and validate."""
        self._recent.append(figures)
        loss, heads, exact = (
            sum(values) / len(self._recent) for values in zip(*self._recent, strict=True)
        )
        summary = f"loss {loss:.4f}, heads {heads:.4f}, exact {exact:.3f}"
        self._bar.set_postfix_str(summary, refresh=False)
        self._bar.update()
        step, plan = self._trainer.step, self._trainer.plan
        if step % plan.save_every_steps == 0 or step == plan.steps:
            self._trainer.save()
            share = self._trainer.validate(self._unseen)
            self._bar.write(
                f"step {step}: {summary}, unseen {share:.3f}, {time.strftime('%H:%M:%S')}"
            )


def _gather_pool(plan: Plan, rank: int) -> list[Sample]:
    """All shards; each process draws its part of those that are missing."""
    folder = plan.out / "pool"
    for index in range(rank, plan.num_shards, plan.processes):
        if read_shard(folder, index) is None:
            write_shard(folder, index, SHARD_SIZE, plan.seed)
    if plan.processes > 1:
        distributed.barrier()
    shards = [read_shard(folder, index) for index in range(plan.num_shards)]
    return [sample for shard in shards if shard is not None for sample in shard]


def _parse() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Plan):
        flag = "--" + field.name.replace("_", "-")
        if field.name == "resume":
            parser.add_argument(flag, action="store_true")
        elif field.name == "teach":
            parser.add_argument(flag, type=Path)
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)
    return Plan(**vars(parser.parse_args()))


def main() -> None:
    """Start the processes of a run and wait for them."""
    plan = _parse()
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = str(Path(folder) / "meeting-point")
        multiprocessing.spawn(run, (plan, meeting_point), nprocs=plan.processes)


if __name__ == "__main__":
    main()
