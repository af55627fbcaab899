"""A worker that notes when it was first given work: the exact begin of an engine out of reach."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from benchmarks.throughput.outcome import FIRST_STEP


class FirstStepWorker(CPUWorker):  # type: ignore[misc]
    """The CPU worker and no more."""

    _noted = False

    def execute_model(self, scheduler_output: Any) -> Any:
        """One step over what is scheduled."""
        if not self._noted and scheduler_output.scheduled_new_reqs:
            self._noted = True
            Path(os.environ[FIRST_STEP]).write_text(str(time.time()))
        return super().execute_model(scheduler_output)
