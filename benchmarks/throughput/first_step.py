"""A worker that records when it first gets work: the exact start of an engine we do not control."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from benchmarks.throughput.outcome import FIRST_STEP


class FirstStepWorker(CPUWorker):  # type: ignore[misc]
    """The CPU worker, otherwise unchanged."""

    _noted = False

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run one step over the scheduled requests."""
        if not self._noted and scheduler_output.scheduled_new_reqs:
            self._noted = True
            Path(os.environ[FIRST_STEP]).write_text(str(time.time()))
        return super().execute_model(scheduler_output)
