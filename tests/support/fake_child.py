"""The process of a run that Python code starts, with fake engines: `api.child` for tests.

`FAKE_START` names the function of `fake_engines` that starts an engine; with `FAKE_SPAWN` set,
workers are spawned, as on a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
from typing import Any, NoReturn

from support import fake_engines
from support.fake_job import FakeExecutor, use_fakes
from vllm_caption.api import child
from vllm_caption.engines.executors import local


class SpawningExecutor(FakeExecutor):
    """Spawns its workers, as for GPUs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._context = multiprocessing.get_context("spawn")


def main(*arguments: str) -> NoReturn:
    """Like `child.main`."""
    use_fakes(start_engine=getattr(fake_engines, os.environ.get("FAKE_START", "start_fake")))
    if "FAKE_SPAWN" in os.environ:
        local.LocalExecutor = SpawningExecutor  # type: ignore[misc]
    child.main(*arguments)
