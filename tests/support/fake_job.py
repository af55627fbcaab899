"""The whole job with fake engines: real command line, driver, processes, messages and files.

`python -m support.fake_job FLAGS` is `python -m vllm_caption FLAGS` without vLLM behind it; `tune`
may come before the flags.
With `FAKE_WAITS_S` set, a disk that fails is waited for that long before each attempt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from support.fake_engines import slow_down, start_fake
from vllm_caption.engines.executors.base import WorkerSpec
from vllm_caption.engines.executors.local import LocalExecutor
from vllm_caption.engines.worker import CaptionEngine
from vllm_caption.messages import FlagsChecked


class FakeExecutor(LocalExecutor):
    """Real worker processes that do not import vLLM; flags are not checked."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, preload="support.fake_preload", **options)

    async def check_flags(self, *_: Any) -> FlagsChecked:
        return FlagsChecked(b"", bounds_pixels=True)


def fake_main(
    *arguments: str, start_engine: Callable[[WorkerSpec], CaptionEngine] = start_fake
) -> int:
    """One run; returns its exit code."""
    use_fakes(*arguments, start_engine=start_engine)
    from vllm_caption.cli import main

    return main(["--model=demo", *arguments])


def use_fakes(
    *arguments: str, start_engine: Callable[[WorkerSpec], CaptionEngine] = start_fake
) -> None:
    """Have every run of this process use fake engines."""
    # Here, since every worker process imports this file but needs none of it.
    from vllm_caption import job
    from vllm_caption.engines import hardware
    from vllm_caption.engines.executors import local
    from vllm_caption.store.disk import attempts

    if "FAKE_WAITS_S" in os.environ:
        attempts.WAITS_S = (float(os.environ["FAKE_WAITS_S"]),) * 3  # type: ignore[misc]
    slow_down(os.environ.get("FAKE_SLOW_STAGE", ""))
    local.LocalExecutor = FakeExecutor  # type: ignore[misc]
    job.start_vllm = start_engine
    if "--executor=ray" in arguments:
        from vllm_caption.engines.executors.ray import RayExecutor

        RayExecutor.check_flags = FakeExecutor.check_flags  # type: ignore[assignment]
        hardware.runs_on_cpu = lambda: False  # the cluster's GPUs are counted, not there


if __name__ == "__main__":
    from vllm_caption.cli import command

    use_fakes(*sys.argv[1:])
    # After `tune`, or after an input.
    place = 2 if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else 1
    sys.argv[place:place] = ["--model=demo"]
    command()
