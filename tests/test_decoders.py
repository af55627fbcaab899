"""Images are decoded by processes of their own: what they lose costs one image, and no engine."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.driver_run import Run, names, rows
from support.job import captions, draw_shape

from vllm_caption.config import ImageConfig
from vllm_caption.engines.decoders import Decoders
from vllm_caption.errors import ItemError
from vllm_caption.images.decode import prepare_image
from vllm_caption.images.files import read_image
from vllm_caption.process import DECODER_NAME

KILLS = 2
"""As many as an item has retries, in case that all hit the same one."""


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    found = Decoders(ImageConfig())
    while not processes():  # until the nursery has its name
        time.sleep(0.01)
    yield found
    found.close()


def name_of(process: psutil.Process) -> str | None:
    """None for one that is gone."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return None


def processes(parent: int | None = None) -> list[psutil.Process]:
    """The nursery and the decoders below a process, the oldest first."""
    found = psutil.Process(parent).children(recursive=True)
    return [process for process in found if name_of(process) == DECODER_NAME]


def decoders_at_work() -> list[psutil.Process]:
    """Without their nurseries."""
    found, parents = processes(), []
    for process in found:
        with suppress(psutil.NoSuchProcess):
            parents.append((process, process.ppid()))
    pids = {process.pid for process in found}
    return [process for process, parent in parents if parent in pids]


def reading(data: bytes, image_format: str = "PNG") -> Any:
    return lambda: (data, image_format)


def stopped_decoder(decoders: Decoders, path: Path) -> psutil.Process:
    """Have one decoder at hand, and stop it."""
    decoders.decode("first", partial(read_image, str(path.parent), path.name))
    decoder = processes()[-1]
    decoder.suspend()
    return decoder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "shape.png"
    draw_shape(3).save(path)
    return path


def test_pixels_and_facts_are_those_of_decoding_here(decoders: Decoders, picture: Path) -> None:
    for name in (picture.name, picture.name):  # the second by the same process
        here = prepare_image(str(picture.parent), name, ImageConfig())
        there = decoders.decode(1, partial(read_image, str(picture.parent), name))
        assert there.image.mode == here.image.mode
        assert there.image.tobytes() == here.image.tobytes()
        assert (there.width, there.height) == (here.width, here.height)
        assert (there.backdrop, there.sha256) == (here.backdrop, here.sha256)
    assert len(processes()) == 2  # the nursery, and one decoder


def test_image_that_cannot_be_decoded_says_so_and_its_decoder_continues(
    decoders: Decoders, picture: Path
) -> None:
    for _ in range(2):
        with pytest.raises(ItemError) as caught:
            decoders.decode(1, reading(picture.read_bytes()[:60]))
        assert (caught.value.kind, caught.value.transient) == ("decode_error", False)
    assert len(processes()) == 2


def test_file_that_cannot_be_read_needs_no_decoder(decoders: Decoders, tmp_path: Path) -> None:
    with pytest.raises(ItemError) as caught:
        decoders.decode(1, partial(read_image, str(tmp_path), "absent.png"))
    assert caught.value.kind == "missing_file"
    assert len(processes()) == 1


def test_death_of_a_decoder_costs_its_image_one_attempt(decoders: Decoders, picture: Path) -> None:
    stopped = stopped_decoder(decoders, picture)
    killing = threading.Timer(0.2, stopped.kill)
    killing.start()
    with pytest.raises(ItemError, match="the process that decoded it died") as caught:
        decoders.decode(1, reading(picture.read_bytes()))
    assert (caught.value.kind, caught.value.transient) == ("decode_error", True)
    assert decoders.decode(1, reading(picture.read_bytes())).width > 0


def test_decoder_that_takes_too_long_is_killed_and_its_thread_is_free(
    decoders: Decoders, picture: Path
) -> None:
    stopped_decoder(decoders, picture)
    ended = []

    def decode() -> None:
        with pytest.raises(ItemError):
            decoders.decode("slow", reading(picture.read_bytes()))
        ended.append(True)

    thread = threading.Thread(target=decode)
    thread.start()
    decoders.kill("another")  # which is not at work
    while not ended:
        decoders.kill("slow")
        time.sleep(0.01)
    thread.join()


def test_without_the_process_that_starts_decoders_none_can_be_started(
    decoders: Decoders, picture: Path
) -> None:
    [nursery] = processes()
    nursery.kill()
    nursery.wait()
    with pytest.raises(ChildProcessError, match="the process that starts image decoders has ended"):
        decoders.decode(1, reading(picture.read_bytes()))


def test_decoders_do_not_outlive_a_worker_that_is_killed(tmp_path: Path) -> None:
    draw_shape(3).save(tmp_path / "x.png")
    ours, theirs = os.pipe()
    worker = os.fork()
    if not worker:
        decoders = Decoders(ImageConfig())
        decoders.decode(1, partial(read_image, str(tmp_path), "x.png"))
        os.write(theirs, b"!")
        signal.pause()
    os.read(ours, 1)
    found = processes(worker)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    assert len(found) == 2
    assert not psutil.wait_procs(found, timeout=10)[1]


def test_decoders_that_are_killed_again_and_again_cost_no_engine_and_no_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SLOW_STAGE", "decode")
    run = Run(tmp_path, names(60), num_engines=2)
    kills = 0

    async def kill_decoders() -> None:
        nonlocal kills
        while kills < KILLS:
            for process in decoders_at_work()[:1]:
                process.kill()
                kills += 1
            await asyncio.sleep(0.02)

    async def serve() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(run.run(), kill_decoders())

    asyncio.run(serve())
    assert len(captions(run.config.output)) == 60
    assert (run.told, [engine.restarts for engine in run.stats.engines]) == ([], [0, 0])


def test_stopped_decoder_costs_its_image_the_time_limit_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SLOW_STAGE", "decode")
    run = Run(tmp_path, names(30), num_engines=1, engine={"item_timeout_s": 1.0})
    stopped: list[psutil.Process] = []

    async def stop_one() -> None:
        while not stopped:
            for process in decoders_at_work()[:1]:
                process.suspend()
                stopped.append(process)
            await asyncio.sleep(0.01)

    async def serve() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(run.run(), stop_one())

    asyncio.run(serve())
    assert not psutil.wait_procs(stopped, timeout=10)[1]
    timeouts = [row for row in rows(run.config.output).values() if row["error_kind"] == "timeout"]
    assert len(captions(run.config.output)) + len(timeouts) == 30
    assert len(timeouts) <= 1  # none, where the decoder was idle
    assert run.stats.engines[0].restarts == 0
