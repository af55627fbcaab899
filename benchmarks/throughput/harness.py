"""Runs contests: every contestant in a separate process, alternately, in several rounds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks.throughput.contests import LENGTHS, WORKERS, Contest, Entry
from benchmarks.throughput.cpu import CpuSampler
from benchmarks.throughput.inputs import (
    ROOT,
    Input,
    corpus,
    sized_images,
    skewed_lengths,
    usable_images,
    varied_lengths,
    write_input,
)
from benchmarks.throughput.models import larger_model, tiny_model
from benchmarks.throughput.outcome import Outcome, Task
from vllm_caption.captions.rules import clean_caption

LIMIT_S = 580
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # The processes of a GPU machine, for all contestants: see engines.py.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(ROOT),
}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(slots=True)
class Results:
    """All outcomes of one contest, by contestant."""

    contest: Contest
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)

    def values(self, name: str, measure: str) -> list[float]:
        """One number per round."""
        return [getattr(outcome, measure) for outcome in self.outcomes.get(name, [])]

    def median(self, name: str, measure: str) -> float:
        """Over the rounds."""
        return median(self.values(name, measure))

    def ratio(self, first: str, second: str, measure: str) -> float:
        """The median of the rounds' ratios: what disturbs one round disturbs both sides of it."""
        pairs = zip(self.values(first, measure), self.values(second, measure), strict=True)
        return median(one / other for one, other in pairs)

    def differing(self, name: str) -> tuple[int, int]:
        """Captions unlike the first contestant's, and how many both made; all as the job keeps
        them, which drops outer blanks and control characters."""
        reference = next(iter(self.outcomes.values()))[0].captions
        captions = self.outcomes[name][0].captions
        both = [file for file in captions if file in reference]
        unlike = (clean_caption(captions[file]) != clean_caption(reference[file]) for file in both)
        return sum(unlike), len(both)


class Arena:
    """The folder of one benchmark run, and the interpreters of the contestants."""

    def __init__(self, out: Path, ray_python: Path, *, scaled: bool = True) -> None:
        """``scaled``: bring the images to the sizes of design elements, see inputs.py."""
        self._out = out
        self._ray_python = ray_python
        root = sized_images(corpus(), out / "images") if scaled else corpus()
        self._images = list(usable_images(root))

    @property
    def num_images(self) -> int:
        """Usable ones in the corpus."""
        return len(self._images)

    def run(self, contest: Contest, tell: Callable[[str], None]) -> Results:
        """All rounds of one contest; a contestant that cannot run is reported and left out."""
        given = self._make_input(contest)
        results = Results(contest)
        missing = set()
        for number in range(contest.rounds):
            for entry in contest.entries:
                if entry.name in missing:
                    continue
                if entry.kind == "ray_data" and not self._ray_python.exists():
                    tell(f"{entry.name}: left out, no {self._ray_python} (see ray_data.py)")
                    missing.add(entry.name)
                    continue
                outcome = self._run_once(contest, entry, given)
                results.outcomes.setdefault(entry.name, []).append(outcome)
                tell(
                    f"{contest.name} {number + 1}/{contest.rounds}  {entry.name:18}"
                    f" {outcome.images_per_s:7.2f} images/s, {outcome.cpu_ms_per_image:5.1f} CPU"
                    f" ms/image, first caption after {outcome.first_caption_s:5.1f} s,"
                    f" all up {outcome.all_up_s:5.1f} s, load {os.getloadavg()[0]:.1f}"
                )
        return results

    def _make_input(self, contest: Contest) -> Input:
        images = list(islice(self._images, contest.count))
        make = {"varied": varied_lengths, "skewed": skewed_lengths}.get(contest.lengths)
        lengths = make(len(images)) if make else []
        return write_input(self._out / "input" / contest.name, images, lengths, contest.copies)

    def _run_once(self, contest: Contest, entry: Entry, given: Input) -> Outcome:
        output = self._out / "captions"
        shutil.rmtree(output, ignore_errors=True)
        path = self._out / "task.json"
        path.write_text(json.dumps(asdict(self._task(contest, entry, given, output))))
        python = self._ray_python if entry.kind == "ray_data" else Path(sys.executable)
        threads = {} if entry.kind == "one_by_one" else ONE_THREAD
        outcome = _perform(
            [str(python), "-m", "benchmarks.throughput.contestant", str(path)],
            os.environ | ENVIRONMENT | threads,
            self._out / f"{contest.name}-{entry.kind}.log",
        )
        kept = self._out / f"{contest.name}-{entry.name.replace(' ', '-')}.captions.json"
        kept.write_text(json.dumps(outcome.captions, ensure_ascii=False, indent=0))
        return outcome

    def _task(self, contest: Contest, entry: Entry, given: Input, output: Path) -> Task:
        model = tiny_model() if contest.model == "tiny" else larger_model(self._out / "larger")
        worker = [WORKERS + contest.worker] if contest.worker else []
        flags = worker + ([LENGTHS] if contest.lengths else [])
        return Task(
            contestant=entry.kind,
            model=model,
            images_root=given.images_root,
            files=given.files[: entry.count],
            output=str(output),
            prompt=str(Path(__file__).with_name("prompt.md")) if contest.lengths else "shape-brief",
            max_tokens=contest.max_tokens,
            ignore_eos=not contest.lengths,
            engines=entry.engines,
            max_num_seqs=contest.max_num_seqs,
            flags=flags,
            options=entry.options | {"input": str(given.folder)},
        )


def _perform(command: list[str], environment: dict[str, str], log: Path) -> Outcome:
    """Run a contestant to its end, and clean up after it."""
    started_at = {"BENCH_STARTED_AT": str(time.time())}
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment | started_at,
            start_new_session=True,
        )
        cpu = CpuSampler(process.pid)
        try:
            answer, _ = process.communicate(timeout=LIMIT_S)
        finally:
            cpu.stop()
            _kill_group(process.pid)
    if process.returncode:
        raise SystemExit(f"a contestant failed (exit code {process.returncode}); see {log}")
    outcome = Outcome(**json.loads(answer.splitlines()[-1]))
    end = max(outcome.finished_at.values())
    return replace(outcome, cpu_s=cpu.spent_s(outcome.all_ready_at, end))


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
