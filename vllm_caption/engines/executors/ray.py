"""Workers on an existing Ray cluster: one actor per engine, placed where GPUs are free.

Invariants: Ray repeats nothing (no restarts, no retries), so only the dispatcher decides what is
retried; there is one call at a time in each direction, so messages keep their order; an actor dies
with the driver. Only this module knows Ray.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vllm_caption.captions.question import Question
from vllm_caption.config import EngineConfig, ImageConfig, SamplingConfig
from vllm_caption.engine_flags import named_flags
from vllm_caption.engines.executors.base import Ended, WorkerSpec
from vllm_caption.engines.executors.ray_actor import EngineActor
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.formatting import first_line
from vllm_caption.messages import DriverMessage, FlagsChecked, Refused, WorkerMessage

try:
    import ray
    from ray.exceptions import RayError
except ImportError:
    hint = "needs Ray: in a checkout, pip install '.[ray]', here and on every node"
    raise UsageError("--executor", "ray", hint) from None

PATIENCE_S: Final = 5.0
ANSWER_S: Final = 5.0
_ADDRESS: Final = "give HOST:PORT of its head node (the port is 6379 by default), or `auto` there"
_SETTINGS: Final = b"\x04"
_FRAME_BYTES: Final = 9
_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
"""How a client of gRPC begins, as that of Ray: a preface, and a frame of settings. A server answers
with a frame of settings, whose fourth byte is its type (RFC 9113, 3.4 and 4.1)."""
FORWARDED: Final = ("VLLM_", "HF_", "HUGGING_FACE_", "AWS_")
"""Prefixes of the driver's environment variables that each node gets unless it has its own."""
OWN: Final = ("VLLM_HOST_IP", "VLLM_HOST_PORT", "VLLM_PORT", "VLLM_RPC_BASE_PATH")
"""Variables that differ between nodes, as in vLLM (vllm/v1/executor/ray_utils.py)."""


class RayExecutor:
    """Starts workers on the nodes of a cluster."""

    def __init__(
        self, config: EngineConfig, logs: Path, tell: Callable[[str], None], *, on_cpu: bool
    ) -> None:
        """``tell`` shows one line to the user. Raises UsageError if no cluster answers."""
        connect(config.ray_address)
        self._tell = tell
        self._told = False
        self.spec: WorkerSpec | None = None
        self.on_cpu = on_cpu
        self._config = config
        self._logs = str(logs.absolute())  # a node has another working directory
        self._actors: dict[int, Any] = {}
        """Actors that have no worker yet."""
        # vLLM's own Ray backend takes the GPUs of an engine that spans nodes.
        spans_nodes = _has_ray_backend(config.engine_args)
        self._num_gpus = 0 if on_cpu or spans_nodes else config.gpus_per_engine

    async def check_flags(
        self,
        flags: tuple[str, ...],
        image: ImageConfig,
        sampling: SamplingConfig,
        question: Question,
    ) -> FlagsChecked:
        """Have vLLM check its flags on a node, where engine 0 will be. Raises UsageError,
        RunStopped."""
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                await self.place(0)
        except TimeoutError:
            raise RunStopped(f"the Ray cluster has no room for an engine: {self.room()}") from None
        except OSError as refusal:
            raise RunStopped(str(refusal)) from None
        try:
            answer = await self._actors[0].check_flags.remote(flags, image, sampling, question)
        except RayError as error:
            raise RunStopped(f"the flags could not be checked: {first_line(error)}") from None
        if isinstance(answer, Refused):
            raise answer.as_error()
        if isinstance(answer, str):
            raise RunStopped(answer)
        assert isinstance(answer, FlagsChecked)
        return answer

    async def place(self, engine: int) -> None:
        """Wait until a node has room, however long that takes. Raises OSError."""
        actor = self._actors.get(engine)
        if actor is None:
            actor = self._actors[engine] = self._actor(engine)
        placing = asyncio.ensure_future(actor.placed.remote())
        try:
            await asyncio.wait([placing], timeout=PATIENCE_S)
            if not placing.done():
                await asyncio.to_thread(self._check_cluster)
            if not placing.done() and not self._told:
                self._told = True
                self._tell(f"Engine {engine} waits for room in the Ray cluster: {self.room()}.")
            await placing
        except RayError as error:
            self._actors.pop(engine, None)
            raise OSError(f"Ray could not place it: {first_line(error)}") from None
        finally:
            placing.cancel()  # if the run ends meanwhile, nobody asks for its result

    def _check_cluster(self) -> None:
        """Raise OSError if the head node is gone. Ray itself would end this process a minute later,
        without a word that a user understands."""
        try:
            _check_answers(ray.get_runtime_context().gcs_address)
        except UsageError as gone:
            raise OSError(
                f"the head node of the Ray cluster does not answer: {gone.value}"
            ) from None

    def room(self) -> str:
        """What the cluster has, in words."""
        kind = "CPU" if self.on_cpu else "GPU"
        free = ray.available_resources().get(kind, 0)
        needed = 1 if self.on_cpu else self._num_gpus
        total = ray.cluster_resources().get(kind, 0)
        return f"it needs {kind}s on one node: {needed}; {free:.0f} of {total:.0f} are free"

    def _actor(self, engine: int) -> Any:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(FORWARDED) and name not in OWN
        }
        options = {"max_restarts": 0, "max_task_retries": 0, "num_cpus": 1}
        actor = ray.remote(EngineActor).options(**options, num_gpus=self._num_gpus)
        return actor.remote(engine, self._logs, environment, self.on_cpu)

    async def start(self, engine: int) -> RayWorker:
        """Start the worker of a slot that has been placed. Raises OSError."""
        actor = self._actors.pop(engine)
        try:
            refusal = await actor.start.remote(self.spec)
        except RayError as error:
            refusal = first_line(error)
        except BaseException:  # it took too long, or the run is ending: it must not keep its GPU
            ray.kill(actor)
            raise
        if refusal is not None:
            ray.kill(actor)
            raise OSError(refusal)
        return RayWorker(actor)

    def close(self) -> None:
        """Leave the cluster; actors without a worker are ended, too."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        ray.shutdown()


class RayWorker:
    """The driver's end of one worker on a node."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._received: list[WorkerMessage | None] = []
        self._waiting: list[DriverMessage] = []
        self._delivering: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._last_words = ""

    async def receive(self) -> WorkerMessage | None:
        """The next message in order; None if the worker, its actor or its node is gone."""
        if not self._received:
            self._received = await self._unless_gone(self._actor.collect.remote()) or [None]
            self._received.reverse()
        return self._received.pop()

    def send(self, message: DriverMessage) -> None:
        """Queue a message; everything queued is sent in one call after the previous one."""
        self._waiting.append(message)
        if self._delivering is None or self._delivering.done():
            self._delivering = asyncio.ensure_future(self._deliver())

    async def _deliver(self) -> None:
        while self._waiting and not self._gone.is_set():
            messages, self._waiting = self._waiting, []
            await self._unless_gone(self._actor.deliver.remote(messages))

    async def _unless_gone(self, call: Any) -> Any:
        """The result of a call; None as soon as the worker is killed, or Ray reports it dead."""
        calling = asyncio.ensure_future(call)
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait([calling, gone], return_when=asyncio.FIRST_COMPLETED)
            return calling.result() if calling.done() else None
        except RayError as error:
            self._last_words = first_line(error)
            self._gone.set()
            return None
        finally:
            gone.cancel()
            calling.cancel()

    def kill(self) -> None:
        """End the actor, and so the worker and everything it started."""
        self._gone.set()
        ray.kill(self._actor)

    async def join(self, timeout_s: float) -> Ended:
        """How the worker ended; its GPUs are free afterwards."""
        ended = None
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * timeout_s):
                ended = await self._unless_gone(self._actor.join.remote(timeout_s))
        self.kill()
        return ended or Ended(self._last_words or "its actor was killed")


def connect(address: str) -> None:
    """Join the cluster, if this process has not. Raises UsageError."""
    if ray.is_initialized():
        return
    _check_answers(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, error) from None


def _check_answers(address: str) -> None:
    """Fail fast: Ray itself would retry a dead port, or that of another program, for minutes."""
    if "://" in address:
        raise UsageError("--ray-address", address, f"is not that of a cluster; {_ADDRESS}")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_S) as end:
            if "RAY_USE_TLS" in os.environ:
                return
            end.sendall(_HELLO)
            answer = end.recv(_FRAME_BYTES)
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None
    if answer[3:4] != _SETTINGS:
        raise _no_cluster(address, ValueError("another program uses this port"))


def _no_cluster(address: str, error: Exception) -> UsageError:
    problem = f"no Ray cluster can be joined there ({first_line(error)})"
    remedy = f"{problem}; {_ADDRESS}; `ray start --head` starts a cluster"
    return UsageError("--ray-address", address, remedy)


def default_data_parallel_size(address: str, gpus_per_engine: int) -> int:
    """One engine per group of the cluster's GPUs, at least one. Raises UsageError."""
    connect(address)
    return max(1, int(ray.cluster_resources().get("GPU", 0)) // gpus_per_engine)


def _has_ray_backend(engine_args: tuple[str, ...]) -> bool:
    return named_flags(engine_args).get("distributed_executor_backend") == "ray"
