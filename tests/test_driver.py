"""The driver with real worker processes, real files and real messages, around a fake engine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
from support.driver_run import Given, Run, names
from support.fake_engines import (
    die_for_memory,
    never_answer,
    start_before_a_bug,
    start_beside_another_process,
    start_broken,
    start_broken_once,
    start_fake,
    start_on_a_flaky_disk,
    start_on_an_odd_disk,
    start_overflowing_once,
    start_with_program,
    start_with_quick_beats,
)
from support.job import captions, rows

from vllm_caption.captions.prompt import load_prompt
from vllm_caption.captions.question import make_question
from vllm_caption.config import RunConfig
from vllm_caption.engines.executors.base import Executor, WorkerSpec
from vllm_caption.engines.executors.channel import Channel, driver_channel
from vllm_caption.engines.executors.local import LocalExecutor, LocalWorker
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.inputs.documents import longest_item
from vllm_caption.items import Document, Item
from vllm_caption.messages import DriverMessage, WorkerMessage


def test_byte_identical_images_are_generated_once_and_all_get_the_caption(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, [*names(6), *(f"copy/{number}.png" for number in range(6))])
    for number in range(6):
        (tmp_path / f"raw/copy/{number}.png").write_bytes(
            (tmp_path / f"raw/a/{number}.png").read_bytes()
        )
    asyncio.run(run.run())
    texts, made = captions(run.config.output), rows(run.config.output)
    assert len(texts) == len(made) == 12
    for number in range(6):
        pair = {f"a/{number}.png", f"copy/{number}.png"}
        (leader,) = {file for file in pair if made[file]["same_as"] is None}
        (twin,) = pair - {leader}
        assert made[twin]["same_as"] == leader
        assert texts[leader] == texts[twin] == f"caption of {leader}"
    assert sum(engine.captioned for engine in run.stats.engines) == 6


def test_twin_of_an_earlier_runs_image_gets_its_caption_and_keeps_its_own_facts(
    tmp_path: Path,
) -> None:
    asyncio.run(Run(tmp_path, names(2)).run())
    (tmp_path / "raw/b.png").write_bytes((tmp_path / "raw/a/1.png").read_bytes())
    again = Run(tmp_path, names(2))
    again.files.append("b.png")
    asyncio.run(again.run())
    made = rows(again.config.output)["b.png"]
    assert captions(again.config.output)["b.png"] == made["caption"] == "caption of a/1.png"
    assert made["same_as"] == "a/1.png"
    assert made["image_width"] and made["image_sha256"]
    assert again.stats.twins == again.stats.captioned == 1


def test_twin_of_an_item_whose_caption_cannot_be_written_is_captioned_though_all_else_is_done(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, [*names(1), "copy.png"], num_engines=1)
    (tmp_path / "raw/copy.png").write_bytes((tmp_path / "raw/a/0.png").read_bytes())
    (run.config.output / "a/0.png.txt").mkdir(parents=True)
    asyncio.run(run.run())
    made = rows(run.config.output)
    assert made["a/0.png"]["error_kind"] == "output_conflict"
    assert made["copy.png"]["status"] == "captioned"


def test_twins_of_poison_fail_with_it_and_nobody_else_is_blamed(tmp_path: Path) -> None:
    run = Run(tmp_path, [*names(8, n2="poison.png"), "poison_too.png"])
    (tmp_path / "raw/poison_too.png").write_bytes((tmp_path / "raw/poison.png").read_bytes())
    asyncio.run(run.run())
    assert run.kinds() == {"poison.png": "poison", "poison_too.png": "poison"}
    assert sum(engine.restarts for engine in run.stats.engines) <= 2 * 2 + 2


def test_empty_caption_is_retried_with_other_sampling(tmp_path: Path) -> None:
    run = Run(tmp_path, names(3, n1="moody.png"))
    asyncio.run(run.run())
    row = rows(run.config.output)["moody.png"]
    assert (row["status"], row["attempts"]) == ("captioned", 2)


def test_reasoning_is_never_part_of_a_caption_and_alone_is_not_one(tmp_path: Path) -> None:
    run = Run(tmp_path, names(6, n1="thinks.png", n2="muses.png"))
    asyncio.run(run.run())
    assert captions(run.config.output)["thinks.png"] == "caption of thinks.png"
    row = rows(run.config.output)["muses.png"]
    assert (row["status"], row["error_kind"], row["attempts"]) == ("failed", "caption_rejected", 3)
    assert row["error"] == (
        "none of 3 captions passed the checks; flags of the best one: reasoning, cut_off"
    )
    assert "muses.png" not in captions(run.config.output)


def test_item_that_kills_its_engine_is_poison_and_costs_no_other_item_anything(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, names(30, n11="poison.png"))
    asyncio.run(run.run())
    assert run.kinds() == {"poison.png": "poison"}
    assert len(captions(run.config.output)) == 29
    made = rows(run.config.output)
    assert {row["attempts"] for row in made.values() if row["caption"]} == {1}
    assert 2 <= sum(engine.restarts for engine in run.stats.engines) <= 3


def test_engines_start_concurrently(tmp_path: Path) -> None:
    run = Run(tmp_path, names(4), num_engines=3)
    asyncio.run(run.run())
    assert set(run.state_of_first_at_start.values()) == {"starting"}


def test_first_engine_starts_alone_if_it_leaves_a_cache_to_the_others(tmp_path: Path) -> None:
    run = Run(tmp_path, names(60), num_engines=3, first_alone=True)
    asyncio.run(run.run())
    assert run.state_of_first_at_start == {0: "starting", 1: "up", 2: "up"}
    assert len(captions(run.config.output)) == 60


def test_engines_start_without_the_first_one_if_it_cannot_start(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        names(4),
        start_engine=start_broken,
        first_alone=True,
        engine={"max_engine_restarts": 0},
    )
    with pytest.raises(RunStopped):
        asyncio.run(run.run())
    assert run.state_of_first_at_start == {0: "starting", 1: "retired"}


def test_engine_that_cannot_start_is_restarted_once_another_is_up(tmp_path: Path) -> None:
    files = names(60, n0="gated.png")
    run = Run(tmp_path, files, num_engines=2, start_engine=start_broken_once)
    asyncio.run(run.run_until_all_are_up())
    assert len(captions(run.config.output)) == 60
    (line,) = (line for line in run.told if "the GPU is lost" in line)
    assert "did not start and is started again" in line


def test_passing_memory_shortage_does_not_affect_engines_that_start_later(
    tmp_path: Path,
) -> None:
    run = Run(
        tmp_path,
        names(4, n0="gated.png"),
        num_engines=3,
        start_engine=start_beside_another_process,
        first_alone=True,
        engine_args=b"as the user gave them",
    )

    asyncio.run(run.run_until_all_are_up())
    assert len(captions(run.config.output)) == 4
    assert sum("end them, or lower --gpu-memory-utilization" in line for line in run.told) == 1
    told = (tmp_path / "raw/told").read_bytes().splitlines()
    assert told == [b"as the user gave them"] * 4


def test_worker_that_fails_ends_at_once_although_its_engine_has_a_process(
    tmp_path: Path,
) -> None:
    run = Run(
        tmp_path,
        names(2),
        num_engines=1,
        start_engine=start_before_a_bug,
        engine={"max_engine_restarts": 0},
    )

    async def within_a_minute() -> None:
        async with asyncio.timeout(60):
            await run.run()

    with pytest.raises(RunStopped, match="exit code 1"):
        asyncio.run(within_a_minute())
    assert "TypeError" in (run.config.output / "logs/engine-0.log").read_text()


def test_the_same_start_error_everywhere_ends_the_run_without_a_restart(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, names(4), num_engines=4, start_engine=start_broken, first_alone=True)
    with pytest.raises(RunStopped, match=r"no engine can start: .*no kernel image"):
        asyncio.run(run.run())
    assert sorted(run.state_of_first_at_start) == [0, 1]  # the others did not try
    assert sum(engine.restarts for engine in run.stats.engines) == 0
    assert run.told == []


def test_idle_worker_that_stopped_listening_does_not_delay_the_end_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_caption.driver.engine_slot.JOIN_TIMEOUT_S", 0.3)
    run = Run(tmp_path, ["gated.png"])

    async def stop_the_idle_one_and_open_the_gate() -> None:
        engines = run.stats.engines
        while (
            not all(engine.state == "up" for engine in engines) or not run.dispatcher.num_in_flight
        ):
            await asyncio.sleep(0.01)
        (idle,) = (n for n in range(2) if not run.dispatcher.busy(n))
        os.kill(engines[idle].pid or 0, signal.SIGSTOP)
        (tmp_path / "raw/gate").touch()

    async def both() -> None:
        await asyncio.wait_for(
            asyncio.gather(run.run(), stop_the_idle_one_and_open_the_gate()), timeout=120
        )

    asyncio.run(both())
    assert captions(run.config.output) == {"gated.png": "caption of gated.png"}


def test_machine_without_room_for_another_process_costs_the_engine_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, names(10), engine={"max_engine_restarts": 0})
    start = LocalExecutor.start

    async def start_the_first_only(executor: LocalExecutor, engine: int) -> LocalWorker:
        if engine:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await start(executor, engine)

    monkeypatch.setattr(LocalExecutor, "start", start_the_first_only)
    asyncio.run(run.run())
    assert len(captions(run.config.output)) == 10
    assert any("Resource temporarily unavailable" in line for line in run.told)


def test_interrupted_items_stay_pending_even_if_the_interrupt_made_them_fail(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, [])

    async def fail() -> Executor:
        driver.interrupt()
        raise OSError("its process got the signal too")

    async def interrupted() -> None:
        await driver.run(Given([Item("a.png", Document("design"), 0, "SvgElement")], ()))

    driver = run.driver(fail)
    asyncio.run(interrupted())
    assert captions(run.config.output) == {}
    run.output.close(complete=False)


def test_programs_that_an_engine_started_die_with_its_worker(tmp_path: Path) -> None:
    run = Run(tmp_path, ["gated.png"], num_engines=1, start_engine=start_with_program)
    program: list[psutil.Process] = []

    async def kill_the_worker_and_open_the_gate() -> None:
        while run.stats.engines[0].state != "up" or not run.dispatcher.num_in_flight:
            await asyncio.sleep(0.01)
        program.append(psutil.Process(int((tmp_path / "raw/program").read_text())))
        os.kill(run.stats.engines[0].pid or 0, signal.SIGKILL)
        psutil.wait_procs(program, timeout=30)
        assert not program[0].is_running() or program[0].status() == psutil.STATUS_ZOMBIE
        (tmp_path / "raw/gate").touch()

    async def both() -> None:
        await asyncio.gather(run.run(), kill_the_worker_and_open_the_gate())

    asyncio.run(both())
    assert len(captions(run.config.output)) == 1


def test_process_that_even_sigkill_does_not_end_costs_its_engine_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_caption.driver.engine_slot.JOIN_TIMEOUT_S", 0.2)
    monkeypatch.setattr("vllm_caption.engines.executors.local.KILL_GRACE_S", 0.2)
    run = Run(tmp_path, names(12, n3="gated.png"), engine={"stall_timeout_s": 3.0})
    stuck: list[int] = []

    async def stop_the_busy_one() -> None:
        while not stuck:
            await asyncio.sleep(0.01)
            busy = [n for n in range(2) if run.dispatcher.busy(n)]
            if run.stats.captioned >= 9 and len(busy) == 1:
                stuck.append(run.stats.engines[busy[0]].pid or 0)
        os.kill(stuck[0], signal.SIGSTOP)
        monkeypatch.setattr("vllm_caption.engines.executors.local.kill_session", lambda pid: None)
        monkeypatch.setattr("multiprocessing.process.BaseProcess.kill", lambda process: None)
        (tmp_path / "raw/gate").touch()

    async def both() -> None:
        await asyncio.wait_for(asyncio.gather(run.run(), stop_the_busy_one()), timeout=120)

    try:
        asyncio.run(both())
    finally:
        monkeypatch.undo()
        os.killpg(stuck[0], signal.SIGKILL)
    assert len(captions(run.config.output)) == 12
    assert any("its process does not end, even by SIGKILL" in line for line in run.told)


def test_engine_start_is_retried_if_the_machine_is_full_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, names(10), num_engines=1)
    start, refused = LocalExecutor.start, []

    async def start_at_the_third_try(executor: LocalExecutor, engine: int) -> LocalWorker:
        if len(refused) < 2:
            refused.append(asyncio.get_running_loop().time())
            raise BlockingIOError(11, "Resource temporarily unavailable")
        refused.append(asyncio.get_running_loop().time())
        return await start(executor, engine)

    monkeypatch.setattr(LocalExecutor, "start", start_at_the_third_try)
    asyncio.run(run.run())
    assert len(captions(run.config.output)) == 10
    assert refused[2] - refused[1] >= 1.0  # a pause, so that the problem can pass


def test_file_that_is_unreadable_for_a_moment_is_read_again_after_a_pause(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, names(6), num_engines=1, start_engine=start_on_a_flaky_disk)
    asyncio.run(run.run())
    assert {row["attempts"] for row in rows(run.config.output).values()} == {2}
    assert len(captions(run.config.output)) == run.stats.retried == 6


def test_flag_check_that_never_answers_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr("vllm_caption.engines.executors.local._preflight_main", never_answer)
    executor = LocalExecutor(["0"], tmp_path / "logs", check_timeout_s=0.1)
    config = RunConfig()
    with pytest.raises(RunStopped, match="vLLM could not check the model and its flags"):
        question = make_question(load_prompt(config.prompt), longest_item())
        asyncio.run(executor.check_flags((), config.image, config.sampling, question))
    executor.close()


def test_flag_check_that_dies_is_a_usage_error_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr("vllm_caption.engines.executors.local._preflight_main", die_for_memory)
    executor = LocalExecutor(["0"], tmp_path / "logs")
    config = RunConfig()
    question = make_question(load_prompt(config.prompt), longest_item())
    flags = config.engine.vllm_flags("a-model")
    with pytest.raises(UsageError, match=r"--model a-model: .* ended \(killed .* SIGKILL.*; see "):
        asyncio.run(executor.check_flags(flags, config.image, config.sampling, question))
    executor.close()


def test_worker_leaves_when_its_driver_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, names(1))
    ends: list[Channel[DriverMessage, WorkerMessage]] = []

    async def keep(end: socket.socket) -> Channel[DriverMessage, WorkerMessage]:
        ends.append(await driver_channel(end))
        return ends[0]

    monkeypatch.setattr("vllm_caption.engines.executors.local.driver_channel", keep)

    async def start_and_drop() -> psutil.Process:
        executor = LocalExecutor(["0"], tmp_path / "out/logs")
        executor.spec = WorkerSpec(
            str(tmp_path), run.config.image, run.config.sampling, 1, start_fake
        )
        worker = await executor.start(0)
        await worker.receive()  # Ready
        process = psutil.Process(worker.pid)
        ends[0].close()
        await asyncio.to_thread(process.wait, 30)
        executor.close()
        return process

    assert not asyncio.run(start_and_drop()).is_running()
    run.output.close(complete=True)


def test_gpu_workers_inherit_settings_that_need_no_compiler_unless_the_user_set_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": "/bin", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"})
    LocalExecutor(["0"], tmp_path).close()
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    assert os.environ["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("silent", "a caption without a word; the model says nothing"),
        ("muses", "reasoning without an answer; .*raise --max-tokens"),
        ("refused", "this image is refused"),
        ("exclaim", "a caption of nothing but '!'; .*--dtype bfloat16 or float32"),
    ],
)
def test_the_same_error_for_all_items_stops_the_run_and_charges_none(
    tmp_path: Path, name: str, said: str
) -> None:
    files = [f"{name}/{number}.png" for number in range(80)]
    run = Run(tmp_path, files)
    with pytest.raises(RunStopped, match=rf"the same error for all items, 64 answers .*: {said}"):
        asyncio.run(run.run())
    assert rows(run.config.output) == captions(run.config.output) == {}
    assert run.stats.failed == 0


def test_engine_that_alone_repeats_an_error_is_restarted_and_no_item_fails(
    tmp_path: Path,
) -> None:
    files = names(200, n0="gated.png")
    run = Run(tmp_path, files, start_engine=start_overflowing_once, max_same_errors=8)

    async def open_the_gate_after_the_restart() -> None:
        while not any(engine.restarts for engine in run.stats.engines):
            await asyncio.sleep(0.01)
        (tmp_path / "raw/gate").touch()

    async def both() -> None:
        await asyncio.gather(run.run(), open_the_gate_after_the_restart())

    asyncio.run(both())
    assert captions(run.config.output) == {file: f"caption of {file}" for file in files}
    assert sum(engine.restarts for engine in run.stats.engines) == 1
    (told,) = [line for line in run.told if "same error" in line]
    assert "while others caption (a caption of nothing but '!') and is killed" in told


def test_same_error_of_the_few_items_that_failed_before_does_not_stop_a_rerun(
    tmp_path: Path,
) -> None:
    files = [f"refused/{number}.png" for number in range(12)]
    asyncio.run(Run(tmp_path, files, max_same_errors=0).run())
    again = Run(tmp_path, files, max_same_errors=4)
    again.failed_before = set(files)
    asyncio.run(again.run())
    assert set(again.kinds()) == set(files)


def test_a_caption_shows_that_other_errors_are_the_fault_of_their_items(tmp_path: Path) -> None:
    bad = [f"refused/{number}.png" for number in range(60)]
    run = Run(tmp_path, [*bad[:4], "good.png", *bad[4:]], num_engines=1, max_same_errors=40)
    asyncio.run(run.run())
    assert run.kinds() == dict.fromkeys(bad, "engine_error")
    assert captions(run.config.output) == {"good.png": "caption of good.png"}


def test_answer_or_error_that_cannot_be_encoded_is_cleaned_and_kills_no_worker(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, ["halved.png", "refused.png"], num_engines=1)
    asyncio.run(run.run())
    made = rows(run.config.output)
    assert made["halved.png"]["caption"] == "half a star \ufffd in red"
    assert made["refused.png"]["error"] == "this image is refused \ufffd"
    assert run.stats.engines[0].restarts == 0


def test_death_of_a_worker_is_reported_with_who_killed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another process of this machine may run out of memory meanwhile.
    monkeypatch.setattr("vllm_caption.engines.deaths.PROC", tmp_path)
    run = Run(tmp_path, names(4, n1="poison.png"), num_engines=1)
    asyncio.run(run.run())
    died = [line for line in run.told if "died" in line]
    assert died
    assert all("its process ended (killed from outside by SIGKILL: by a" in line for line in died)


def test_slow_decoder_delays_its_item_and_costs_no_engine(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        names(4, n0="slow.png"),
        num_engines=1,
        start_engine=start_on_an_odd_disk,
        engine={"stall_timeout_s": 1.8},
    )
    asyncio.run(run.run())
    assert len(captions(run.config.output)) == 4
    assert (run.told, run.stats.engines[0].restarts) == ([], 0)


def test_decoder_that_never_ends_costs_only_its_item(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        names(6, n0="stuck.png"),
        num_engines=1,
        start_engine=start_on_an_odd_disk,
        engine={"stall_timeout_s": 1.8, "item_timeout_s": 0.3},
    )
    asyncio.run(run.run())
    assert run.kinds() == {"stuck.png": "timeout"}
    row = rows(run.config.output)["stuck.png"]
    assert row["error"] == "reading and decoding it took more than 0.3 s (--item-timeout)"
    assert len(captions(run.config.output)) == 5
    assert (run.told, run.stats.engines[0].restarts) == ([], 0)


def test_engine_that_works_on_one_item_beyond_the_stall_timeout_is_left_alone(
    tmp_path: Path,
) -> None:
    run = Run(
        tmp_path,
        ["gated.png"],
        num_engines=1,
        start_engine=start_with_quick_beats,
        engine={"stall_timeout_s": 1.8},
    )

    async def open_the_gate_late() -> None:
        while not run.dispatcher.num_in_flight:
            await asyncio.sleep(0.01)
        await asyncio.sleep(2.5)
        (tmp_path / "raw/gate").touch()

    async def both() -> None:
        await asyncio.gather(run.run(), open_the_gate_late())

    asyncio.run(both())
    assert captions(run.config.output) == {"gated.png": "caption of gated.png"}
    assert (run.told, run.stats.engines[0].restarts) == ([], 0)
