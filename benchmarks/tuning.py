"""How near `tune` comes to the best setting, on engines whose best setting is known.

`python -m benchmarks.tuning [--kinds flat prefill cramped] [--seqs 8 16 32 64 128]`

The engines are real but for their worker, which takes the time of a GPU (throughput/sleepy.py):
steps that cost the same up to 32 sequences, prefill that dominates, memory for 16 sequences. For
each kind, `tune` doubles until it stops, then measures every number of the list; printed is the
speed of what it found over the best of all. Exit code 1 if one is below 0.95.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.throughput.contests import WORKERS
from benchmarks.throughput.harness import ENVIRONMENT
from benchmarks.throughput.inputs import ROOT
from vllm_caption.commands.tune.record import Tuning, read_tuning
from vllm_caption.demo import SAMPLE_DIR

KINDS = {"flat": "FlatWorker", "prefill": "PrefillWorker", "cramped": "CrampedWorker"}
BOUND = 0.95
MAX_TOKENS = 8
NUM_IMAGES = 2048


def make_input(folder: Path) -> Path:
    """The bundled images, under so many names: no arithmetic is done on them."""
    images = sorted((SAMPLE_DIR / "raw").rglob("*.png"))
    for number in range(NUM_IMAGES):
        path = folder / "raw" / f"{number // 256}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images[number % len(images)], path)
    return folder / "raw"


def tune(images: Path, folder: Path, worker: str, *more: str) -> Tuning:
    """One call of the command, whose table is shown."""
    command = [
        *(sys.executable, "-m", "vllm_caption", "tune", str(images), "--model=demo", "--quiet"),
        *(f"{WORKERS}{worker}", "--no-checks", "--ignore-eos"),
        *(f"--max-tokens={MAX_TOKENS}", f"--tune-output={folder}", f"--sample={NUM_IMAGES}"),
        *more,
    ]
    print(f"$ {shlex.join(command[1:])}", flush=True)
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    tuning = read_tuning(folder)
    assert tuning is not None
    return tuning


def main() -> int:
    """Every kind; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seqs", nargs="+", default=["8", "16", "32", "64", "128"])
    options = parser.parse_args()
    lines, worst = [], 1.0
    with tempfile.TemporaryDirectory() as scratch:
        images = make_input(Path(scratch))
        for kind in options.kinds:
            found = tune(images, Path(scratch, kind), KINDS[kind])
            listed = f"--try=max-num-seqs={','.join(options.seqs)}"
            every = tune(images, Path(scratch, f"{kind}-all"), KINDS[kind], listed)
            speeds = {s.value: s.speed for s in every.settings if s.speed is not None}
            best = max(speeds, key=lambda value: speeds[value])
            # Both by the same measurements: two of one setting differ too.
            ratio = speeds[found.fastest or ""] / speeds[best]
            worst = min(worst, ratio)
            tried = " ".join(setting.value for setting in found.settings)
            lines.append(
                f"{kind:8} tried {tried}: found {found.fastest}, best {best}"
                f" ({speeds[best]:.1f} images/s), found over best {ratio:.3f}"
            )
    print("", *lines, sep="\n")
    return 0 if worst >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
