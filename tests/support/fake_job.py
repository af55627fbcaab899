"""The whole job with fake engines: real command line, driver, processes, messages and files.

`python -m support.fake_job FLAGS` is `python -m vllm_caption FLAGS` without vLLM behind it; `tune`
may come before the flags.
With `FAKE_WAITS_S` set, a disk that fails is waited for that long before each attempt.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from multiprocessing import forkserver, util
from types import SimpleNamespace
from typing import Any, NoReturn

from support.fake_engines import slow_down, start_fake
from vllm_caption.engines.executors.base import WorkerSpec
from vllm_caption.engines.executors.local import LocalExecutor
from vllm_caption.engines.worker import CaptionEngine
from vllm_caption.messages import FlagsChecked


class FakeExecutor(LocalExecutor):
    """Real worker processes that do not import vLLM; flags are not checked."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        forkserver.util = SimpleNamespace(**vars(util) | {"spawnv_passfds": _fork_server})
        super().__init__(*arguments, preload="support.fake_preload", **options)

    async def check_flags(self, *_: Any) -> FlagsChecked:
        return FlagsChecked(b"", bounds_pixels=True)


def _fork_server(_: object, command: list[str], descriptors: Sequence[int]) -> int:
    """Start multiprocessing's fork server as a fork of this process, which has imported what the
    server is to import. The last word of its command is Python code."""
    with warnings.catch_warnings():
        # Of the other threads, which a fork does not have; the server uses nothing of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.set_wakeup_fd(-1)
    let_go_of_files(keep=descriptors)
    try:
        exec(command[-1], {})
    finally:
        os._exit(0)


def let_go_of_files(keep: Collection[int] = ()) -> None:
    """In a fork: close what its origin had open, except for the standard streams and ``keep``.

    Each number stays taken, by a pipe that nobody writes to: copied objects still close theirs when
    they are collected, and must not close a file that was opened since.
    """
    empty, end = os.pipe()
    os.close(end)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != empty and number not in keep:
            os.dup2(empty, number, inheritable=False)


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


def run_fake(*arguments: str) -> NoReturn:
    """The process of `python -m support.fake_job`."""
    from vllm_caption.cli import command

    use_fakes(*arguments)
    # After `tune` and the input.
    place = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    sys.argv[1:] = [*arguments[:place], "--model=demo", *arguments[place:]]
    command()


if __name__ == "__main__":
    run_fake(*sys.argv[1:])
