"""What is tried on the machine, most valuable first.

Each step prepares what it needs itself, runs commands as a user would, and leaves nothing running.
A step that only confirms what a test on this machine's GPUs says (`make test-gpu`) is not here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.gpu.commands import Command, as_environment, say_what_is_left, used_mib, used_mib_after
from tools.gpu.demo_captions import compared, read_cpu_captions
from tools.gpu.inputs import ROOT, Input, copies, corpus, model_flags
from tools.gpu.rates import rates
from tools.gpu.verdicts import outcome_problems, run_problems
from tools.gpu.visit import Finding, Step
from vllm_caption.demo import SAMPLE_DIR
from vllm_caption.engines.executors.local import COMMON_ENVIRONMENT, CUDA_ENVIRONMENT
from vllm_caption.errors import UsageError
from vllm_caption.monitoring.gpu_devices import visible_gpus
from vllm_caption.store.caption_files import CaptionFiles
from vllm_caption.store.layout import engine_log, parts

ONE_ENGINE: Final = "--data-parallel-size=1"
FIXED: Final = ("--max-tokens=40", "--ignore-eos", "--no-checks", "--no-dedup")
"""Makes every item cost the same, whatever the model says."""
COPIES: Final = 3
SOME: Final = 60
"""Captions that a run has written when it is disturbed."""
INTERRUPTED: Final = 130
FACTS: Final = (
    "attention backend",
    "FlashAttention version",
    "Model Runner",
    "Model loading took",
    "torch.compile took",
    "Graph capturing finished",
    "GPU KV cache size",
    "Available KV cache",
    "init engine",
)
"""How many lines of an engine's log are kept."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One finished run of the job. ``status``: its last status.json."""

    exit_code: int | None
    rows: list[dict[str, Any]]
    status: Mapping[str, Any]
    figures: dict[str, Any]
    left_behind: list[str]
    """What is wrong with what it left on the machine."""

    @property
    def restarts(self) -> int:
        """How many times its engines were replaced."""
        return sum(engine["restarts"] for engine in self.status.get("engines", ()))


def num_gpus() -> int:
    """The GPUs that engines may use; none if they are named wrongly, which `doctor` reports."""
    try:
        return len(visible_gpus())
    except UsageError:
        return 0


class Steps:
    """All steps, over one folder."""

    def __init__(
        self, folder: Path, model: tuple[str, ...] = (), engine_flags: Sequence[str] = ()
    ) -> None:
        """``model``: flags that name one; default: the default model, or its shape without
        weights. ``engine_flags``: for every engine."""
        self._folder = folder
        self._model = model
        self._engine_flags = tuple(engine_flags)

    def listed(self) -> tuple[Step, ...]:
        """In the order in which they are tried; the seconds are guesses for one H100."""
        graphs = '--compilation-config={"max_cudagraph_capture_size": 512}'
        encoder = '--compilation-config={"cudagraph_mm_encoder": true}'
        several = f"the job on all {num_gpus()} GPUs, each with work of its own"
        steps = [
            Step("doctor", "whether the job will run here", 5, 60, self.doctor),
            Step("demo", "captions equal to a CPU's", 40, 150, self.demo),
            Step("job8", "the job, 8 sequences", 60, 200, lambda s: self.job("job8", 8, s)),
            Step("ceiling8", "vLLM alone, 8 sequences", 50, 160, lambda s: self.ceiling(8, s)),
            Step("job64", "the job, 64 sequences", 45, 150, lambda s: self.job("job64", 64, s)),
            Step("kill", "an engine core is killed", 90, 220, self.kill),
            Step("every_gpu", several, 90, 220, self.every_gpu),
            Step("ceiling64", "vLLM alone, 64 sequences", 50, 150, lambda s: self.ceiling(64, s)),
            Step("interrupt", "Ctrl+C", 50, 120, self.interrupt),
            self._variant("fp8", "weights in FP8", "--quantization=fp8"),
            self._variant("capture_sizes", "CUDA graphs up to 512 tokens", graphs),
            self._variant("mm_encoder", "CUDA graphs of the vision encoder", encoder),
        ]
        return tuple(step for step in steps if step.name != "every_gpu" or num_gpus() > 1)

    def _variant(self, name: str, shows: str, flag: str) -> Step:
        return Step(name, shows, 50, 150, lambda limit_s: self.job(name, 64, limit_s, flag))

    # --- steps ------------------------------------------------------------------------------

    def doctor(self, limit_s: float) -> Finding:
        """`doctor`, with the model and flags of the other steps."""
        flags = (*corpus().flags, *self._flags("doctor", 8))
        log = self._folder / "doctor.log"
        log.unlink(missing_ok=True)
        command = (*_JOB, "doctor", *flags, "--json")
        with Command(command, log, limit_s, **_ENVIRONMENT) as running:
            exit_code = running.wait()
            said = "\n".join(running.last_lines(200))
        try:
            answer = json.loads(said[said.index("{") :])
        except ValueError:
            answer = said[-1500:]
        problems = [] if exit_code == 0 else [f"exit code {exit_code}"]
        return Finding.of(problems, "the job will run here", {"answer": answer})

    def demo(self, limit_s: float) -> Finding:
        """The bundled model on the bundled sample."""
        output = self._new_folder("demo")
        started_at = time.time()
        arguments = ("demo", f"--output={output}", ONE_ENGINE, *self._engine_flags)
        ran = self._run("demo", arguments, limit_s, started_at)
        files = CaptionFiles(output)
        labels = json.loads((SAMPLE_DIR / "labels.json").read_bytes())
        made = {file: text for file in labels if (text := files.read(file))}
        figures, problems = compared(read_cpu_captions(), made)
        problems = [*run_problems(ran.exit_code, 0), *problems, *ran.left_behind]
        good = f"{figures['equal_to_cpu']} of {figures['captions']} captions equal the CPU's"
        if figures["explained_by_bf16"]:
            good += f", {figures['explained_by_bf16']} differ as bf16 explains"
        return Finding.of(problems, good, {**ran.figures, **figures})

    def job(self, name: str, max_num_seqs: int, limit_s: float, *more: str) -> Finding:
        """A complete run; with more sequences it gets more work, to have enough to time."""
        given = corpus() if max_num_seqs == 8 else copies(self._folder / "copies", COPIES)
        ran = self._caption(name, given, max_num_seqs, limit_s, *more)
        return _found(ran, given, restarts=0)

    def ceiling(self, max_num_seqs: int, limit_s: float) -> Finding:
        """The work of `job`, done by vLLM alone."""
        name = f"ceiling{max_num_seqs}"
        given = corpus() if max_num_seqs == 8 else copies(self._folder / "copies", COPIES)
        result, log = (self._folder / f"{name}.{end}" for end in ("json", "log"))
        for path in (result, log):
            path.unlink(missing_ok=True)
        command = (sys.executable, "-m", "tools.gpu.ceiling", str(result))
        flags = (*given.flags, *self._flags(name, max_num_seqs))
        before = used_mib()
        with Command((*command, *flags), log, limit_s, **_ENVIRONMENT) as running:
            exit_code = running.wait()
            problems = say_what_is_left(running.left_behind(), before, used_mib_after(before))
            figures = {} if exit_code == 0 else {"last_lines": running.last_lines()}
        if exit_code == 0:
            figures = json.loads(result.read_bytes())
        problems = [*run_problems(exit_code, 0), *problems]
        return Finding.of(problems, f"{figures.get('images_per_s')} images/s", figures)

    def kill(self, limit_s: float) -> Finding:
        """SIGKILL an engine core during a run: it is replaced, and nothing is lost."""
        given = corpus()
        ran = self._caption("kill", given, 8, limit_s, disturb=_kill_engine_core)
        return _found(ran, given, restarts=1)

    def interrupt(self, limit_s: float) -> Finding:
        """Ctrl+C during a run: items in flight are finished, and the GPU is freed."""
        ran = self._caption("interrupt", corpus(), 8, limit_s, disturb=_interrupt)
        problems = run_problems(ran.exit_code, INTERRUPTED)
        problems += outcome_problems(ran.rows, {}, corpus().outcomes)
        good = f"ended with {len(ran.rows)} rows"
        return Finding.of([*problems, *ran.left_behind], good, ran.figures)

    def every_gpu(self, limit_s: float) -> Finding:
        """The job as users start it: an engine on each GPU."""
        engines = num_gpus()
        given = copies(self._folder / "copies-for-all", COPIES * engines)
        more = f"--data-parallel-size={engines}"  # the last one counts
        ran = self._caption("every_gpu", given, 64, limit_s, more)
        made = {engine["engine"]: engine["captioned"] for engine in ran.status.get("engines", ())}
        idle = [str(engine) for engine in range(engines) if not made.get(engine)]
        found = _found(ran, given, restarts=0)
        figures = {**found.figures, "captioned_by_engine": made}
        problems = [] if found.good else [found.says]
        if idle:
            problems.append(f"engines without a caption: {', '.join(idle)}")
        return Finding.of(problems, found.says, figures)

    # --- runs -------------------------------------------------------------------------------

    def _caption(
        self,
        name: str,
        given: Input,
        max_num_seqs: int,
        limit_s: float,
        *more: str,
        disturb: Any = None,
    ) -> Ran:
        self._new_folder(name)
        flags = (*given.flags, *self._flags(name, max_num_seqs), *more)
        return self._run(name, flags, limit_s, time.time(), disturb)

    def _flags(self, name: str, max_num_seqs: int) -> tuple[str, ...]:
        if not self._model:
            self._model = model_flags(self._folder / "model")
        output = f"--output={self._folder / name}"
        seqs = f"--max-num-seqs={max_num_seqs}"
        return (*self._model, output, seqs, ONE_ENGINE, *FIXED, *self._engine_flags)

    def _new_folder(self, name: str) -> Path:
        output = self._folder / name
        shutil.rmtree(output, ignore_errors=True)
        (self._folder / f"{name}.log").unlink(missing_ok=True)
        return output

    def _run(
        self,
        name: str,
        arguments: Sequence[str],
        limit_s: float,
        started_at: float,
        disturb: Any = None,
    ) -> Ran:
        output, before = self._folder / name, used_mib()
        figures: dict[str, Any] = {"gpu_mib_before": before}
        command = (*_JOB, *arguments)
        with Command(command, self._folder / f"{name}.log", limit_s, **_ENVIRONMENT) as running:
            if disturb is not None:
                if running.until(lambda: _status(output).get("captioned", 0) >= SOME):
                    figures["gpu_mib_at_work"] = used_mib()
                    figures |= disturb(running)
                else:
                    figures["undisturbed"] = f"it never had {SOME} captions"
            exit_code = running.wait()
            figures["wall_s"] = round(time.time() - started_at, 1)
            left_behind = running.left_behind()
            after = used_mib_after(before)
            if exit_code not in (0, 1, INTERRUPTED):
                figures["last_lines"] = running.last_lines()
        rows = _rows(output)
        figures |= {"gpu_mib_after": after, "rows": len(rows)} | rates(rows, started_at)
        figures["engine_log"] = _facts(output / "logs" / engine_log(0))
        problems = say_what_is_left(left_behind, before, after)
        return Ran(exit_code, rows, _status(output), figures, problems)


_JOB: Final = (sys.executable, "-m", "vllm_caption")
_PATH: Final = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
_ENVIRONMENT: Final = as_environment(
    {**COMMON_ENVIRONMENT, **CUDA_ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
) | {"PYTHONPATH": _PATH}
"""The environment of the engines, so that vLLM alone has the same."""


def _found(ran: Ran, given: Input, *, restarts: int) -> Finding:
    """The finding about a run over a whole input."""
    problems = run_problems(ran.exit_code, given.exit_code)
    problems += outcome_problems(ran.rows, given.outcomes, given.outcomes)
    if "undisturbed" in ran.figures:
        problems.append(ran.figures["undisturbed"])
    if ran.restarts != restarts:
        problems.append(f"{ran.restarts} restarts instead of {restarts}")
    captioned = sum(row["status"] == "captioned" for row in ran.rows)
    good = f"{captioned} captioned, {len(ran.rows) - captioned} failed as they should"
    if speed := ran.figures.get("images_per_s"):
        good += f", {speed} images/s"
    return Finding.of([*problems, *ran.left_behind], good, ran.figures)


def _kill_engine_core(running: Command) -> dict[str, Any]:
    cores = running.engine_cores()
    for core in cores[:1]:
        core.kill()
    return {"killed": [core.pid for core in cores[:1]]}


def _interrupt(running: Command) -> dict[str, Any]:
    running.process.send_signal(signal.SIGINT)
    began_s = time.monotonic()
    running.wait()
    return {"ended_after_s": round(time.monotonic() - began_s, 1)}


def _status(output: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        status: dict[str, Any] = json.loads((output / "status.json").read_bytes())
        return status
    return {}


def _rows(output: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    found = parts(output / "manifest.parquet")
    return [row for path in found for row in pq.read_table(path).to_pylist()]


def _facts(log: Path) -> list[str]:
    with suppress(OSError):
        lines = log.read_text("utf-8", "replace").splitlines()
        told = (line.rpartition("] ")[2][:160] for line in lines if any(f in line for f in FACTS))
        return list(dict.fromkeys(told))[:20]
    return []
