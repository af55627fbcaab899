"""Whatever happens to the driver, its disk and its folders, nothing is lost, torn or repeated.

The engines are fakes; processes, messages, files and faults are real.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from support.faulty_disk import needs_compiler
from support.job import (
    FAKE,
    QUICK,
    Result,
    captions,
    draw_shape,
    input_flags,
    make_gated,
    make_input,
    rows,
    run,
    start,
    status,
    wait_until,
    write_document,
)

HERE = Path(__file__).parent


def fake_run(folder: Path, *flags: str, **options: object) -> Result:
    """One run over ``folder`` into ``folder/out`` with fake engines."""
    arguments = (*input_flags(folder), f"--output={folder / 'out'}", *QUICK, *flags)
    return run(*arguments, command=FAKE, **options)


def assert_all_captioned(folder: Path, files: list[str]) -> None:
    made = rows(folder / "out")
    assert captions(folder / "out") == {file: f"caption of {file}" for file in files}
    assert {file: row["caption"] for file, row in made.items()} == captions(folder / "out")


# --- kill -9 -----------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kills", "options"),
    [
        (50, ()),
        pytest.param(10, ("--no-txt",), id="without .txt files"),
        pytest.param(10, ("--faulty",), marks=needs_compiler, id="on a faulty disk"),
    ],
)
def test_driver_killed_at_random_moments_loses_tears_and_repeats_nothing(
    kills: int, options: tuple[str, ...]
) -> None:
    # As a module: if it were a script, each worker process would import all of it.
    command = [sys.executable, "-c", "import chaos; chaos.main()", f"--kills={kills}", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    halves = [
        subprocess.Popen([*command, f"--seed={seed}"], cwd=HERE, **pipes)
        for seed in (1, 2)  # concurrently: most of the time is waiting
    ]
    said = [half.communicate(timeout=580) for half in halves]
    for half, (stdout, stderr) in zip(halves, said, strict=True):
        assert half.returncode == 0, stderr[-3000:]
        assert stdout.startswith(f"{kills} kills ")
        assert "nothing lost" in stdout


def test_caption_lost_in_a_power_failure_is_restored_from_its_row(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    assert fake_run(tmp_path).exit_code == 0
    output = tmp_path / "out"
    lines = [msgspec.json.encode(journal_row(row)) for row in rows(output).values()]
    for part in (output / "manifest.parquet").iterdir():
        part.unlink()
    (output / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (output / f"{files[0]}.txt").unlink()
    (output / f"{files[1]}.txt").write_bytes(b"")
    result = fake_run(tmp_path)
    assert (result.exit_code, "(0 in this run)" in result.stdout) == (0, True)
    assert_all_captioned(tmp_path, files)


def journal_row(row: dict[str, object]) -> dict[str, object]:
    """A row as the journal holds it."""
    return {**row, "finished_at": 0}


# --- the disk ----------------------------------------------------------------------------------


def test_file_size_limit_stops_the_run_with_a_sentence_and_a_rerun_resumes(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 60)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    result = fake_run(tmp_path, preexec_fn=limit)
    assert result.exit_code == 3
    assert "Stopped: the output cannot be read or written" in result.stderr
    assert "Traceback" not in result.stderr
    kept = captions(tmp_path / "out")
    assert 0 < len(kept) < 60
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.txt")}
    assert fake_run(tmp_path).exit_code == 0
    assert_all_captioned(tmp_path, files)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A separate file system, if this process may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", os.fspath(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system; the file size limit is tested besides")
    try:
        yield folder
    finally:
        while folder.is_mount():
            subprocess.run(["umount", "-l", os.fspath(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    command = ["mount", "-o", f"remount,{options}", os.fspath(folder)]
    subprocess.run(command, check=True, capture_output=True)


def test_full_disk_stops_the_run_and_a_rerun_resumes_once_there_is_space(tmp_path: Path) -> None:
    files = make_input(tmp_path, 200)
    with small_disk(tmp_path / "out", "400k") as output:
        result = fake_run(tmp_path)
        assert result.exit_code == 3, result.stderr
        assert "No space left on device" in result.stderr
        assert "Traceback" not in result.stderr
        stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*.txt")}
        assert 0 < len(stamps) < 200
        remount(output, "size=8m")
        assert fake_run(tmp_path).exit_code == 0
        assert_all_captioned(tmp_path, files)
        assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_output_hidden_by_another_mount_stops_the_run_and_a_rerun_resumes(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 60) + make_gated(tmp_path)
    with small_disk(tmp_path / "out", "8m") as output:
        process = start(*input_flags(tmp_path), f"--output={output}", *QUICK, command=FAKE)
        wait_until(lambda: len(list(output.rglob("*.txt"))) >= 60, process)
        subprocess.run(["mount", "-t", "tmpfs", "none", os.fspath(output)], check=True)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 3, stderr
        assert f"Stopped: the output cannot be read or written at {output}: the path now" in stderr
        assert "Traceback" not in stderr
        assert not list(output.iterdir())
        subprocess.run(["umount", os.fspath(output)], check=True)
        (tmp_path / "raw/gate").touch()
        result = fake_run(tmp_path)
        assert "captioned 61 (1 in this run)" in result.stdout
        assert_all_captioned(tmp_path, files)


def test_unwritable_engine_log_is_reported_without_a_traceback(tmp_path: Path) -> None:
    make_input(tmp_path, 2)
    (tmp_path / "out/logs/engine-0.log").mkdir(parents=True)
    result = fake_run(tmp_path, "-dp=1", "--max-engine-restarts=0")
    assert result.exit_code == 3
    assert "engine-0.log cannot be written (Is a directory)" in result.stderr
    assert "Traceback" not in result.stderr


def test_images_root_that_disappears_stops_the_run_instead_of_failing_every_item(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 400)
    arguments = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}", *QUICK)
    slow = {"FAKE_SLOW_STAGE": "engine"}
    process = start(*arguments, command=FAKE, environment=slow)
    wait_until(lambda: len(list((tmp_path / "out").rglob("*.txt"))) >= 5, process)
    (tmp_path / "raw").rename(tmp_path / "moved")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3, stderr
    assert f"Stopped: --images-root {tmp_path / 'raw'} is gone; mount it and run again" in stderr
    assert not [row for row in rows(tmp_path / "out").values() if row["status"] == "failed"]
    (tmp_path / "moved").rename(tmp_path / "raw")
    assert fake_run(tmp_path).exit_code == 0
    assert_all_captioned(tmp_path, files)


def test_run_continues_when_its_terminal_is_gone(tmp_path: Path) -> None:
    files = make_input(tmp_path, 60)
    arguments = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=2")
    with open("/dev/full", "w") as full:
        command = [sys.executable, *FAKE, *arguments]
        assert subprocess.run(command, stdout=full, stderr=full, timeout=60).returncode == 0
    assert_all_captioned(tmp_path, files)


# --- long runs ---------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_memory_and_descriptors_of_the_driver_do_not_grow_over_20_000_items(
    tmp_path: Path,
) -> None:
    count = 20_000
    make_small_files(tmp_path, count)
    arguments = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=2", "--quiet")
    process = start(*arguments, command=FAKE)
    driver = psutil.Process(process.pid)
    after_5000: list[tuple[float, int]] = []
    while process.poll() is None:
        now = status(tmp_path / "out")
        is_captioning = now.get("state") == "running" and now["phase"] is None
        with contextlib.suppress(psutil.Error):
            if is_captioning and now["captioned"] >= 5_000:
                after_5000.append((driver.memory_info().rss / 2**20, driver.num_fds()))
        time.sleep(0.2)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert f"captioned {count:,} ({count:,} in this run), failed 0" in stdout
    assert after_5000[-1][0] < 1.1 * after_5000[0][0], after_5000
    # Some files are open only for a moment; and at first, those of the input, which is still read.
    first, last = (min(fds for _, fds in few) for few in (after_5000[:10], after_5000[-10:]))
    assert last <= first + 2, after_5000


def make_small_files(folder: Path, count: int) -> None:
    """Small distinct images, in documents of fifty."""
    (folder / "raw").mkdir()
    draw_shape(1).resize((16, 16)).save(folder / "one.png")
    image = (folder / "one.png").read_bytes()
    for first in range(0, count, 1000):
        (folder / f"raw/{first}").mkdir()
        for number in range(first, first + 1000):
            (folder / f"raw/{first}/{number}.png").write_bytes(image + str(number).encode())
    for first in range(0, count, 50):
        names = [f"{first // 1000 * 1000}/{number}.png" for number in range(first, first + 50)]
        write_document(folder, f"design_{first:06}", names, ["SvgElement"] * 50)
