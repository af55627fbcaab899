"""Prepares every file below a folder, each in a separate process with bounds.

Each must end in pixels or in an item kind, within 5 seconds and 1 GB including the process.

    python benchmarks/conformance.py FOLDER
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vllm_caption.config import ImageConfig
from vllm_caption.errors import ItemError
from vllm_caption.images.decode import prepare_image

MAX_CPU_S = 5
MAX_PEAK_BYTES = 10**9


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one file; ``peak_bytes`` is that of the whole process."""

    file: str
    result: str
    detail: str
    cpu_s: float
    peak_bytes: int

    @property
    def kept_bounds(self) -> bool:
        return self.cpu_s <= MAX_CPU_S and self.peak_bytes <= MAX_PEAK_BYTES


def attempt(root: str, file: str) -> tuple[str, str]:
    try:
        prepared = prepare_image(root, file, ImageConfig())
    except ItemError as error:
        return error.kind, error.reason
    return "prepared", f"{prepared.width} × {prepared.height}, {prepared.backdrop}"


def measured(root: str, file: str) -> Outcome:
    """Prepare in a fork, so that a crash or a peak belongs to this one file."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(6 * MAX_CPU_S)
            resource.setrlimit(resource.RLIMIT_CPU, (2 * MAX_CPU_S, 2 * MAX_CPU_S))
            os.write(write_end, "\n".join(attempt(root, file)).encode(errors="replace"))
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        result, _, detail = answer.read().decode(errors="replace").partition("\n")
    _, status, used = os.wait4(child, 0)
    if not result:
        result, detail = "CRASHED", f"wait status {status}"
    cpu_s = used.ru_utime + used.ru_stime
    return Outcome(file, result, detail, cpu_s, used.ru_maxrss * 1024)


def print_outcomes(outcomes: list[Outcome], seconds: float) -> None:
    print(f"{len(outcomes)} files in {seconds:.0f} s")
    for result, count in collections.Counter(o.result for o in outcomes).most_common():
        print(f"{count:7}  {result}")
    for title, key in (("slowest", "cpu_s"), ("largest", "peak_bytes")):
        print(f"{title}:")
        for o in sorted(outcomes, key=lambda o: -getattr(o, key))[:5]:
            print(
                f"{o.cpu_s:7.2f} s {o.peak_bytes / 1e6:6.0f} MB  {o.file}: {o.result}, {o.detail}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="also print each refusal")
    args = parser.parse_args()
    root = str(args.folder.resolve())
    names = sorted(str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_file())
    start = time.perf_counter()
    with multiprocessing.Pool(args.processes) as pool:
        outcomes = pool.starmap(measured, [(root, name) for name in names], chunksize=8)
    print_outcomes(outcomes, time.perf_counter() - start)
    for o in outcomes:
        if args.verbose and o.result not in ("prepared", "not_an_image"):
            print(f"{o.result:14}{o.file}: {o.detail}")
    bad = [o for o in outcomes if o.result == "CRASHED" or not o.kept_bounds]
    for o in bad:
        print(f"OUT OF BOUNDS  {o.file}: {o.result}, {o.detail}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
