"""A Ray cluster loses actors, nodes and drivers, and gets nodes: nothing is lost or repeated but
what was in flight. Nodes are real raylets on this machine, engines are fakes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from support.driver_run import Run, names
from support.job import (
    FAKE,
    QUICK,
    captions,
    input_flags,
    make_gated,
    make_input,
    rows,
    start,
    status,
    wait_until,
)
from support.ray_cluster import RayCluster, on_ray, ray_cluster

from vllm_caption.config import EngineConfig
from vllm_caption.engines.executors.base import WorkerSpec
from vllm_caption.engines.executors.ray import RayExecutor, connect
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.monitoring.figures import num_up

GATED = [f"gated/{number}.png" for number in range(8)]


@pytest.fixture(scope="module")
def head() -> Iterator[RayCluster]:
    """A cluster of one node with one GPU."""
    with ray_cluster(num_cpus=4, num_gpus=1) as head:
        yield head


@pytest.fixture
def cluster(head: RayCluster) -> Iterator[RayCluster]:
    """A head with one GPU; a test adds its own nodes."""
    yield head
    head.lose_all_nodes()


@pytest.fixture
def dead_address() -> Iterator[str]:
    """A port that is taken, and that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def run_with(run: Run, happens: Callable[[], Awaitable[None]]) -> None:
    """A run, during which something happens to its cluster; then the gate is opened."""

    async def both() -> None:
        running = asyncio.create_task(run.run())
        try:
            async with asyncio.timeout(90):
                await happens()
        finally:
            (run.folder / "raw/gate").touch()
        await running

    asyncio.run(both())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def assert_all_captioned_once(run: Run) -> None:
    assert captions(run.config.output) == {file: f"caption of {file}" for file in run.files}
    made = rows(run.config.output)
    assert {row["attempts"] for row in made.values()} == {1}, "an innocent item was charged"


def test_engine_joins_when_a_node_arrives_during_the_run(
    tmp_path: Path, cluster: RayCluster
) -> None:
    run = Run(tmp_path, [*names(20), *GATED], make_executor=on_ray)

    async def happens() -> None:
        await until(lambda: run.stats.captioned >= 20)
        assert sorted(engine.state for engine in run.stats.engines) == ["up", "waiting"]
        await until(lambda: run.told)
        cluster.add_node(num_cpus=2, num_gpus=1)
        await until(lambda: num_up(run.stats.engines) == 2)

    run_with(run, happens)
    assert_all_captioned_once(run)
    assert "it needs GPUs on one node: 1; 0 of 1 are free" in run.told[0]
    assert all(engine.captioned for engine in run.stats.engines)


def test_killed_actor_is_replaced_and_only_its_items_are_repeated(
    tmp_path: Path, cluster: RayCluster
) -> None:
    run = Run(tmp_path, [*names(20), *GATED], make_executor=on_ray, num_engines=1)

    async def happens() -> None:
        await until(lambda: run.stats.captioned >= 20)
        worker = psutil.Process(run.stats.engines[0].pid)
        worker.parent().send_signal(signal.SIGKILL)
        await until(lambda: run.stats.engines[0].restarts == 1 and num_up(run.stats.engines) == 1)
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE

    run_with(run, happens)
    assert_all_captioned_once(run)


def test_lost_node_costs_only_the_items_of_its_engine(tmp_path: Path, cluster: RayCluster) -> None:
    node = cluster.add_node(num_cpus=2, num_gpus=1)
    run = Run(tmp_path, [*names(20), *GATED], make_executor=on_ray)

    async def happens() -> None:
        await until(lambda: num_up(run.stats.engines) == 2 and run.stats.captioned >= 20)
        await until(lambda: all(run.dispatcher.in_flight_of(engine) for engine in (0, 1)))
        cluster.lose_node(node)
        await until(lambda: sum(engine.restarts for engine in run.stats.engines) == 1)

    run_with(run, happens)
    assert_all_captioned_once(run)
    assert num_up(run.stats.engines) <= 1


def test_cluster_without_room_for_any_engine_ends_the_run_with_a_sentence(
    tmp_path: Path, cluster: RayCluster
) -> None:
    engine = {"tensor_parallel_size": 64, "start_timeout_s": 1.0}
    run = Run(tmp_path, names(2), make_executor=on_ray, num_engines=1, engine=engine)
    with pytest.raises(RunStopped, match=r"no engine is left.*no node had room for it for \d+ s"):
        asyncio.run(run.run())
    assert captions(run.config.output) == {}


class NeverUnpacked:
    """What an actor waits for without end, once it is sent: a pipe that nobody writes to."""

    def __init__(self, pipe: Path) -> None:
        self._pipe = str(pipe)

    def __reduce__(self) -> Any:
        return open, (self._pipe,)


def test_worker_that_takes_too_long_to_start_frees_its_gpu_for_another(
    tmp_path: Path, cluster: RayCluster
) -> None:
    os.mkfifo(tmp_path / "pipe")

    async def start_one() -> None:
        executor = RayExecutor(EngineConfig(), tmp_path, str, on_cpu=False)
        await executor.place(0)
        executor.spec = cast(WorkerSpec, NeverUnpacked(tmp_path / "pipe"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(executor.start(0), timeout=0.5)
        async with asyncio.timeout(120):
            await executor.place(0)
        executor.close()

    asyncio.run(start_one())


def test_run_that_ends_while_an_engine_waits_for_room_logs_no_error(
    tmp_path: Path,
    cluster: RayCluster,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def end_early() -> None:
        executor = RayExecutor(EngineConfig(tensor_parallel_size=99), tmp_path, str, on_cpu=False)
        placing = asyncio.create_task(executor.place(0))
        await asyncio.wait([placing], timeout=0.5)
        placing.cancel()
        await asyncio.wait([placing])
        with monkeypatch.context() as patch:
            patch.setattr("ray.shutdown", lambda: None)  # until Ray has said that the actor is gone
            executor.close()
            await asyncio.sleep(1)
        executor.close()

    asyncio.run(end_early())
    gc.collect()
    assert caplog.messages == []


def test_engine_that_waits_for_a_cluster_without_its_head_node_says_so(
    tmp_path: Path, cluster: RayCluster, dead_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait_for_room() -> None:
        executor = RayExecutor(EngineConfig(tensor_parallel_size=99), tmp_path, str, on_cpu=False)
        gone = SimpleNamespace(gcs_address=dead_address)
        monkeypatch.setattr("ray.get_runtime_context", lambda: gone)
        with pytest.raises(OSError, match="head node of the Ray cluster does not answer"):
            await executor.place(0)
        executor.close()

    asyncio.run(wait_for_room())


def test_driver_killed_on_a_cluster_leaves_no_worker_and_a_rerun_resumes(
    tmp_path: Path, cluster: RayCluster
) -> None:
    files = make_input(tmp_path, 30) + make_gated(tmp_path)
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}", *QUICK, "-dp=1"]
    flags += ["--executor=ray", f"--ray-address={cluster.address}"]
    driver = start(*flags, command=FAKE)
    wait_until(lambda: len(captions(tmp_path / "out")) == 30, driver)
    wait_until(lambda: status(tmp_path / "out")["engines"][0]["pid"], driver)
    worker = status(tmp_path / "out")["engines"][0]["pid"]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.txt")}
    driver.kill()
    driver.communicate()
    wait_until(lambda: not psutil.pid_exists(worker))
    (tmp_path / "raw/gate").touch()
    again = subprocess.run(
        [sys.executable, *FAKE, *flags], capture_output=True, text=True, timeout=120, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "captioned 31 (1 in this run)" in again.stdout
    assert captions(tmp_path / "out") == {file: f"caption of {file}" for file in files}
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_cluster_that_does_not_answer_is_a_usage_error_before_anything_starts(
    tmp_path: Path, cluster: RayCluster, dead_address: str
) -> None:
    make_input(tmp_path, 1)
    flags = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    result = start(*flags, "--model=demo", "--executor=ray", f"--ray-address={dead_address}")
    _, stderr = result.communicate(timeout=120)
    assert result.returncode == 2
    assert stderr.startswith(f"vllm-caption: error: --ray-address {dead_address}: no Ray cluster")
    assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_address_of_something_else_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(100)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UsageError, match=r"\(another program uses this port\); give HOST:PORT"):
            connect(address)
        answering.join()
    with pytest.raises(UsageError, match="is not that of a cluster; give HOST:PORT of its head"):
        connect("ray://127.0.0.1:10001")
