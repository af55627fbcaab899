"""The same run gives the same result wherever its workers are: in this process, in processes of
this machine, on the nodes of a Ray cluster."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.driver_run import Run, local, names
from support.fake_engines import start_broken
from support.inline_executor import InlineExecutor
from support.job import captions, input_flags, make_input, rows, run_here
from support.ray_cluster import RayCluster, on_ray, ray_cluster

from vllm_caption import job
from vllm_caption.config import RunConfig
from vllm_caption.driver.loop import Driver
from vllm_caption.engines import hardware
from vllm_caption.engines.executors.base import Executor, start_vllm
from vllm_caption.engines.executors.channel import LENGTH_BYTES, driver_channel
from vllm_caption.engines.executors.local import LocalExecutor
from vllm_caption.engines.executors.ray import RayExecutor
from vllm_caption.errors import RunStopped
from vllm_caption.messages import Beat, EngineDown, Lease, WorkerMessage
from vllm_caption.store.caption_files import CaptionFiles


def inline(config: RunConfig, tell: Callable[[str], None]) -> Executor:
    return InlineExecutor()


def local_on_cpu(config: RunConfig, tell: Callable[[str], None]) -> Executor:
    return LocalExecutor([None], config.output / "logs")


def on_ray_on_cpu(config: RunConfig, tell: Callable[[str], None]) -> Executor:
    return RayExecutor(config.engine, config.output / "logs", tell, on_cpu=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(num_cpus=4, num_gpus=4) as cluster:
        yield cluster


@pytest.fixture(params=[inline, local, on_ray], ids=["inline", "local", "ray"])
def make_executor(request: pytest.FixtureRequest) -> Any:
    if request.param is on_ray:
        request.getfixturevalue("cluster")
    return request.param


@pytest.fixture(scope="module")
def inline_captions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the real engine says in its driver's process: not in this one, which has Ray's threads,
    and vLLM forks, but in one from the fork server of the engines, which has imported vLLM."""
    folder = tmp_path_factory.mktemp("inline")
    LocalExecutor([None], folder).close()  # starts the server
    context = multiprocessing.get_context("forkserver")
    driver = context.Process(target=run_real_engine, args=(folder, inline))
    driver.start()
    driver.join()
    assert driver.exitcode == 0
    return captions(folder / "out")


def run_real_engine(folder: Path, make_executor: Any) -> dict[str, str]:
    run = make_run(folder, names(10), make_executor, start_engine=start_vllm, num_engines=1)
    asyncio.run(run.run())
    return captions(run.config.output)


def make_run(folder: Path, files: list[str], make_executor: Any, **options: Any) -> Run:
    return Run(folder, files, make_executor=make_executor, **options)


def test_every_item_is_captioned_once_by_some_engine(tmp_path: Path, make_executor: Any) -> None:
    run = make_run(tmp_path, names(30), make_executor)
    asyncio.run(run.run())
    expected = {file: f"caption of {file}" for file in run.files}
    assert captions(run.config.output) == expected
    made = rows(run.config.output)
    assert {file: row["caption"] for file, row in made.items()} == expected
    assert {row["attempts"] for row in made.values()} == {1}
    assert sum(engine.captioned for engine in run.stats.engines) == 30


def test_failures_have_the_same_kinds_and_their_engine_survives(
    tmp_path: Path, make_executor: Any
) -> None:
    files = names(12, n2="absent.png", n5="refused.png", n7="silent.png")
    run = make_run(tmp_path, files, make_executor)
    asyncio.run(run.run())
    assert run.kinds() == {
        "absent.png": "missing_file",
        "refused.png": "engine_error",
        "silent.png": "caption_rejected",
    }
    assert len(captions(run.config.output)) == 9
    assert not [line for line in run.told if "waits for room" not in line]


def test_item_that_kills_its_engine_is_found_and_costs_no_other_item_an_attempt(
    tmp_path: Path, make_executor: Any
) -> None:
    run = make_run(tmp_path, names(16, n3="bug.png"), make_executor)
    asyncio.run(run.run())
    assert run.kinds() == {"bug.png": "poison"}
    made = rows(run.config.output)
    assert {row["attempts"] for row in made.values() if row["caption"]} == {1}
    assert any("nobody expected this" in line for line in run.told)


def test_engine_that_stalls_is_replaced(tmp_path: Path, make_executor: Any) -> None:
    files = names(12, n3="hang.png")
    run = make_run(tmp_path, files, make_executor, engine={"stall_timeout_s": 3.0})
    asyncio.run(run.run())
    assert run.kinds() == {"hang.png": "poison"}
    assert len(captions(run.config.output)) == 11
    assert any("made no progress" in line for line in run.told)


def test_last_words_of_a_worker_arrive_even_if_something_is_sent_to_it_after_its_end() -> None:
    async def converse() -> list[WorkerMessage | None]:
        ours, theirs = socket.socketpair()
        channel = await driver_channel(ours)
        for message in (Beat(), EngineDown("its last words")):
            payload = msgspec.msgpack.encode(message)
            theirs.sendall(len(payload).to_bytes(LENGTH_BYTES, "big") + payload)
        theirs.close()
        channel.send(Lease(()))
        return [await channel.receive() for _ in range(3)]

    assert asyncio.run(converse()) == [Beat(), EngineDown("its last words"), None]


def test_engines_may_open_more_files_than_the_shell_allows_at_first() -> None:
    code = (
        "import resource, pathlib\n"
        "from vllm_caption.engines.executors.local import LocalExecutor\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))\n"
        "LocalExecutor(['0'], pathlib.Path('.')).close()\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE), hard)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    soft, hard, hard_before = map(int, done.stdout.split())
    assert (soft, hard) == (min(hard, 65535) if hard > 0 else 65535, hard_before)


def test_engine_that_cannot_start_is_reported_with_its_error(
    tmp_path: Path, make_executor: Any
) -> None:
    run = make_run(
        tmp_path,
        names(4),
        make_executor,
        start_engine=start_broken,
    )
    with pytest.raises(RunStopped, match=r"no engine can start: .*no kernel image is available"):
        asyncio.run(run.run())
    assert captions(run.config.output) == {}
    assert not any("no kernel image" in line for line in run.told)  # the error appears once


def test_first_engine_is_up_before_the_others_start_wherever_they_run(
    tmp_path: Path, make_executor: Any
) -> None:
    files = names(4, n0="gated.png")
    run = make_run(tmp_path, files, make_executor, num_engines=3, first_alone=True)
    asyncio.run(run.run_until_all_are_up())
    assert run.state_of_first_at_start == {0: "starting", 1: "up", 2: "up"}


@pytest.mark.parametrize(("platform", "alone"), [("cpu", False), ("cuda", True)])
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_first_engine_starts_alone_if_engines_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, platform: str, alone: bool
) -> None:
    monkeypatch.setattr(hardware, "platform", lambda: platform)
    monkeypatch.setattr(hardware, "visible_gpus", lambda: ["0", "1"])
    (file,) = make_input(tmp_path, 1)
    (tmp_path / "out").mkdir()
    CaptionFiles(tmp_path / "out").write(file, "made before, so that no engine is needed")
    decided: list[bool] = []

    class Noting(Driver):
        def __init__(self, *arguments: Any, first_alone: bool, **options: Any) -> None:
            decided.append(first_alone)
            super().__init__(*arguments, first_alone=first_alone, **options)

    monkeypatch.setattr(job, "Driver", Noting)
    flags = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "--quiet", "-dp=2")
    result = run_here("--model=demo", *flags, f"--executor={executor}")
    assert (result.exit_code, decided) == (0, [alone]), result.stderr


@pytest.mark.engine
def test_real_engine_gives_the_same_captions_on_this_machine(
    tmp_path: Path, inline_captions: dict[str, str]
) -> None:
    assert len(set(inline_captions.values())) > 5
    assert run_real_engine(tmp_path, local_on_cpu) == inline_captions


@pytest.mark.engine
def test_real_engine_gives_the_same_captions_on_ray(
    tmp_path: Path, cluster: RayCluster, inline_captions: dict[str, str]
) -> None:
    assert run_real_engine(tmp_path, on_ray_on_cpu) == inline_captions
