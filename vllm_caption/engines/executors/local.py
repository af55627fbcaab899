"""Workers as processes of this machine, one per engine, each with a session of its own.

On a GPU workers are spawned (a forked CUDA context is unusable); on CPU they are forked from a
server that has imported vLLM once, since the import takes longer than starting an engine.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from vllm_caption.captions.question import Question
from vllm_caption.config import EngineConfig, ImageConfig, SamplingConfig
from vllm_caption.engine_flags import named_flags
from vllm_caption.engines.deaths import OomKills, describe_end
from vllm_caption.engines.decoders import Decoders
from vllm_caption.engines.executors.base import Ended, WorkerSpec
from vllm_caption.engines.executors.channel import Channel, driver_channel, worker_channel
from vllm_caption.engines.executors.engine_log import EngineLog
from vllm_caption.engines.executors.lifetime import (
    DRIVER_PID,
    die_with_parent,
    guard_session,
    kill_session,
    lead_session,
    signals_blocked,
)
from vllm_caption.engines.hardware import first_that_answer
from vllm_caption.engines.worker import Worker
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.formatting import first_line
from vllm_caption.messages import (
    DriverMessage,
    EngineDown,
    FlagsChecked,
    PreflightMessage,
    Ready,
    Refused,
    WorkerMessage,
)
from vllm_caption.process import ensure_home, keep_temporary_files_in, socket_folder
from vllm_caption.store.layout import PREFLIGHT_LOG, engine_log

_preflight_decoder: msgspec.msgpack.Decoder[PreflightMessage] = msgspec.msgpack.Decoder(
    PreflightMessage
)
VLLM_SOCKETS = "VLLM_RPC_BASE_PATH"
PRELOAD = "vllm_caption.engines.executors.forkserver_preload"
KILL_GRACE_S = 5.0
MANY_FILES = 65535
COMMON_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # `auto` would put every engine on the first cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model runs in the core's process, as with a GPU
}
CUDA_ENVIRONMENT = {
    # FlashInfer's sampler compiles with nvcc and ninja at warm-up; vLLM's is always available.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # If NVML cannot count the GPUs, torch does so through CUDA, after which no fork works.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order, by which GPUs are assigned to engines
}


class LocalExecutor:
    """Starts worker processes and the preflight check."""

    def __init__(
        self,
        gpus: list[str | None],
        logs: Path,
        *,
        preload: str = PRELOAD,
        check_timeout_s: float = EngineConfig().start_timeout_s,
    ) -> None:
        """``gpus``: each engine's `CUDA_VISIBLE_DEVICES`, None for an engine on CPU.

        ``preload``: the module that the fork server imports; ``check_timeout_s``: how long the
        check of the flags may take, which may ask a hub.
        """
        self._check_timeout_s = check_timeout_s
        self._gpus = gpus
        self._logs = logs
        self.on_cpu = gpus[0] is None
        self.spec: WorkerSpec | None = None
        os.environ.pop("VLLM_PORT", None)  # independent engines must not share a port
        _set_environment(CPU_ENVIRONMENT if self.on_cpu else CUDA_ENVIRONMENT)
        _allow_many_files()
        self._sockets = socket_folder()
        ensure_home()
        os.environ.setdefault(VLLM_SOCKETS, str(self._sockets))
        self._context: Any = multiprocessing.get_context("forkserver" if self.on_cpu else "spawn")
        # One thread for all starts: a parent-death signal is bound to the thread that started.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starter")
        if self.on_cpu:
            self._context.set_forkserver_preload([preload])
            os.environ[DRIVER_PID] = str(os.getpid())
            with signals_blocked(), temporary_files_in(self._sockets):
                multiprocessing.forkserver.ensure_running()

    async def check_flags(
        self,
        flags: tuple[str, ...],
        image: ImageConfig,
        sampling: SamplingConfig,
        question: Question,
    ) -> FlagsChecked:
        """Have vLLM check its flags, and try the question, in a process of its own.

        Raises UsageError, also if that process dies, and RunStopped if it cannot be started or does
        not answer.
        """
        ours, theirs = self._context.Pipe(duplex=False)
        log = self._logs / PREFLIGHT_LOG
        process = self._context.Process(
            target=_preflight_main,
            name="preflight",
            args=(
                theirs,
                str(log),
                flags,
                image,
                sampling,
                question,
                first_that_answer(self._gpus),
            ),
            daemon=True,
        )
        oom_kills = OomKills.now()
        try:
            answer = await asyncio.get_running_loop().run_in_executor(
                self._starter, _run_to_answer, process, ours, theirs, self._check_timeout_s
            )
        except OSError as refusal:
            raise RunStopped(f"no process could be started to check the flags: {refusal}") from None
        if answer is None:
            ended = describe_end(process.exitcode, oom_kills, OomKills.now())
            remedy = f"the process that checked it and the flags ended ({ended}); see {log}"
            raise UsageError("--model", named_flags(flags).get("model"), remedy)
        if isinstance(answer, Refused):
            raise answer.as_error()
        return answer

    async def place(self, engine: int) -> None:
        """Do nothing: the GPUs have been counted, so there is room."""

    async def start(self, engine: int) -> LocalWorker:
        """Start one worker process."""
        assert self.spec is not None
        ours, theirs = socket.socketpair()
        arguments = (self.spec, theirs, str(self._logs / engine_log(engine)), self._gpus[engine])
        started = asyncio.get_running_loop().run_in_executor(
            self._starter, self._start_worker, f"engine-{engine}", arguments
        )
        try:
            process = await started
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return LocalWorker(process, await driver_channel(ours))

    def _start_worker(self, name: str, arguments: tuple[Any, ...]) -> Any:
        socket_folder()  # vLLM's sockets go there
        process = self._context.Process(target=_worker_main, name=name, args=arguments)
        try:
            _start(process)
        except FileNotFoundError:  # the fork server's socket was deleted
            spawn: Any = multiprocessing.get_context("spawn")
            process = spawn.Process(target=_worker_main, name=name, args=arguments)
            _start(process)
        return process

    def close(self) -> None:
        """End the starting thread; no worker may still be alive."""
        self._starter.shutdown(wait=False, cancel_futures=True)


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Have multiprocessing put its sockets there; their names must be short."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _set_environment(of_build: dict[str, str]) -> None:
    """Set what workers inherit, except what the user has set. The environment's own programs
    (ninja) are on the PATH even if Python was called by its path, without activation."""
    for name, value in (COMMON_ENVIRONMENT | of_build).items():
        os.environ.setdefault(name, value)
    programs = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    if programs not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join((programs, path))


def _allow_many_files() -> None:
    """Let this process and its engines open as many files and sockets as the system permits; the
    limit that applies at first is often 1,024, which vLLM's own server raises, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class LocalWorker:
    """The driver's end of one worker process."""

    def __init__(self, process: Any, channel: Channel[DriverMessage, WorkerMessage]) -> None:
        self._process = process
        self._channel = channel
        self._oom_kills = OomKills.now()
        self._is_killed = False
        self.pid: int = process.pid
        self.receive = channel.receive
        self.send = channel.send

    def kill(self) -> None:
        """SIGKILL to the worker and its engine processes."""
        self._is_killed = self._is_killed or self._process.exitcode is None
        kill_session(self.pid)
        if self._process.exitcode is None:  # it may not lead a session yet
            self._process.kill()
        # A process stuck in the kernel may never end; do not wait for its last message.
        asyncio.get_running_loop().call_later(KILL_GRACE_S, self._channel.close)

    async def join(self, timeout_s: float) -> Ended:
        """Wait for the end, kill what is left of the session, and say how the process ended."""
        await self._ended_within(timeout_s)
        self.kill()
        await self._ended_within(KILL_GRACE_S)
        self._channel.close()
        code = self._process.exitcode
        if code is None:
            return Ended("even by SIGKILL", gone=False)
        if self._is_killed:
            return Ended("killed by the driver")
        return Ended(describe_end(code, self._oom_kills, OomKills.now()))

    async def _ended_within(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._process.exitcode is None and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


def _start(process: Any) -> None:
    """Start a process. Raises OSError, also if the fork server is gone."""
    try:
        with signals_blocked():
            process.start()
    except EOFError:
        raise OSError("the fork server ended; a new one is started at the next attempt") from None


def _run_to_answer(
    process: Any, ours: Connection, theirs: Connection, timeout_s: float
) -> PreflightMessage | None:
    _start(process)
    theirs.close()
    try:
        if not ours.poll(timeout_s):
            process.kill()
            raise RunStopped(
                f"vLLM could not check the model and its flags within {timeout_s:.0f} s"
                " (--start-timeout); it may be waiting for the Hub or a network drive"
            )
        payload = ours.recv_bytes()
    except EOFError:
        return None
    finally:
        process.join()
    return _preflight_decoder.decode(payload)


def _preflight_main(
    answer: Connection,
    log: str,
    flags: tuple[str, ...],
    image: ImageConfig,
    sampling: SamplingConfig,
    question: Question,
    gpus: str | None,
) -> None:
    """The preflight process: checks the flags and sends one message. ``gpus``: its
    `CUDA_VISIBLE_DEVICES`, as an engine's."""
    lead_session()
    die_with_parent(_parent(gpus is None))
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    EngineLog(log)
    message: PreflightMessage
    try:
        from vllm_caption.engines.vllm_engine import check_cuda, check_engine_args

        message = check_engine_args(flags, image, sampling, question, on_cpu=gpus is None)
        if gpus is not None:
            check_cuda()
    except UsageError as error:
        message = Refused.of(error)
    except Exception as error:  # noqa: BLE001 - whatever vLLM dies of here, engines would die of too
        traceback.print_exc()
        reason = f"vLLM fails on it ({type(error).__name__}: {first_line(error)}); see {log}"
        message = Refused.of(UsageError("--model", named_flags(flags).get("model"), reason))
    answer.send_bytes(msgspec.msgpack.encode(message))
    sys.stdout.flush()
    os._exit(0)  # nothing that vLLM left running may delay the end


def _parent(forked: bool) -> int:
    """The process that this one must not outlive: the fork server, or the driver."""
    driver = multiprocessing.parent_process()
    return os.getppid() if forked or driver is None or driver.pid is None else driver.pid


def _worker_main(spec: WorkerSpec, end: socket.socket, log: str, gpus: str | None) -> None:
    """The worker process."""
    lead_session()
    die_with_parent(_parent(gpus is None))
    keep_temporary_files_in(os.environ.get(VLLM_SOCKETS, ""))  # vLLM leaves some if it is killed
    if gpus is not None:
        guard_session()
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    exit_code = 1
    try:
        asyncio.run(_work(spec, end, log))
        exit_code = 0
    finally:
        if exit_code:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(exit_code)  # neither threads nor processes of an engine may keep this one alive


async def _work(spec: WorkerSpec, end: socket.socket, log_path: str) -> None:
    link = await worker_channel(end)
    try:
        log = EngineLog(log_path)
    except OSError as refusal:  # the output folder is full or gone; the driver will see
        link.send(EngineDown(f"its log {log_path} cannot be written ({refusal.strerror})"))
        await link.flush()
        return
    with suppress(OSError):  # deleted since the run started; who writes there reports it
        Path(tempfile.gettempdir()).mkdir(parents=True, exist_ok=True)
    decoders = Decoders(spec.image)  # now, while this process has no other thread
    files = spec.model_files
    try:
        if files is not None:
            files.check()
        engine = spec.start_engine(spec)
        if files is not None:  # it may have been replaced meanwhile
            files.check()
    except RunStopped as changed:
        link.send(EngineDown(str(changed)))
        await link.flush()
        return
    except Exception as error:  # noqa: BLE001 - whatever stops a start is reported, and ends this engine
        traceback.print_exc()
        link.send(EngineDown(log.explain(error)))
        await link.flush()
        return
    link.send(Ready(os.getpid()))
    worker = Worker(
        *(link, engine, decoders, spec.images_root),
        *(spec.prepare_threads, spec.item_timeout_s, spec.find_twins),
    )
    if (death := await worker.serve()) is not None:
        link.send(EngineDown(log.explain(death, engine.exit_codes)))
    await link.flush()
    engine.shutdown()
    decoders.close()
