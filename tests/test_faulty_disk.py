"""What an errno means: one odd error of a file system ends no run and loses no caption.

The engines are fakes; the file system answers with errors that `support.faulty_disk` puts before
the C library.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from support.faulty_disk import Fault, faulty_disk, needs_compiler
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

from vllm_caption.errors import ItemError
from vllm_caption.store import caption_files
from vllm_caption.store.atomic import write_file
from vllm_caption.store.caption_files import CaptionFiles
from vllm_caption.store.disk.attempts import Disk
from vllm_caption.store.disk.verdicts import Operation, Verdict, judge
from vllm_caption.store.layout import is_temporary, parts

OPERATIONS: tuple[Operation, ...] = get_args(Operation)


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "verdicts"),
    [
        # number        start       caption     file       sync        lock
        (errno.EINVAL, ("disk", "item", "disk", "optional", "optional")),
        (errno.EILSEQ, ("disk", "item", "disk", "disk", "disk")),
        (errno.ENAMETOOLONG, ("disk", "item", "disk", "disk", "disk")),
        (errno.ENOTDIR, ("disk", "item", "disk", "disk", "disk")),
        (errno.EISDIR, ("disk", "item", "disk", "optional", "disk")),
        (errno.EIO, ("passing", "passing", "passing", "passing", "passing")),
        (errno.ESTALE, ("passing", "passing", "passing", "passing", "passing")),
        (errno.EAGAIN, ("passing", "passing", "passing", "passing", "passing")),
        (errno.ENOTCONN, ("passing", "passing", "passing", "passing", "passing")),
        (errno.EBUSY, ("disk", "passing", "passing", "optional", "passing")),
        (errno.EACCES, ("disk", "passing", "passing", "optional", "passing")),
        (errno.ENOSYS, ("disk", "disk", "disk", "optional", "optional")),
        (errno.EOPNOTSUPP, ("disk", "disk", "disk", "optional", "optional")),
        (errno.ENOLCK, ("disk", "disk", "disk", "disk", "optional")),
        (errno.ENOSPC, ("disk", "disk", "disk", "disk", "disk")),
        (errno.EDQUOT, ("disk", "disk", "disk", "disk", "disk")),
        (errno.EROFS, ("disk", "disk", "disk", "disk", "disk")),
        (errno.EFBIG, ("disk", "disk", "disk", "disk", "disk")),
        (errno.ENOENT, ("disk", "disk", "disk", "disk", "disk")),
        (errno.ENODEV, ("disk", "disk", "disk", "disk", "disk")),
        (None, ("disk", "disk", "disk", "disk", "disk")),
    ],
)
def test_errno_and_operation_decide_who_is_to_blame(
    number: int | None, verdicts: tuple[Verdict, ...]
) -> None:
    assert OPERATIONS == ("start", "caption", "file", "sync", "lock", "remove", "inform")
    found = tuple(judge(number, operation) for operation in OPERATIONS)
    assert found == (*verdicts, "optional", "optional")


class Failing:
    """An operation that fails with these numbers, one after the other, and then succeeds."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)
        self.waits: list[float] = []
        self.disk = Disk(self.waits.append)

    def __call__(self) -> str:
        if self.numbers:
            number = self.numbers.pop(0)
            raise OSError(number, os.strerror(number), "there")
        return "done"


def test_operation_that_fails_for_a_moment_is_retried_after_1_4_and_16_s() -> None:
    failing = Failing(errno.EIO, errno.ESTALE, errno.EIO)
    assert failing.disk.attempt("file", failing) == "done"
    assert failing.waits == [1, 4, 16]
    notes = list(failing.disk.take_notes())
    assert [note.partition("(")[2].partition(";")[0] for note in notes] == [
        "Input/output error at there)",
        "Stale file handle at there)",
    ]


def test_operation_that_still_fails_after_21_s_raises_its_error() -> None:
    failing = Failing(*[errno.EIO] * 4)
    with pytest.raises(OSError, match="Input/output"):
        failing.disk.attempt("caption", failing)
    assert failing.waits == [1, 4, 16]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EINVAL])
def test_error_that_will_not_pass_is_not_retried(number: int) -> None:
    failing = Failing(number)
    with pytest.raises(OSError):
        failing.disk.attempt("caption", failing)
    assert failing.waits == []


def test_denial_that_outlasted_the_retries_once_is_not_retried_again() -> None:
    failing = Failing(*[errno.EACCES] * 5)
    for _ in range(2):
        with pytest.raises(PermissionError):
            failing.disk.attempt("caption", failing)
    assert failing.waits == [1, 4, 16]


def test_what_the_run_does_without_is_noted_once() -> None:
    failing = Failing(errno.EINVAL, errno.EINVAL, errno.EIO)
    disk = failing.disk
    assert not disk.try_once("sync", failing, "no sync")
    assert not disk.try_once("sync", failing, "no sync")
    assert list(disk.take_notes()) == ["no sync (Invalid argument)."]
    with pytest.raises(OSError, match="Input/output"):
        disk.try_once("sync", failing, "no sync")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EPROTO, errno.EOPNOTSUPP, errno.ENXIO])
def test_unexpected_error_for_one_caption_fails_only_its_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    answer_with(number, monkeypatch, "odd.png")
    files = CaptionFiles(tmp_path)
    files.write("a.png", "a")
    with pytest.raises(ItemError, match=r"output_conflict: its \.txt cannot be written"):
        files.write("odd.png", "b")
    files.write("c.png", "c")
    assert captions(tmp_path) == {"a.png": "a", "c.png": "c"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_full_disk_fails_no_item_although_an_empty_file_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    answer_with(number, monkeypatch, "odd.png")
    with pytest.raises(OSError, match=os.strerror(number)):
        CaptionFiles(tmp_path).write("odd.png", "b")


def test_removed_output_folder_fails_no_item(tmp_path: Path) -> None:
    files = CaptionFiles(tmp_path / "out")
    (tmp_path / "out").mkdir()
    files.write("a.png", "a")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        files.write("b.png", "b")


def answer_with(number: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make the disk fail with this error when one caption is written."""

    def write(path: str, *arguments: Any, **options: Any) -> OSError | None:
        if path.startswith(name):
            raise OSError(number, os.strerror(number), path)
        return write_file(path, *arguments, **options)

    monkeypatch.setattr(caption_files, "write_file", write)


# --- whole runs --------------------------------------------------------------------------------


def faulty_run(folder: Path, *faults: Fault, waits_s: float = 0.01) -> Result:
    """One run over ``folder`` into ``folder/out`` on a disk with these faults."""
    arguments = (*input_flags(folder), f"--output={folder / 'out'}", *QUICK)
    environment = faulty_disk(*faults) | {"FAKE_WAITS_S": str(waits_s)}
    result = run(*arguments, "--checkpoint-interval=4", command=FAKE, environment=environment)
    assert "Traceback" not in result.stderr
    return result


def assert_captioned(folder: Path, files: list[str]) -> None:
    output = folder / "out"
    assert captions(output) == {file: f"caption of {file}" for file in files}
    made = {file: row for file, row in rows(output).items() if row["status"] == "captioned"}
    assert {file: row["caption"] for file, row in made.items()} == captions(output)
    below = (str(path.relative_to(output)) for path in output.rglob("*"))
    assert [path for path in below if is_temporary(path)] == []


@needs_compiler
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
@pytest.mark.parametrize("call", ["fsync", "syncfs"])
def test_disk_that_cannot_sync_is_reported_once_and_costs_neither_run_nor_rows(
    tmp_path: Path, call: str, number: int
) -> None:
    files = make_input(tmp_path, 10)
    for _ in range(2):
        result = faulty_run(tmp_path, Fault(call, number))
        assert result.exit_code == 0
        assert_captioned(tmp_path, files)
        (part,) = parts(tmp_path / "out/manifest.parquet")
    assert part.name == "part-00000004.parquet"  # from the first run: the second wrote none
    result = faulty_run(tmp_path, Fault(call, number))
    assert result.stderr.count("power loss") <= 1


@needs_compiler
def test_disk_that_cannot_sync_is_named(tmp_path: Path) -> None:
    make_input(tmp_path, 10)
    result = faulty_run(tmp_path, Fault("fsync", errno.EINVAL), Fault("syncfs", errno.ENOSYS))
    assert result.stderr.count("cannot sync: a power loss may cost the last rows (Invalid") == 1
    assert result.stderr.count("no syncfs: a power loss may cost captions (Function not") == 1


@needs_compiler
@pytest.mark.parametrize("call", ["rename", "mkdir"])
def test_name_that_the_file_system_does_not_allow_fails_only_its_item(
    tmp_path: Path, call: str
) -> None:
    files = make_input(tmp_path, 10)
    odd = "a:b/x.png" if call == "mkdir" else "a:b.png"
    (tmp_path / "raw" / odd).parent.mkdir(exist_ok=True)
    draw_shape(99).save(tmp_path / "raw" / odd)
    write_document(tmp_path, "a_odd", [odd], ["SvgElement"])
    for _ in range(2):
        result = faulty_run(tmp_path, Fault(call, errno.EINVAL, part="out/a:b"))
        assert result.exit_code == 1
        assert_captioned(tmp_path, files)
        row = rows(tmp_path / "out")[odd]
        assert (row["status"], row["error_kind"]) == ("failed", "bad_name")
        assert "does not allow such a name (Invalid argument)" in row["error"]


@needs_compiler
@pytest.mark.parametrize("name", ["status.json", "documents.parquet", "monitor.parquet"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EROFS])
def test_file_that_only_informs_never_ends_a_run(tmp_path: Path, name: str, number: int) -> None:
    files = make_input(tmp_path, 10)
    result = faulty_run(tmp_path, Fault("rename", number, part=f"out/{name}"), waits_s=60)
    assert result.exit_code == 0
    assert_captioned(tmp_path, files)
    if name != "monitor.parquet":
        assert result.stderr.count(f"{name} cannot be written now") == 1


@needs_compiler
def test_status_that_could_not_be_written_is_written_the_next_time(tmp_path: Path) -> None:
    make_input(tmp_path, 4)
    fault = Fault("rename", errno.EIO, part="out/status.json", last=1)
    assert faulty_run(tmp_path, fault).exit_code == 0
    assert '"finished"' in (tmp_path / "out/status.json").read_text()


@needs_compiler
def test_leftover_that_cannot_be_removed_costs_neither_run_nor_rows(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 10)
    faults = [Fault("unlink", errno.EIO, part=part) for part in ("manifest.parquet", ".rewriting")]
    for _ in range(2):
        assert faulty_run(tmp_path, *faults).exit_code == 0
        assert_captioned(tmp_path, files)


@needs_compiler
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_disk_without_locks_is_reported_once_and_used(tmp_path: Path, number: int) -> None:
    files = make_input(tmp_path, 4)
    result = faulty_run(tmp_path, Fault("flock", number, part=".run.lock"))
    assert result.exit_code == 0
    assert result.stderr.count("has no locks, so nothing keeps a second run on another") == 1
    assert_captioned(tmp_path, files)


@needs_compiler
def test_second_run_on_this_machine_is_refused_even_if_the_disk_has_no_locks(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, 2)
    make_gated(tmp_path)
    fault = Fault("flock", errno.ENOLCK, part=".run.lock")
    arguments = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}", *QUICK)
    first = start(*arguments, command=FAKE, environment=faulty_disk(fault))
    wait_until(lambda: len(captions(tmp_path / "out")) == 2, first)
    second = faulty_run(tmp_path, fault)
    assert second.exit_code == 2
    assert f"is in use by process {first.pid} on " in second.stderr
    (tmp_path / "raw/gate").touch()
    assert first.communicate(timeout=60)[1]
    assert first.returncode == 0
    assert faulty_run(tmp_path, fault).exit_code == 0  # its owner is dead


@needs_compiler
def test_disk_that_fails_every_20th_time_loses_and_duplicates_nothing(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 60)
    calls = ("open", "write", "rename", "fsync", "syncfs", "mkdir", "ftruncate", "stat")
    faults = [Fault(call, errno.EIO, part="/out/", first=3, every=20) for call in calls]
    result = faulty_run(tmp_path, *faults)
    assert result.exit_code == 0, result.stderr
    assert_captioned(tmp_path, files)
    assert len(rows(tmp_path / "out")) == len(files)
    assert result.stderr.count("failed for a moment (Input/output error") == 1


@needs_compiler
@pytest.mark.parametrize("call", ["write", "rename", "open"])
def test_disk_that_stays_away_stops_the_run_and_the_rerun_completes_it(
    tmp_path: Path, call: str
) -> None:
    files = make_input(tmp_path, 10)
    result = faulty_run(tmp_path, Fault(call, errno.EIO, part="/out/d0", first=3))
    assert result.exit_code == 3
    assert "Stopped: " in result.stderr
    assert "Input/output error" in result.stderr
    assert len(captions(tmp_path / "out")) < len(files)
    assert faulty_run(tmp_path).exit_code == 0
    assert_captioned(tmp_path, files)


@needs_compiler
def test_part_that_can_never_be_synced_is_not_duplicated_by_reruns(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 4)
    for _ in range(3):
        fault = Fault("fsync", errno.EIO, part="out/manifest.parquet", first=2)
        assert faulty_run(tmp_path, fault).exit_code == 3
        said = status(tmp_path / "out")  # everything was captioned, but not everything saved
        assert (said["state"], "Input/output error" in said["reason"]) == ("stopped", True)
        assert len(parts(tmp_path / "out/manifest.parquet")) <= 1
    assert faulty_run(tmp_path).exit_code == 0
    assert_captioned(tmp_path, files)


@needs_compiler
def test_unwritable_folder_fails_only_its_items(tmp_path: Path) -> None:
    files = make_input(tmp_path, 20)
    result = faulty_run(tmp_path, Fault("open", errno.EACCES, part="out/d1/"))
    assert result.exit_code == 1
    assert_captioned(tmp_path, files[:10])
    for file in files[10:]:
        row = rows(tmp_path / "out")[file]
        assert row["error_kind"] == "output_conflict"
        assert "(Permission denied); give this user the rights to its folder" in row["error"]


@needs_compiler
def test_output_that_becomes_unwritable_stops_the_run_instead_of_failing_every_item(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, 20)
    parts_of = ("out/d0/.", "out/d1/.", "out/.0000")  # what is written, not what is read
    of_captions = [Fault("open", errno.EACCES, part=part) for part in parts_of]
    result = faulty_run(tmp_path, *of_captions)
    assert result.exit_code == 3
    assert [row for row in rows(tmp_path / "out").values() if row["status"] == "failed"] == []


@needs_compiler
def test_unreadable_caption_file_fails_its_item_and_stays(tmp_path: Path) -> None:
    files = make_input(tmp_path, 10)
    (tmp_path / "out/d0").mkdir(parents=True)
    (tmp_path / f"out/{files[0]}.txt").write_text("somebody's")
    result = faulty_run(tmp_path, Fault("open", errno.EACCES, part=f"out/{files[0]}.txt"))
    assert result.exit_code == 1
    assert rows(tmp_path / "out")[files[0]]["error_kind"] == "output_conflict"
    assert captions(tmp_path / "out")[files[0]] == "somebody's"
    assert len(captions(tmp_path / "out")) == len(files)
