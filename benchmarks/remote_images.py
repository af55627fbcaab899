"""Images in an object store compared with the same on disk: what latency costs.

`python benchmarks/remote_images.py [--latency-ms 50] [--rounds 3] [--count 160]`

Runs the whole job in a separate process, alternately with a local folder and an S3 endpoint on
loopback (moto's server) that delays every answer by the latency. Two requests are made for each
image. The engine is the real one with a GPU's step times (benchmarks/throughput/sleepy.py), so that
the processor is free for the server. The speed is measured from the first caption to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
WORKER = "--worker-cls=benchmarks.throughput.sleepy.SleepyWorker"


def images_per_s(folder: Path, images_root: str, environment: dict[str, str]) -> float:
    """One run."""
    with tempfile.TemporaryDirectory() as output:
        command = [
            *(sys.executable, "-m", "vllm_caption", "--model=demo", "--quiet", "--no-checks"),
            *(f"--jsons={folder / 'jsons'}", f"--json-detail={folder / 'json_detail'}"),
            *(f"--images-root={images_root}", f"--output={output}", "--no-dedup"),
            *("--ignore-eos", "--max-tokens=32", WORKER),
        ]
        paths = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        subprocess.run(
            command, check=True, env=os.environ | paths | environment, stdout=subprocess.DEVNULL
        )
        at = pq.read_table(f"{output}/manifest.parquet", columns=["finished_at"])["finished_at"]
    seconds = (pc.max(at).as_py() - pc.min(at).as_py()).total_seconds()
    return (len(at) - 1) / seconds


def main() -> None:
    """The script."""
    from support.job import make_input
    from support.s3_server import s3_server

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=160)
    options = parser.parse_args()
    speeds: dict[str, list[float]] = {"local": [], "remote": []}
    with tempfile.TemporaryDirectory() as name, s3_server(options.latency_ms / 1000) as server:
        folder = Path(name)
        make_input(folder, options.count)
        uri = server.upload(folder / "raw", "raw")
        for _ in range(options.rounds):
            speeds["local"].append(images_per_s(folder, str(folder / "raw"), {}))
            speeds["remote"].append(images_per_s(folder, uri, server.environment))
    pairs = zip(speeds["remote"], speeds["local"], strict=True)
    ratio = median(remote / local for remote, local in pairs)
    found = {kind: [round(value, 2) for value in values] for kind, values in speeds.items()}
    print(json.dumps(found | {"latency_ms": options.latency_ms, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
