"""How near the job comes to what its engine could do: `python benchmarks/speed_of_light.py`.

The engine is the real one, with a tiny model and without its arithmetic (throughput/sleepy.py).
`h100`: it sleeps as long as a 7B model takes on an H100. `free`: kernels cost nothing, so that the
speed is that of what feeds them. Against the job, in turn, in processes of their own: vLLM with the
same requests, rendered before and all queued at once; one `LLM.chat` with images that were decoded
before; and one over image files, which it has to decode as the job does. `--small`: the corpus
as it is, half of it up to 176 pixels on its longer side, which takes little decoding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.throughput.contests import JOB, Contest, Entry, Target
from benchmarks.throughput.harness import Arena
from benchmarks.throughput.inputs import ROOT
from benchmarks.throughput.report import as_table

RENDERED = Entry("a rendered", "ceiling", options={"rendered": True})
CHAT = Entry("c chat", "chat", options={"images": "ready"})
CHAT_FILES = Entry("d chat, files", "chat", options={"images": "lazy"})
BOUNDS = {
    "h100": {8: Target("b job", "a rendered", 0.97), 64: Target("b job", "a rendered", 0.95)},
    "free": {8: Target("b job", "c chat", 0.95), 64: Target("b job", "c chat", 0.9)},
}
WORKERS = {"h100": "H100Worker", "free": "FreeWorker"}
COPIES = {("h100", 8): 1}
"""Of the images: enough to be much longer than the start and the tail; otherwise 4."""


def contests(kinds: list[str], sequences: list[int], rounds: int) -> list[Contest]:
    """One for each kind of engine and number of sequences."""
    return [
        Contest(
            name=f"{kind}-{count}",
            title=f"{WORKERS[kind]}, --max-num-seqs {count}, 32 tokens each",
            entries=(RENDERED, JOB, CHAT, CHAT_FILES),
            targets=(BOUNDS[kind][count],) if count in BOUNDS[kind] else (),
            count=250,
            copies=COPIES.get((kind, count), 4),
            rounds=rounds,
            worker=WORKERS[kind],
            max_num_seqs=count,
        )
        for kind in kinds
        for count in sequences
    ]


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=BOUNDS, default=list(BOUNDS))
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ray_python = ROOT / "build/ray-bench/bin/python"
    arena = Arena(options.out, ray_python, scaled=not options.small)
    for contest in contests(options.kinds, options.sequences, options.rounds):
        print("", as_table(arena.run(contest, lambda line: print(line, flush=True))), sep="\n")


if __name__ == "__main__":
    main()
