"""What is written to the output folder, in which order, and what a rerun does with it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from support.job import as_older_version, captions, rows

from vllm_caption.errors import ItemError, RunStopped, UsageError
from vllm_caption.store.caption_files import CaptionFiles
from vllm_caption.store.checkpoint import Checkpoint
from vllm_caption.store.disk.helper_threads import NUM_HELPERS
from vllm_caption.store.layout import TEMPORARY_FILES, part_name, parts, temporary_name
from vllm_caption.store.lock import find_holder
from vllm_caption.store.output import NewCaption, Output
from vllm_caption.store.reader import FolderRows
from vllm_caption.store.rows import Row, hash_of


def row(file: str, **columns: object) -> Row:
    defaults: dict[str, object] = {
        "document": "doc",
        "element_index": 0,
        "element_type": "SvgElement",
        "status": "captioned",
        "caption": f"caption of {file}",
        "finished_at": 1_700_000_000_000_000,
        "run_id": "run",
    }
    return Row(file=file, **(defaults | columns))  # type: ignore[arg-type]


def journal(root: Path) -> list[str]:
    return [json.loads(line)["file"] for line in (root / "journal.jsonl").read_text().splitlines()]


# --- .txt files ------------------------------------------------------------------------------


def test_caption_file_holds_only_the_caption_in_utf8_without_a_newline(tmp_path: Path) -> None:
    CaptionFiles(tmp_path).write("图形/a b.png", "红色圆形 – round")
    assert (tmp_path / "图形/a b.png.txt").read_bytes() == "红色圆形 – round".encode()


def test_caption_file_of_the_longest_legal_name_is_written_and_leaves_no_temporary_file(
    tmp_path: Path,
) -> None:
    file = "d/" + "a" * 247 + ".png"
    files = CaptionFiles(tmp_path)
    files.check_name(file)
    files.write(file, "caption")
    assert os.listdir(tmp_path / "d") == ["a" * 247 + ".png.txt"]


def test_name_that_leaves_no_room_for_txt_is_bad_name() -> None:
    with pytest.raises(ItemError, match="bad_name"):
        CaptionFiles(Path("out")).check_name("d/" + "a" * 248 + ".png")


def test_caption_inside_the_manifest_folder_is_output_conflict() -> None:
    with pytest.raises(ItemError, match="output_conflict"):
        CaptionFiles(Path("out")).check_name("manifest.parquet/x.png")


@pytest.mark.parametrize("order", [("x", "x.txt/y"), ("x.txt/y", "x")])
def test_caption_that_needs_a_folder_where_another_is_a_file_is_output_conflict(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    files = CaptionFiles(tmp_path)
    files.write(order[0], "first")
    with pytest.raises(ItemError, match="output_conflict"):
        files.write(order[1], "second")
    assert files.read(order[0]) == "first"
    assert files.read(order[1]) is None


def test_empty_caption_file_does_not_count_as_a_caption(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert CaptionFiles(tmp_path).read("a") is None


# --- rows and parts --------------------------------------------------------------------------


def test_rows_go_to_the_journal_first_and_to_a_part_at_each_interval(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, interval=3)
    for name in "abcd":
        checkpoint.append(row(name))
    assert [path.name for path in parts(checkpoint.folder)] == ["part-00000001.parquet"]
    assert journal(tmp_path) == ["d"]
    checkpoint.close()
    assert list(rows(tmp_path)) == list("abcd")
    assert journal(tmp_path) == []


def test_rows_of_a_killed_run_come_from_its_journal_except_for_a_torn_line(
    tmp_path: Path,
) -> None:
    Checkpoint(tmp_path, interval=100).append(row("a", recipe_id="r1"))
    with open(tmp_path / "journal.jsonl", "ab") as out:
        out.write(b'{"file":"b","docu')
    checkpoint = Checkpoint(tmp_path, interval=100)
    assert {file: known.recipe_id for file, known in checkpoint.states().items()} == {"a": "r1"}
    checkpoint.append(row("c"))
    assert journal(tmp_path) == ["c"]


def test_rows_survive_a_kill_although_somebody_removed_the_journal(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, interval=100)
    checkpoint.append(row("a"))
    (tmp_path / "journal.jsonl").unlink()
    checkpoint.append(row("b"))
    assert journal(tmp_path) == ["b"]
    assert set(Checkpoint(tmp_path, interval=100).states()) == {"a", "b"}


def test_last_row_of_an_item_counts(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, interval=1)
    checkpoint.append(row("a", status="failed", error_kind="missing_file", caption=None))
    checkpoint.append(row("a", flags=("too_long",)))
    known = checkpoint.states()["a"]
    assert (known.status, known.flags, known.error_kind) == ("captioned", "too_long", None)


def test_compaction_leaves_one_part_with_the_last_row_of_each_item(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, interval=2)
    for name, caption in (("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("b", "5")):
        checkpoint.append(row(name, caption=caption))
    checkpoint.compact()
    assert len(parts(checkpoint.folder)) == 1
    captions = {file: row["caption"] for file, row in rows(tmp_path).items()}
    assert captions == {"a": "3", "b": "5", "c": "4"}


def test_rows_after_a_compaction_are_newer_than_it(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, interval=1)
    for caption in ("old", "older", "compacted"):
        checkpoint.append(row("a", caption=caption))
    checkpoint.compact()
    checkpoint.append(row("a", caption="new"))
    assert [row["caption"] for row in rows(tmp_path).values()] == ["new"]


def test_compaction_that_was_killed_before_it_removed_the_old_parts_changes_nothing(
    tmp_path: Path,
) -> None:
    checkpoint = Checkpoint(tmp_path, interval=1)
    checkpoint.append(row("a", caption="old"))
    checkpoint.append(row("a", caption="new"))
    kept = {path: path.read_bytes() for path in parts(checkpoint.folder)}
    checkpoint.compact()
    for path, content in kept.items():
        path.write_bytes(content)
    reopened = Checkpoint(tmp_path, interval=1)
    assert [row["caption"] for row in rows(tmp_path).values()] == ["new"]
    reopened.compact()
    assert len(parts(reopened.folder)) == 1


def test_manifest_is_one_dataset_for_pandas_and_pyarrow(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, interval=2)
    for name in "abcde":
        checkpoint.append(row(name, flags=("cut_off",), output_tokens=7))
    checkpoint.close()
    frame = pd.read_parquet(tmp_path / "manifest.parquet")
    assert frame["file"].tolist() == list("abcde")
    assert frame["output_tokens"].sum() == 35
    assert frame["finished_at"].iloc[0] == pd.Timestamp("2023-11-14T22:13:20Z")
    assert ds.dataset(tmp_path / "manifest.parquet").count_rows() == 5


COLUMNS = """
file: string
document: string
element_index: int32
element_type: string
item_id: string
image_path: string
caption_path: string
status: string
caption: string
structured: string
finish_reason: string
flags: list<element: string>
error_kind: string
error: string
attempts: int32
prompt_tokens: int32
output_tokens: int32
image_width: int32
image_height: int32
backdrop: string
image_sha256: string
same_as: string
twin_key: string
recipe_id: string
model: string
prompt_name: string
engine: int32
queue_s: float
prepare_s: float
render_queue_s: float
render_s: float
generate_s: float
finished_at: timestamp[us, tz=UTC]
run_id: string
"""


def test_columns_of_a_part_have_these_names_and_types_in_this_order(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, interval=1)
    checkpoint.append(row("a"))
    (part,) = parts(checkpoint.folder)
    columns = [f"{field.name}: {field.type}" for field in pq.read_schema(part)]
    assert columns == COLUMNS.split("\n")[1:-1]


def test_row_survives_a_round_trip_through_a_part(tmp_path: Path) -> None:
    full = row("a", flags=("loop", "cut_off"), attempts=2, generate_s=0.5, twin_key="ab")
    checkpoint = Checkpoint(tmp_path, interval=2)
    for each in (full, row("b")):
        checkpoint.append(each)
    assert list(FolderRows(tmp_path).newest_first()) == [full, row("b")]


def test_column_that_an_older_part_lacks_is_null(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, interval=1)
    checkpoint.append(row("a", engine=3))
    (part,) = parts(checkpoint.folder)
    pq.write_table(pq.read_table(part).drop_columns(["engine", "same_as"]), part)
    assert list(FolderRows(tmp_path).tuples(("file", "engine"))) == [("a", None)]
    assert [read.engine for read in FolderRows(tmp_path).newest_first()] == [None]


def test_folder_of_a_version_with_fewer_columns_is_read_continued_and_compacted(
    tmp_path: Path,
) -> None:
    timed = {"prepare_s": 0.25, "generate_s": 1.0}
    new = {"render_queue_s": 0.5, "render_s": 0.125}
    checkpoint = Checkpoint(tmp_path, interval=3)
    for name in "abcd":
        checkpoint.append(row(name, **timed, **new))
    assert journal(tmp_path) == ["d"]
    as_older_version(tmp_path, *new)
    continued = Checkpoint(tmp_path, interval=3)
    continued.append(row("d", **timed, **new))
    assert continued.states().keys() == {"a", "b", "c", "d"}
    continued.compact()
    (part,) = parts(continued.folder)
    read = {each["file"]: each for each in pq.read_table(part).to_pylist()}
    assert [read[name]["prepare_s"] for name in "abcd"] == [0.25] * 4
    assert [read[name]["render_s"] for name in "abcd"] == [None, None, None, 0.125]


# --- the folder as a whole -------------------------------------------------------------------


def test_temporary_files_of_a_killed_run_are_removed_by_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").mkdir()
    names = (*TEMPORARY_FILES, f"manifest.parquet/{temporary_name(part_name(3))}")
    for name in names:
        (tmp_path / name).write_text("half")
    output = Output(tmp_path, checkpoint_interval=10)
    assert [name for name in names if (tmp_path / name).exists()] == []
    output.close(complete=True)


def test_row_is_recorded_only_after_its_caption_file_is_in_place(tmp_path: Path) -> None:
    output = Output(tmp_path, checkpoint_interval=10)
    output.save_caption(row("x"))
    with pytest.raises(ItemError):
        output.save_caption(row("x.txt/y"))
    assert journal(tmp_path) == ["x"]
    output.close(complete=True)


def test_captions_that_are_saved_together_have_rows_in_their_order_but_for_those_refused(
    tmp_path: Path,
) -> None:
    output = Output(tmp_path, checkpoint_interval=10)
    output.save_caption(row("x"))
    (tmp_path / "theirs.txt").write_text("by hand")
    files = ["a", "x.txt/y", "theirs", *(f"d/{number}" for number in range(20))]
    outcomes = output.save_captions([NewCaption(row(file)) for file in files])
    assert [isinstance(outcome, ItemError) for outcome in outcomes] == [
        file == "x.txt/y" for file in files
    ]
    output.close(complete=True)
    written = {file: f"caption of {file}" for file in ("x", *files) if file != "x.txt/y"}
    assert captions(tmp_path) == written | {"theirs": "by hand"}
    made = rows(tmp_path)
    assert list(made) == ["x", *(file for file in files if file != "x.txt/y")]
    assert {file: one["caption"] for file, one in made.items()} == captions(tmp_path)
    assert [file for file, one in made.items() if one["run_id"] != "run"] == []


def test_full_disk_leaves_a_row_for_each_caption_that_was_written_before_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(tmp_path, checkpoint_interval=10)
    write, begun = CaptionFiles.write, itertools.count()

    def write_until_full(files: CaptionFiles, file: str, caption: str) -> None:
        if next(begun) >= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(files, file, caption)

    monkeypatch.setattr(CaptionFiles, "write", write_until_full)
    outcomes = output.save_captions([NewCaption(row(str(number))) for number in range(30)])
    written = [outcome.file for outcome in outcomes if isinstance(outcome, Row)]
    others = [str(outcome) for outcome in outcomes if not isinstance(outcome, Row)]
    assert len(others) == 25
    assert all("No space left on device; what was finished is saved" in text for text in others)
    assert journal(tmp_path) == written
    assert set(captions(tmp_path)) == set(written)
    output.close(complete=False)


def test_captions_on_a_slow_disk_are_written_several_at_once_before_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(tmp_path, checkpoint_interval=1000)
    write, together = CaptionFiles.write, threading.Barrier(NUM_HELPERS + 1)

    def write_when_all_are_there(files: CaptionFiles, file: str, caption: str) -> None:
        if file == "0":  # it is tried alone
            time.sleep(0.01)
        else:
            together.wait(timeout=60)
        assert journal(tmp_path) == recorded
        write(files, file, caption)

    recorded: list[str] = []
    monkeypatch.setattr(CaptionFiles, "write", write_when_all_are_there)
    batch = [str(number) for number in range(1 + 3 * (NUM_HELPERS + 1))]
    outcomes = output.save_captions([NewCaption(row(file)) for file in batch])
    assert [outcome.file for outcome in outcomes if isinstance(outcome, Row)] == batch
    assert journal(tmp_path) == batch
    output.close(complete=True)


def test_second_run_in_one_folder_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    output = Output(tmp_path, checkpoint_interval=10)
    code = (
        "import sys, pathlib; from vllm_caption.store.output import Output\n"
        "Output(pathlib.Path(sys.argv[1]), 10)"
    )
    second = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert f"is in use by process {os.getpid()} on " in second.stderr
    output.close(complete=True)


def second_run(root: Path) -> str:
    """What another process says that wants the folder; nothing where it gets it."""
    code = (
        "import sys, pathlib; from vllm_caption.store.output import Output\n"
        "Output(pathlib.Path(sys.argv[1]), 10).close(complete=False)"
    )
    line = [sys.executable, "-c", code, str(root)]
    return subprocess.run(line, capture_output=True, text=True, check=False).stderr


def test_second_run_is_refused_even_if_somebody_removed_the_lock_file(
    tmp_path: Path,
) -> None:
    output = Output(tmp_path, checkpoint_interval=10)
    (tmp_path / ".run.lock").unlink()
    assert f"is in use by process {os.getpid()} on " in second_run(tmp_path)
    assert find_holder(tmp_path) is None  # held by this process
    output.close(complete=True)
    assert second_run(tmp_path) == ""


def test_removed_lock_file_is_locked_again(tmp_path: Path) -> None:
    output = Output(tmp_path, checkpoint_interval=10)
    for name in (".run.lock", ".run.owner.json"):
        (tmp_path / name).unlink()
    output.replace("status.json", b"{}")
    assert "is in use by another run" in second_run(tmp_path)
    output.close(complete=True)
    assert second_run(tmp_path) == ""


def test_run_whose_folder_another_run_took_stops_and_overwrites_no_part(
    tmp_path: Path,
) -> None:
    first = Output(tmp_path, checkpoint_interval=10)
    first.save_caption(row("a"))
    for name in (".run.lock", ".run.owner.json"):
        (tmp_path / name).unlink()
    second = Output(tmp_path, checkpoint_interval=10)
    second.save_caption(row("b"))
    with pytest.raises(RunStopped, match="another run may have started in "):
        first.replace("status.json", b"{}")
    first.close(complete=False)
    second.close(complete=True)
    assert set(rows(tmp_path)) == {"a", "b"}


def test_folder_of_a_group_can_be_used_by_each_of_its_members(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        output = Output(tmp_path, checkpoint_interval=10)
        output.save_caption(row("d/a"))
        output.close(complete=True)
    finally:
        os.umask(before)
    not_for_the_group = [
        str(path) for path in tmp_path.rglob("*") if not path.stat().st_mode & stat.S_IWGRP
    ]
    assert not_for_the_group == []


def test_lock_of_a_dead_holder_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from vllm_caption.store.output import Output\n"
        "output = Output(pathlib.Path(sys.argv[1]), 10); os.kill(os.getpid(), 9)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert died.returncode == -9
    Output(tmp_path, checkpoint_interval=10).close(complete=True)


def test_output_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--output .*file/out: cannot be written"):
        Output(tmp_path / "file" / "out", checkpoint_interval=10)


def test_full_disk_stops_the_run_with_a_sentence_and_keeps_complete_files(tmp_path: Path) -> None:
    output = Output(tmp_path, checkpoint_interval=10)
    output.save_caption(row("a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(RunStopped, match="cannot be read or written"):
            output.save_caption(row("b", caption="long " * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    output.close(complete=False)
    assert output.files.read("a") == "caption of a"
    assert output.files.read("b") is None
    assert list(rows(tmp_path)) == ["a"]


def test_damaged_part_stops_the_run_with_a_remedy(tmp_path: Path) -> None:
    output = Output(tmp_path, checkpoint_interval=1)
    output.save_caption(row("a"))
    (part,) = parts(tmp_path / "manifest.parquet")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(RunStopped, match=r"is damaged .* `verify --repair` moves it aside"):
        output.item_states()
    output.close(complete=False)


@pytest.mark.parametrize("damage", ['"attempts":1099511627776', f'"x":{"[" * 100_000}'])
def test_damaged_line_of_a_journal_costs_only_its_row(tmp_path: Path, damage: str) -> None:
    output = Output(tmp_path, 100)
    output.save_caption(row("a"))
    output.close(complete=True)
    whole, damaged = (msgspec.json.encode(row(file)).decode() for file in "bc")
    damaged = damaged.replace('"attempts":0', damage)
    assert damage in damaged
    (tmp_path / "journal.jsonl").write_text(f"{damaged}\n{whole}\n")
    Output(tmp_path, 100).close(complete=True)
    assert sorted(rows(tmp_path)) == ["a", "b"]


# --- captions that are replaced ------------------------------------------------------------------


@pytest.mark.parametrize("was_there", [False, True])
def test_caption_that_somebody_writes_during_a_run_stays_and_gets_its_row(
    tmp_path: Path, was_there: bool
) -> None:
    if was_there:
        output = Output(tmp_path, 100)
        output.save_caption(row("a", caption="of the first run", recipe_id="r"))
        output.close(complete=True)
    output = Output(tmp_path, 100)
    (output.root / "a.txt").write_text("by hand")
    assert output.save_caption(row("a", caption="of this run", recipe_id="r")).recipe_id is None
    output.close(complete=True)
    assert (tmp_path / "a.txt").read_text() == "by hand"
    found = rows(tmp_path)["a"]
    assert (found["caption"], found["recipe_id"]) == ("by hand", None)


def test_caption_that_a_person_wrote_stays_whatever_its_mtime(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("by hand")  # as if the clock had gone back
    output = Output(tmp_path, 100)
    assert output.save_caption(row("a", caption="of this run", recipe_id="r")).recipe_id is None
    output.close(complete=True)
    assert (tmp_path / "a.txt").read_text() == "by hand"


def test_caption_that_is_moved_into_place_during_a_run_stays_however_old(
    tmp_path: Path,
) -> None:
    output = Output(tmp_path / "out", 100)
    (output.root / "of_another_name.txt").write_text("by hand")
    moved = tmp_path / "out/of_another_name.txt"
    os.utime(moved, (0, 0))
    moved.rename(tmp_path / "out/a.txt")
    assert output.save_caption(row("a", caption="of this run", recipe_id="r")).recipe_id is None
    output.close(complete=True)
    assert (tmp_path / "out/a.txt").read_text() == "by hand"


def test_caption_that_is_only_touched_during_a_run_is_replaced(tmp_path: Path) -> None:
    output = Output(tmp_path, 100)
    (output.root / "a.txt").write_text("of the first run")
    made = row("a", caption="of this run", recipe_id="r")
    assert output.save_caption(made, replaced=hash_of("of the first run")).recipe_id == "r"
    output.close(complete=True)
    assert (tmp_path / "a.txt").read_text() == "of this run"


def test_caption_that_somebody_puts_where_one_was_lost_is_not_overwritten(tmp_path: Path) -> None:
    output = Output(tmp_path, 100)
    (tmp_path / "a.txt").write_text("by hand")
    assert not output.restore_caption("a", "of the first run")
    assert output.restore_caption("b", "of the first run")
    output.close(complete=True)
    texts = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    assert texts == {"a": "by hand", "b": "of the first run"}


def test_empty_file_that_appears_during_a_run_is_not_a_caption(tmp_path: Path) -> None:
    output = Output(tmp_path, 100)
    (output.root / "a.txt").write_text(" \n")
    output.save_caption(row("a", caption="of this run", recipe_id="r"))
    output.close(complete=True)
    assert (tmp_path / "a.txt").read_text() == "of this run"


def test_caption_with_an_mtime_in_the_future_is_replaced_like_any_other(tmp_path: Path) -> None:
    output = Output(tmp_path, 100)
    output.save_caption(row("a", caption="of the first run", recipe_id="r"))
    output.close(complete=True)
    os.utime(tmp_path / "a.txt", ((tmp_path / "a.txt").stat().st_mtime + 3600,) * 2)
    output = Output(tmp_path, 100)
    made = row("a", caption="of this run", recipe_id="r")
    assert output.save_caption(made, hash_of("of the first run")).recipe_id == "r"
    output.close(complete=True)
    assert (tmp_path / "a.txt").read_text() == "of this run"


KILLED_WHILE_REPLACING = """
import os, sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_output import Output, hash_of, row
output = Output(Path(sys.argv[1]), 100)
append = output._checkpoint.append
output._checkpoint.append = lambda row: os.kill(os.getpid(), 9)
old = hash_of("old") if (output.root / "a.txt").exists() else None
output.save_caption(row("a", caption="new", recipe_id="r2"), old, True)
"""


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("edited", [False, True])
def test_caption_whose_run_was_killed_before_its_row_gets_its_row_and_is_not_an_edit(
    tmp_path: Path, edited: bool, lost: bool
) -> None:
    output = Output(tmp_path, 100)
    output.save_caption(row("a", caption="old", recipe_id="r1"))
    output.close(complete=True)
    if lost:
        (tmp_path / "a.txt").unlink()
    code = [sys.executable, "-c", KILLED_WHILE_REPLACING, str(tmp_path)]
    assert subprocess.run(code, cwd=Path(__file__).parents[1], check=False).returncode == -9
    assert (tmp_path / "a.txt").read_text() == "new"
    if edited:
        (tmp_path / "a.txt").write_text("by hand")
    output = Output(tmp_path, 100)
    assert output.item_states()["a"].recipe_id == ("r1" if edited else "r2")
    output.close(complete=True)
    assert rows(tmp_path)["a"]["caption"] == ("old" if edited else "new")
    assert not (tmp_path / ".rewriting.json").exists()


KILLED_BETWEEN_CAPTIONS_AND_ROWS = """
import os, signal, sys
from pathlib import Path
from tests.test_output import row
from vllm_caption.store.journal import Journal
from vllm_caption.store.output import NewCaption, Output
output = Output(Path(sys.argv[1]), 100)
append = Journal.append
def die_before_rows(journal, rows):
    if journal is output._checkpoint._journal:
        os.kill(os.getpid(), signal.SIGKILL)
    append(journal, rows)
Journal.append = die_before_rows
output.save_captions([NewCaption(row(name, recipe_id="r1")) for name in "abc"])
"""


def test_captions_whose_run_was_killed_before_their_rows_get_the_rows_that_they_were_to_have(
    tmp_path: Path,
) -> None:
    code = [sys.executable, "-c", KILLED_BETWEEN_CAPTIONS_AND_ROWS, str(tmp_path)]
    assert subprocess.run(code, cwd=Path(__file__).parents[1], check=False).returncode == -9
    assert sorted(captions(tmp_path)) == ["a", "b", "c"]
    assert journal(tmp_path) == []
    (tmp_path / "b.txt").write_text("by hand")
    (tmp_path / "c.txt").unlink()
    output = Output(tmp_path, 100)
    states = output.item_states()
    assert {file: states[file].recipe_id for file in states} == {"a": "r1"}
    output.close(complete=True)
    assert not (tmp_path / ".rewriting.json").exists()


def test_caption_that_is_a_link_is_read_through_it_and_replaced_without_its_target(
    tmp_path: Path,
) -> None:
    (tmp_path / "target").write_text("of somebody")
    output = Output(tmp_path / "out", 100)
    links = {"a": "../target", "b": "../nothing", "c": "c.txt"}
    for name, target in links.items():
        (tmp_path / f"out/{name}.txt").symlink_to(target)
    assert (output.files.read("a"), output.files.read("b")) == ("of somebody", None)
    with pytest.raises(ItemError, match=r"its \.txt cannot be read .* symbolic links"):
        output.files.read("c")
    output.save_caption(row("a", caption="new"), hash_of("of somebody"))
    output.save_caption(row("b", caption="new"))
    output.close(complete=True)
    assert (tmp_path / "target").read_text() == "of somebody"
    assert captions(tmp_path / "out") == {"a": "new", "b": "new"}
    assert not (tmp_path / "nothing").exists()


@pytest.mark.timeout(20)
def test_pipe_in_place_of_a_caption_does_not_block(tmp_path: Path) -> None:
    output = Output(tmp_path, 100)
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ItemError, match="is not a regular file"):
        output.files.read("a")
    output.close(complete=True)
