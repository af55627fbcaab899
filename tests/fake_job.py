"""The whole job with fake engines: real command line, driver, processes, messages and files.

`python tests/fake_job.py FLAGS` is `python -m vllm_caption FLAGS` without vLLM behind it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from fake_engines import start_fake

from vllm_caption import run
from vllm_caption.cli import main
from vllm_caption.executors.local import LocalExecutor
from vllm_caption.messages import FlagsChecked


class FakeExecutor(LocalExecutor):
    """Real worker processes that do not import vLLM; flags are taken as they are."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, preload="fake_engines")

    async def check_flags(self, *_: Any) -> FlagsChecked:
        return FlagsChecked(b"", bounds_pixels=True)


def fake_main(*arguments: str) -> int:
    """One run; returns its exit code."""
    run.LocalExecutor = FakeExecutor  # type: ignore[misc]
    run.start_vllm = start_fake  # type: ignore[assignment]
    return main(["--model=demo", *arguments])


if __name__ == "__main__":
    exit_code = fake_main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(exit_code)
