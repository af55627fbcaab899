"""`--redo`, `--redo-kind` and `--redo-file` through the whole job with fake engines: what is
captioned again, once, however often the run is interrupted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from support.job import (
    FAKE,
    Result,
    captions,
    input_flags,
    make_gated,
    make_input,
    rows,
    run,
    run_here,
    start,
    wait_until,
    write_document,
)

from vllm_caption.config import ResumeConfig
from vllm_caption.driver.redo import RedoProgress, earlier_runs

OTHER_RECIPE = "--max-tokens=50"


def arguments(folder: Path, *flags: str) -> list[str]:
    return [*input_flags(folder), f"--output={folder / 'out'}", "--quiet", "-dp=1", *flags]


def job(folder: Path, *flags: str) -> Result:
    """One run over the input into ``folder/out``."""
    return run(*arguments(folder, *flags), command=FAKE)


def runs_of(folder: Path) -> dict[str, str]:
    """file → the run that made its caption."""
    return {file: row["run_id"] for file, row in rows(folder / "out").items()}


def in_this_run(result: Result) -> int:
    """How many captions a run made."""
    assert result.exit_code in (0, 1), result.stderr
    return int(result.stdout.partition(" in this run")[0].rpartition("(")[2])


def mark(folder: Path, files: list[str], **columns: object) -> None:
    """Change the rows of these items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (part,) = (folder / "out/manifest.parquet").iterdir()
    table = pq.read_table(part)
    changed = [row | columns if row["file"] in files else row for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(changed, table.schema), part)


# --- a redo that is interrupted ------------------------------------------------------------------


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_redo_resumes_and_makes_no_caption_twice(
    tmp_path: Path, sent: signal.Signals
) -> None:
    files = make_input(tmp_path, 30)
    (gated,) = make_gated(tmp_path)
    (tmp_path / "raw/gate").touch()
    assert in_this_run(job(tmp_path)) == 31
    before = runs_of(tmp_path)
    (tmp_path / "raw/gate").unlink()
    process = start(*arguments(tmp_path, "--redo=all", "--drain-timeout=0.1"), command=FAKE)
    journal = tmp_path / "out/journal.jsonl"
    wait_until(lambda: journal.read_bytes().count(b"\n") == 30, process)
    process.send_signal(sent)
    process.communicate(timeout=60)
    stamps = {file: txt(tmp_path, file).stat().st_mtime_ns for file in files}
    (tmp_path / "raw/gate").touch()
    result = job(tmp_path, "--redo=all")
    assert in_this_run(result) == 1
    assert "Resuming --redo all, begun by run" in result.stderr
    assert {file: txt(tmp_path, file).stat().st_mtime_ns for file in files} == stamps
    now = runs_of(tmp_path)
    assert set(now) == {*files, gated}
    assert set(now.values()).isdisjoint(before.values())


def txt(folder: Path, file: str) -> Path:
    return folder / "out" / f"{file}.txt"


def test_redo_that_covered_the_whole_input_starts_again(tmp_path: Path) -> None:
    make_input(tmp_path, 5)
    job(tmp_path)
    for _ in range(2):
        result = job(tmp_path, "--redo=all")
        assert in_this_run(result) == 5
        assert "Resuming" not in result.stderr


@pytest.mark.parametrize("flags", [["--redo=flagged"], ["--redo-kind=too_long"]])
def test_limit_takes_the_next_items_of_a_redo_until_none_is_left(
    tmp_path: Path, flags: list[str]
) -> None:
    files = make_input(tmp_path, 10)
    job(tmp_path, "--no-checks")
    mark(tmp_path, files[2:9], flags=["too_long"])
    taken: list[int] = []
    seen: list[set[str]] = []
    before = runs_of(tmp_path)
    for _ in range(4):
        taken.append(in_this_run(job(tmp_path, *flags, "--limit=3")))
        now = runs_of(tmp_path)
        seen.append({file for file in files if now[file] != before[file]})
        before = now
    assert taken == [3, 3, 1, 0]
    assert [sorted(s) for s in seen] == [files[2:5], files[5:8], files[8:9], []]


def test_limit_takes_the_next_failures_although_they_fail_again(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    bad = [f"refused_{number}.png" for number in range(5)]
    for file in bad:
        (tmp_path / "raw" / file).write_bytes((tmp_path / "raw" / files[0]).read_bytes())
    write_document(tmp_path, "z_bad", bad, ["SvgElement"] * 5)
    assert job(tmp_path, "--no-dedup").exit_code == 1
    tried: list[list[str]] = []
    before = runs_of(tmp_path)
    for _ in range(3):
        assert job(tmp_path, "--no-dedup", "--redo-kind=engine_error", "--limit=2").exit_code == 1
        now = runs_of(tmp_path)
        tried.append([file for file in bad if now[file] != before[file]])
        before = now
    assert tried == [bad[:2], bad[2:4], bad[4:]]


def test_caption_and_its_recipe_stay_if_making_it_again_fails(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 4)
    job(tmp_path)
    made = rows(tmp_path / "out")
    missing = tmp_path / "raw" / files[1]
    missing.rename(missing.with_suffix(".away"))
    result = job(tmp_path, "--redo=stale", OTHER_RECIPE)
    assert (result.exit_code, "missing_file 1" in result.stdout) == (1, True)
    kept = rows(tmp_path / "out")[files[1]]
    assert captions(tmp_path / "out")[files[1]] == kept["caption"] == made[files[1]]["caption"]
    assert kept["recipe_id"] == made[files[1]]["recipe_id"]
    assert (kept["status"], kept["error_kind"]) == ("captioned", "missing_file")
    missing.with_suffix(".away").rename(missing)
    assert in_this_run(job(tmp_path, OTHER_RECIPE)) == 0  # a plain run replaces no caption
    assert in_this_run(job(tmp_path, "--redo=stale", OTHER_RECIPE)) == 1
    row = rows(tmp_path / "out")[files[1]]
    assert (row["error_kind"], row["recipe_id"] != kept["recipe_id"]) == (None, True)


def test_limit_takes_the_next_captions_although_making_them_again_fails(tmp_path: Path) -> None:
    files = make_input(tmp_path, 5)
    job(tmp_path)
    for file in files[:4]:
        (tmp_path / "raw" / file).write_bytes(b"no image any more")
    before = runs_of(tmp_path)
    tried: list[list[str]] = []
    for _ in range(2):
        job(tmp_path, "--redo=all", "--limit=2")
        now = runs_of(tmp_path)
        tried.append([file for file in files if now[file] != before[file]])
        before = now
    assert tried == [files[:2], files[2:4]]
    assert len(captions(tmp_path / "out")) == 5


def test_limit_continues_past_names_that_no_caption_can_have(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    write_document(tmp_path, "a_bad", ["x" * 254, "y" * 254], ["SvgElement"] * 2)
    job(tmp_path)
    taken = [in_this_run(job(tmp_path, "--redo=all", "--limit=2")) for _ in range(2)]
    assert taken == [2, len(files) - 2]


def test_redo_with_another_recipe_is_another_redo(tmp_path: Path) -> None:
    make_input(tmp_path, 6)
    job(tmp_path)
    assert in_this_run(job(tmp_path, "--redo=all", "--limit=4")) == 4
    assert in_this_run(job(tmp_path, "--redo=all", OTHER_RECIPE)) == 6


def test_plain_run_between_two_parts_of_a_redo_changes_nothing(tmp_path: Path) -> None:
    make_input(tmp_path, 6)
    job(tmp_path)
    assert in_this_run(job(tmp_path, "--redo=all", "--limit=4")) == 4
    assert in_this_run(job(tmp_path)) == 0
    assert in_this_run(job(tmp_path, "--redo=all", "--limit=4")) == 2


def test_overwrite_edited_then_takes_only_what_the_redo_spared(tmp_path: Path) -> None:
    files = make_input(tmp_path, 6)
    job(tmp_path)
    for file in files[:2]:
        txt(tmp_path, file).write_text("by hand, and much better")
    assert in_this_run(job(tmp_path, "--redo=all")) == 4
    assert in_this_run(job(tmp_path, "--redo=all", "--overwrite-edited")) == 2
    assert captions(tmp_path / "out") == {file: f"caption of {file}" for file in files}
    assert in_this_run(job(tmp_path, "--redo=all", "--overwrite-edited")) == 6


def test_pilot_of_a_redo_is_part_of_it(tmp_path: Path) -> None:
    make_input(tmp_path, 12)
    job(tmp_path)
    assert in_this_run(job(tmp_path, "--redo=all", "--pilot=5")) == 5
    assert in_this_run(job(tmp_path, "--redo=all")) == 7


def test_plan_shows_what_is_left_of_a_redo(tmp_path: Path) -> None:
    make_input(tmp_path, 6)
    job(tmp_path)
    job(tmp_path, "--redo=all", "--limit=4")
    json_file = tmp_path / "plan.json"
    flags = [*arguments(tmp_path, "--redo=all"), "--model=demo", f"--json={json_file}"]
    assert run_here("plan", *flags).exit_code == 0
    assert json.loads(json_file.read_text())["items"]["to_caption"] == 2
    assert run_here("plan", *flags, "--limit=1").exit_code == 0
    assert json.loads(json_file.read_text())["items"]["to_caption"] == 1


def test_each_shard_has_its_own_redo(tmp_path: Path) -> None:
    make_input(tmp_path, 20)
    shards = ("--shard=1/2", "--shard=2/2")
    counts = [in_this_run(job(tmp_path, shard)) for shard in shards]
    assert in_this_run(job(tmp_path, shards[0], "--redo=all", "--limit=3")) == 3
    assert in_this_run(job(tmp_path, shards[1], "--redo=all")) == counts[1]
    assert in_this_run(job(tmp_path, shards[0], "--redo=all")) == counts[0] - 3


def test_damaged_record_of_a_redo_starts_it_again(tmp_path: Path) -> None:
    make_input(tmp_path, 4)
    job(tmp_path)
    job(tmp_path, "--redo=all", "--limit=2")
    (tmp_path / "out/redo.json").write_text('{"what"')
    assert in_this_run(job(tmp_path, "--redo=all")) == 4


@pytest.mark.parametrize(
    ("resume", "recorded", "continues"),
    [
        (ResumeConfig("all"), RedoProgress("--redo all", "r", ("1",)), True),
        (ResumeConfig("all"), RedoProgress("--redo stale", "r", ("1",)), False),
        (ResumeConfig("all"), RedoProgress("--redo all", "other", ("1",)), False),
        (ResumeConfig("all"), RedoProgress("--redo all", "older id", ("1",)), True),
        (ResumeConfig("all"), RedoProgress("--redo all", "r", ("1",), is_finished=True), False),
        (ResumeConfig(), RedoProgress("", "r", ("1",)), False),
        (
            ResumeConfig(redo_kinds=("b", "a")),
            RedoProgress("--redo-kind a,b", "r", ("1",)),
            True,
        ),
        (
            ResumeConfig(redo_files=("b", "a")),
            RedoProgress("--redo-file a b", "r", ("1",)),
            True,
        ),
        (ResumeConfig("all"), None, False),
    ],
)
def test_unfinished_redo_resumes_if_flags_and_recipe_are_the_same(
    resume: ResumeConfig, recorded: RedoProgress | None, continues: bool
) -> None:
    assert earlier_runs(recorded, resume, frozenset({"r", "older id"})) == ("1",) * continues


# --- one item again ------------------------------------------------------------------------------


def test_redo_file_captions_these_items_again_and_nothing_else(tmp_path: Path) -> None:
    files = make_input(tmp_path, 25)
    job(tmp_path, "--limit=20")
    before = runs_of(tmp_path)
    result = job(
        tmp_path, "--redo-file", files[3], "d1/shape_1[24].png", "--redo-file=*/shape_7.png"
    )
    assert result.exit_code == 0
    assert "Items: 4, captioned 4 (4 in this run), failed 0" in result.stdout
    now = runs_of(tmp_path)
    changed = {file for file in files[:20] if now[file] != before[file]}
    assert changed == {files[3], files[12], files[14], files[7]}
    assert len(captions(tmp_path / "out")) == 20


def test_redo_file_takes_a_name_with_brackets_literally(tmp_path: Path) -> None:
    (file,) = make_input(tmp_path, 1)
    odd = "icon [1] *.png"
    (tmp_path / "raw" / odd).write_bytes((tmp_path / "raw" / file).read_bytes() + b" ")
    write_document(tmp_path, "odd", [odd], ["SvgElement"])
    job(tmp_path)
    assert in_this_run(job(tmp_path, "--redo-file", odd)) == 1


def test_redo_file_replaces_what_a_person_wrote_only_with_overwrite_edited(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    job(tmp_path)
    txt(tmp_path, files[0]).write_text("by hand, and much better")
    result = job(tmp_path, "--redo-file", files[0])
    assert in_this_run(result) == 0
    assert "1 of these would be captioned again with --overwrite-edited" in result.stdout
    assert captions(tmp_path / "out")[files[0]] == "by hand, and much better"
    assert in_this_run(job(tmp_path, "--redo-file", files[0], "--overwrite-edited")) == 1
    assert captions(tmp_path / "out")[files[0]] == f"caption of {files[0]}"


def test_redo_file_that_names_no_item_is_a_mistake_and_with_others_a_warning(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 2)
    result = job(tmp_path, "--redo-file", "nowhere.png")
    assert (result.exit_code, result.stdout) == (2, "")
    said = (
        "--redo-file nowhere.png: no item has such a name; give the `file` of its row, or a pattern"
    )
    assert said in result.stderr
    result = job(tmp_path, "--redo-file", os.fsdecode(b"not-utf-8-\xff.png"))
    assert (result.exit_code, result.stderr.count("no item has such a name")) == (2, 1)
    result = job(tmp_path, "--redo-file", files[0], "nowhere.png")
    assert result.exit_code == 0
    assert "No item has the name of --redo-file: nowhere.png" in result.stdout


def test_redo_file_of_a_missing_image_fails_like_any_item(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    job(tmp_path)
    (tmp_path / "raw" / files[0]).unlink()
    result = job(tmp_path, "--redo-file", files[0])
    assert (result.exit_code, "missing_file 1" in result.stdout) == (1, True)


def test_redo_file_and_another_redo_are_a_mistake() -> None:
    result = run_here("--redo-file", "a.png", "--redo=all")
    assert result.exit_code == 2
    conflict = "--redo-file a.png: conflicts with --redo: both choose what to re-caption"
    assert conflict in result.stderr
