"""Concurrent runs without a cluster: fixed parts of the items, and one manifest in the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from functools import partial
from pathlib import Path
from unicodedata import normalize

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.job import (
    FAKE,
    QUICK,
    as_older_version,
    captions,
    input_flags,
    make_gated,
    make_input,
    rows,
    run,
    run_here,
    start,
    wait_until,
)
from test_output import row

from vllm_caption.config import InputConfig, Shard
from vllm_caption.errors import UsageError
from vllm_caption.inputs.reader import InputReader
from vllm_caption.items import Item
from vllm_caption.store.checkpoint import Checkpoint
from vllm_caption.store.disk.folding import Folding
from vllm_caption.store.layout import JOURNAL, caption_name, shard_folder
from vllm_caption.store.naming import naming_of, naming_of_run
from vllm_caption.store.output import Output
from vllm_caption.store.rows import Row

NUM_ITEMS = 60


def shard_run(folder: Path, shard: str, out: str = "out", *flags: str) -> str:
    """One shard with fake engines; returns what it printed."""
    arguments = (*input_flags(folder), f"--output={folder / out}", *QUICK, f"--shard={shard}")
    result = run(*arguments, *flags, command=FAKE)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def items(folder: Path, shard: Shard | None) -> set[str]:
    config = InputConfig(folder / "jsons", folder / "json_detail", folder / "raw", shard=shard)
    return {entry.file for entry in InputReader(config) if isinstance(entry, Item)}


# --- which items -------------------------------------------------------------------------------


@given(st.text(min_size=1), st.integers(1, 64))
def test_every_name_belongs_to_exactly_one_shard(name: str, count: int) -> None:
    assert sum(Shard(index, count).takes(name) for index in range(1, count + 1)) == 1


def test_name_is_in_the_same_shard_on_every_machine() -> None:
    assert [Shard(i, 8).takes("图形/a.png") for i in range(1, 9)].index(True) == 1


@given(st.text(min_size=1), st.integers(2, 64))
def test_names_that_are_equal_on_some_disk_are_in_one_shard(name: str, count: int) -> None:
    disks = [Folding(case=True), Folding(accents=True), Folding(case=True, accents=True)]
    spellings = [name.swapcase(), name.upper(), name.casefold()]
    spellings += [normalize(form, name) for form in ("NFC", "NFD")]
    for other in spellings:
        if any(disk.key(name) == disk.key(other) for disk in disks):
            for index in range(1, count + 1):
                shard = Shard(index, count)
                assert shard.takes(name) == shard.takes(other)


def test_images_whose_captions_share_a_stem_are_in_one_shard() -> None:
    for names in (["a.png", "a.JPG"], ["d/.png", "d/.png.gif"]):
        assert len({caption_name(name, "stem") for name in names}) == 1
        for index in range(1, 9):
            assert len({Shard(index, 8, by_stem=True).takes(name) for name in names}) == 1


def test_shards_of_an_input_cover_it_exactly(tmp_path: Path) -> None:
    files = make_input(tmp_path, 400)
    found = [items(tmp_path, Shard(index, 4)) for index in range(1, 5)]
    assert set().union(*found) == set(files) == items(tmp_path, None)
    assert sum(map(len, found)) == len(files)
    assert min(map(len, found)) > 70


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_shard_that_does_not_exist_is_a_usage_error(text: str) -> None:
    result = run_here("--model=demo", f"--shard={text}")
    assert result.exit_code == 2
    assert "--shard" in result.stderr and "as 3/8" in result.stderr


# --- one shared folder -------------------------------------------------------------------------


def test_shards_share_one_folder_and_merge_makes_one_manifest(tmp_path: Path) -> None:
    files, out = make_input(tmp_path, NUM_ITEMS), tmp_path / "out"
    printed = [shard_run(tmp_path, f"{index}/3") for index in (1, 2, 3)]
    assert "python -m vllm_caption merge --output=" in printed[0]
    assert captions(out) == {file: f"caption of {file}" for file in files}
    assert not list(out.glob("manifest.parquet/*"))
    assert run_here("verify", *input_flags(tmp_path), f"--output={out}").exit_code == 0
    assert f"{NUM_ITEMS} items" in run_here("report", f"--output={out}").stdout
    merged = run_here("merge", f"--output={out}")
    assert merged.exit_code == 0
    assert merged.stdout.splitlines()[:2] == ["Shards: 3 of 3", f"Items: captioned {NUM_ITEMS}"]
    table = pd.read_parquet(out / "manifest.parquet")
    assert sorted(table["file"]) == sorted(files)
    assert len(list(out.glob("manifest.parquet/*"))) == 1
    assert run_here("verify", *input_flags(tmp_path), f"--output={out}").exit_code == 0
    again = run(*input_flags(tmp_path), f"--output={out}", *QUICK, command=FAKE)
    assert (again.exit_code, "(0 in this run)" in again.stdout) == (0, True)


def test_shards_of_a_version_with_fewer_columns_are_merged_with_newer_ones(tmp_path: Path) -> None:
    files, out = make_input(tmp_path, NUM_ITEMS), tmp_path / "all"
    shard_run(tmp_path, "1/2", "old")
    as_older_version(tmp_path / "old/shards/0001-of-0002", "render_queue_s", "render_s")
    shard_run(tmp_path, "2/2", "new")
    merged = run_here("merge", f"--output={out}", f"{tmp_path / 'old'}", f"{tmp_path / 'new'}")
    assert (merged.exit_code, merged.stderr) == (0, "")
    table = pd.read_parquet(out / "manifest.parquet").set_index("file")
    assert sorted(table.index) == sorted(files)
    assert table["generate_s"].notna().all()
    old = items(tmp_path, Shard(1, 2))
    assert set(table.index[table["render_s"].isna()]) == old


def test_merge_names_the_shards_that_are_missing(tmp_path: Path) -> None:
    make_input(tmp_path, NUM_ITEMS)
    shard_run(tmp_path, "2/4")
    assert (
        "Shards: 1 of 4; missing: 1, 3, 4"
        in run_here("merge", f"--output={tmp_path / 'out'}").stdout
    )
    shown = run_here("status", f"--output={tmp_path / 'out'}").stdout
    assert "No run yet here: shard 1, 3, 4 of 4" in shown.splitlines()


def test_merge_says_which_shard_is_unfinished_and_how_many_items_it_lacks(tmp_path: Path) -> None:
    make_input(tmp_path, NUM_ITEMS)
    shard_run(tmp_path, "1/2")
    shard_run(tmp_path, "2/2")
    path = tmp_path / "out/shards/0002-of-0002/status.json"
    status = json.loads(path.read_text())
    status["total"] += 1234
    path.write_text(json.dumps(status))
    merged = run_here("merge", f"--output={tmp_path / 'out'}")
    assert merged.exit_code == 1
    assert (
        "  unfinished: shard 2/2 has 1,234 items left; run it again" in merged.stdout.splitlines()
    )
    path.write_text(json.dumps(status | {"scanning": True}))
    again = run_here("merge", f"--output={tmp_path / 'out'}")
    assert "has 1,234 items left, and more that it has not read" in again.stdout
    path.write_text(json.dumps(status | {"scanning": True, "total": status["total"] - 1234}))
    assert (
        "unfinished: shard 2/2 has not read its whole input"
        in run_here("merge", f"--output={tmp_path / 'out'}").stdout
    )


def test_merge_and_status_name_only_some_of_very_many_missing_shards(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_input(tmp_path, NUM_ITEMS)
    shard_run(tmp_path, "1/2")
    shard = out / "shards/0001-of-0002"
    shard.rename(shard.with_name("0001-of-99999999999"))
    shown = run_here("status", f"--output={out}").stdout
    assert "16, 17, 18, 19, 20, 21, … of 99999999999\n" in shown
    merged = run_here("merge", f"--output={out}")
    line = "Shards: 1 of 99999999999; missing: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …"
    assert (merged.exit_code, merged.stdout.splitlines()[0]) == (1, line)


@pytest.mark.parametrize("flag", ["--pilot=2", "--limit=2"])
def test_shard_that_had_only_a_pilot_or_a_limit_is_unfinished(tmp_path: Path, flag: str) -> None:
    make_input(tmp_path, NUM_ITEMS)
    shard_run(tmp_path, "1/2")
    flags = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}", *QUICK, "--shard=2/2")
    assert run(*flags, flag, command=FAKE).exit_code == 0
    merged = run_here("merge", f"--output={tmp_path / 'out'}")
    line = "  unfinished: shard 2/2 had only a pilot or a --limit; run it again without"
    assert (merged.exit_code, merged.stdout.splitlines()[1]) == (1, line)
    shard_run(tmp_path, "2/2")
    assert run_here("merge", f"--output={tmp_path / 'out'}").exit_code == 0


def test_merge_expects_nothing_of_a_shard_that_was_refused(tmp_path: Path) -> None:
    make_input(tmp_path, NUM_ITEMS)
    shard_run(tmp_path, "1/1")
    refused = run(
        *input_flags(tmp_path), f"--output={tmp_path / 'out'}", "--shard=2/3", command=FAKE
    )
    assert (refused.exit_code, "shards of 1 that are not merged" in refused.stderr) == (2, True)
    merged = run_here("merge", f"--output={tmp_path / 'out'}")
    assert (merged.exit_code, merged.stdout.splitlines()[0]) == (0, "Shards: 1 of 1")


def test_merge_is_complete_when_all_shards_of_another_number_have_finished(tmp_path: Path) -> None:
    make_input(tmp_path, NUM_ITEMS)
    shard_run(tmp_path, "1/3")
    assert run_here("merge", f"--output={tmp_path / 'out'}").exit_code == 1
    for shard in ("1/2", "2/2"):
        shard_run(tmp_path, shard)
    seen = run_here("status", str(tmp_path / "out"))
    assert "2 shards: 2 finished" in seen.stdout
    assert f"{NUM_ITEMS} of {NUM_ITEMS}" in seen.stdout  # the shard of three is not counted again
    merged = run_here("merge", f"--output={tmp_path / 'out'}")
    lines = ["Shards: 2 of 2", f"Items: captioned {NUM_ITEMS}"]
    assert (merged.exit_code, merged.stdout.splitlines()[:2]) == (0, lines)


def test_shard_that_two_folders_have_lacks_nothing_if_one_of_them_finished_it(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, NUM_ITEMS)
    for folder in ("a", "b"):
        shard_run(tmp_path, "1/1", folder)
    path = tmp_path / "b/shards/0001-of-0001/status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total": NUM_ITEMS + 5}))
    for folders in (("a", "b"), ("b", "a")):
        named = [str(tmp_path / folder) for folder in folders]
        merged = run_here("merge", f"--output={tmp_path / 'all'}", *named)
        assert (merged.exit_code, "unfinished" in merged.stdout) == (0, False)


def test_shards_that_name_their_captions_otherwise_are_not_those_that_are_missing(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, NUM_ITEMS)
    shard_run(tmp_path, "1/2", "a")
    more = ("--shard=2/2", "--caption-name=stem")
    flags = (*input_flags(tmp_path), f"--output={tmp_path / 'b'}", *QUICK)
    assert run(*flags, *more, command=FAKE).exit_code == 0
    folders = [str(tmp_path / folder) for folder in ("a", "b")]
    merged = run_here("merge", f"--output={tmp_path / 'all'}", *folders)
    assert (merged.exit_code, merged.stdout.splitlines()[:2]) == (
        1,
        [
            "Shards: 1 of 2 with --caption-name file; missing: 2",
            "Shards: 1 of 2 with --caption-name stem; missing: 1",
        ],
    )


def test_merge_with_a_missing_shard_is_exit_1(tmp_path: Path) -> None:
    make_input(tmp_path, NUM_ITEMS)
    shard_run(tmp_path, "2/4")
    assert run_here("merge", f"--output={tmp_path / 'out'}").exit_code == 1


def test_run_without_shards_merges_what_shards_have_left(tmp_path: Path) -> None:
    files, out = make_input(tmp_path, NUM_ITEMS), tmp_path / "out"
    shard_run(tmp_path, "1/2")
    done = len(captions(out))
    result = run(*input_flags(tmp_path), f"--output={out}", *QUICK, command=FAKE)
    assert f"captioned {NUM_ITEMS} ({NUM_ITEMS - done} in this run)" in result.stdout
    assert "without a row" not in result.stdout
    assert set(rows(out)) == set(files)
    assert all(row["recipe_id"] for row in rows(out).values())


def test_killed_shard_loses_nothing_that_was_captioned(tmp_path: Path) -> None:
    make_input(tmp_path, NUM_ITEMS)
    make_gated(tmp_path)
    out = tmp_path / "out"
    mine = next(name for name in ("1/2", "2/2") if Shard.parse(name).takes("gated.png"))
    flags = (*input_flags(tmp_path), f"--output={out}", *QUICK, f"--shard={mine}")
    process = start(*flags, command=FAKE)
    expected = len(items(tmp_path, Shard.parse(mine))) - 1
    journal = shard_folder(out, Shard.parse(mine)) / JOURNAL
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") == expected, process)
    process.kill()
    process.communicate()
    merged = run_here("merge", f"--output={out}")
    assert f"Items: captioned {expected}" in merged.stdout
    assert all(row["recipe_id"] for row in rows(out).values())


def test_concurrent_shards_lock_out_a_whole_run_and_a_merge(tmp_path: Path) -> None:
    make_input(tmp_path, NUM_ITEMS)
    make_gated(tmp_path)
    out = tmp_path / "out"
    mine, other = sorted(("1/2", "2/2"), key=lambda s: not Shard.parse(s).takes("gated.png"))
    flags = (*input_flags(tmp_path), f"--output={out}", *QUICK)
    process = start(*flags, f"--shard={mine}", command=FAKE)
    wait_until(lambda: captions(out), process)
    shard_run(tmp_path, other)
    for arguments in (("merge",), input_flags(tmp_path)):
        refused = run_here(
            *arguments, f"--output={out}", *(["--model=demo"] * (len(arguments) > 1))
        )
        assert refused.exit_code == 2
        assert f"is in use by shard {mine}: process {process.pid}" in refused.stderr
    same = run(*flags, f"--shard={mine}", command=FAKE)
    assert (same.exit_code, f"process {process.pid}" in same.stderr) == (2, True)
    shown = run_here("status", f"--output={out}").stdout
    assert "State      2 shards: 1 finished, 1 running" in shown.splitlines()
    states = {line[6:9]: line.split()[2] for line in shown.splitlines() if line[:6] == "Shard "}
    assert states == {mine: "running", other: "finished"}
    assert "No run yet here" not in shown
    views = json.loads(run_here("status", f"--output={out}", "--json").stdout)
    assert {view["shard"]: view["state"] for view in views} == {mine: "running", other: "finished"}
    os.kill(process.pid, signal.SIGINT)
    (tmp_path / "raw/gate").touch()
    process.communicate(timeout=60)


def test_whole_run_locks_out_shards(tmp_path: Path) -> None:
    make_input(tmp_path, NUM_ITEMS)
    make_gated(tmp_path)
    out = tmp_path / "out"
    flags = (*input_flags(tmp_path), f"--output={out}", *QUICK)
    process = start(*flags, command=FAKE)
    wait_until(lambda: captions(out), process)
    refused = run(*flags, "--shard=1/2", command=FAKE)
    assert (refused.exit_code, f"process {process.pid}" in refused.stderr) == (2, True)
    (tmp_path / "raw/gate").touch()
    process.communicate(timeout=60)


# --- folders of their own ----------------------------------------------------------------------


def test_merge_combines_folders_and_leaves_them_unchanged(tmp_path: Path) -> None:
    files = make_input(tmp_path, NUM_ITEMS)
    for index in (1, 2):
        shard_run(tmp_path, f"{index}/2", f"out_{index}")
    before = {index: captions(tmp_path / f"out_{index}") for index in (1, 2)}
    out = tmp_path / "all"
    folders = [os.fspath(tmp_path / f"out_{index}") for index in (1, 2)]
    merged = run_here("merge", f"--output={out}", *folders)
    assert merged.exit_code == 0, merged.stderr
    assert f"From other folders: captioned {NUM_ITEMS}" in merged.stdout
    assert captions(out) == before[1] | before[2] == {f: f"caption of {f}" for f in files}
    assert {index: captions(tmp_path / f"out_{index}") for index in (1, 2)} == before
    assert run_here("verify", *input_flags(tmp_path), f"--output={out}").exit_code == 0
    assert all(row["recipe_id"] for row in rows(out).values())
    again = run_here("merge", f"--output={out}", *folders)
    assert "From other folders" not in again.stdout
    seen = run_here("status", str(out))
    assert seen.exit_code == 2
    assert "has captions, but no status.json, as after merge: no run has used it" in seen.stderr


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_merge_says_that_a_failed_row_gave_way_to_the_caption_of_another_folder(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    files = make_input(tmp_path, NUM_ITEMS)
    image = tmp_path / "raw" / files[0]
    content = image.read_bytes()
    image.unlink()
    flags = (*input_flags(tmp_path), *QUICK)
    assert run(*flags, f"--output={tmp_path / 'out_1'}", command=FAKE).exit_code == 1
    image.write_bytes(content)
    assert run(*flags, f"--output={tmp_path / 'out_2'}", command=FAKE).exit_code == 0
    named = [str(tmp_path / f"out_{index}") for index in order]
    merged = run_here("merge", f"--output={tmp_path / 'all'}", *named)
    lines = merged.stdout.splitlines()
    at = lines.index(f"From other folders: captioned {NUM_ITEMS}")
    assert lines[at + 1] == "  not taken: 1 failed row, because another folder has its caption"
    assert f"Items: captioned {NUM_ITEMS}" in lines


def test_merged_folder_knows_its_input_if_that_was_the_same_in_all_folders(tmp_path: Path) -> None:
    make_input(tmp_path, NUM_ITEMS)
    for index in (1, 2):
        shard_run(tmp_path, f"{index}/2", f"out_{index}")
    folders = [os.fspath(tmp_path / f"out_{index}") for index in (1, 2)]
    assert run_here("merge", f"--output={tmp_path / 'all'}", *folders).exit_code == 0
    assert run_here("verify", f"--output={tmp_path / 'all'}").exit_code == 0
    (state,) = (tmp_path / "out_2" / "shards").iterdir()
    (state / "input.json").write_text('{"input": "elsewhere"}')
    assert run_here("merge", f"--output={tmp_path / 'two'}", *folders).exit_code == 0
    refused = run_here("verify", f"--output={tmp_path / 'two'}")
    assert "does not record what its input was" in refused.stderr


@pytest.mark.parametrize("file", ["../escaped.png", "/tmp/escaped.png", "a/../../escaped.png"])
def test_merge_of_a_manifest_with_paths_outside_touches_none_of_them(
    tmp_path: Path, file: str
) -> None:
    row = Row(
        file=file,
        document="design",
        element_index=0,
        element_type="SvgElement",
        status="captioned",
        caption="a",
        finished_at=0,
        run_id="1",
    )
    with contextlib.closing(Checkpoint(tmp_path / "foreign", 1)) as checkpoint:
        checkpoint.append(row)
    before = set(tmp_path.rglob("*"))
    result = run_here("merge", f"--output={tmp_path / 'out'}", str(tmp_path / "foreign"))
    assert f"not taken: {file} of {tmp_path / 'foreign'}: path_escape: " in result.stdout
    assert result.exit_code == 1
    new = set(tmp_path.rglob("*")) - before
    assert not [path for path in new if path.suffix == ".txt"]


def test_merge_replaces_no_caption_and_trusts_the_txt(tmp_path: Path) -> None:
    files = make_input(tmp_path, 4)
    shard_run(tmp_path, "1/1", "mine")
    shard_run(tmp_path, "1/1", "theirs")
    (tmp_path / "mine" / f"{files[0]}.txt").unlink()
    (tmp_path / "mine" / f"{files[1]}.txt").write_text("by hand")
    out = tmp_path / "all"
    arguments = ("merge", f"--output={out}", str(tmp_path / "mine"), str(tmp_path / "theirs"))
    merged = run_here(*arguments)
    assert merged.exit_code == 0
    kept = f"  not taken: 1 caption of {tmp_path / 'theirs'}: the items have others"
    assert kept in merged.stdout.splitlines()
    again = run_here("merge", f"--output={out}", str(tmp_path / "mine"))
    assert "not taken" not in again.stdout  # the edited caption is the one that was taken
    texts = captions(out)
    assert texts[files[1]] == "by hand"
    assert texts[files[0]] == f"caption of {files[0]}"
    assert rows(out)[files[1]]["recipe_id"] is None


def test_merge_keeps_a_caption_that_has_no_row_yet_in_the_folder_merged_into(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 2)
    shard_run(tmp_path, "1/1", "theirs")
    out = tmp_path / "all"
    (out / files[0]).parent.mkdir(parents=True)
    (out / f"{files[0]}.txt").write_text("by hand")
    assert run_here("merge", f"--output={out}", str(tmp_path / "theirs")).exit_code == 0
    assert captions(out) == {files[0]: "by hand", files[1]: f"caption of {files[1]}"}
    found = rows(out)[files[0]]
    assert (found["caption"], found["recipe_id"]) == ("by hand", None)


@pytest.mark.parametrize("has_failed_there_too", [False, True])
def test_merge_adopts_what_somebody_wrote_for_a_failed_item(
    tmp_path: Path, has_failed_there_too: bool
) -> None:
    files, out = make_input(tmp_path, 2), tmp_path / "all"
    (tmp_path / "raw" / files[0]).write_text("no image")
    flags = (*input_flags(tmp_path), *QUICK)
    for folder in ("theirs", *["all"] * has_failed_there_too):
        assert run(*flags, f"--output={tmp_path / folder}", command=FAKE).exit_code == 1
    (tmp_path / "theirs" / f"{files[0]}.txt").write_text("by hand")
    assert run_here("merge", f"--output={out}", str(tmp_path / "theirs")).exit_code == 0
    assert captions(out) == {files[0]: "by hand", files[1]: f"caption of {files[1]}"}
    found = rows(out)[files[0]]
    assert (found["status"], found["error_kind"], found["error"]) == ("captioned", None, None)
    assert (found["caption"], found["recipe_id"]) == ("by hand", None)


@pytest.mark.parametrize("folder", ["out", "absent"])
def test_impossible_merge_is_a_usage_error(tmp_path: Path, folder: str) -> None:
    (tmp_path / "out").mkdir()
    result = run_here("merge", f"--output={tmp_path / 'out'}", str(tmp_path / folder))
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


# --- shards of another number --------------------------------------------------------------------


def test_shard_of_another_number_waits_until_those_before_are_merged(tmp_path: Path) -> None:
    first = Output(tmp_path, 10, Shard(1, 4))
    first.save_caption(row("x.png"))
    first.close(complete=True)
    with pytest.raises(UsageError, match=r"^--shard 2/5: .* shards of 4 that are not merged, .*"):
        Output(tmp_path, 10, Shard(2, 5))
    assert [folder.name for folder in (tmp_path / "shards").iterdir()] == ["0001-of-0004"]
    Output(tmp_path, 10, Shard(2, 4)).close(complete=True)
    Output(tmp_path, 10).close(complete=True)  # merges them
    Output(tmp_path, 10, Shard(2, 5)).close(complete=True)


def test_shard_that_names_captions_by_stem_waits_until_those_without_txt_are_merged(
    tmp_path: Path,
) -> None:
    first = Output(tmp_path, 10, Shard(1, 2), lambda root: "none")
    first.save_caption(row("x.png", caption_path=None))
    first.close(complete=True)
    by_stem = partial(naming_of_run, asked="stem")
    with pytest.raises(UsageError, match="ran with --no-txt, which divide the input otherwise"):
        Output(tmp_path, 10, Shard(2, 2), by_stem)
    Output(tmp_path, 10, Shard(2, 2), partial(naming_of_run, asked="none")).close(complete=True)
    Output(tmp_path, 10, None, naming_of).close(complete=True)  # merges them
    assert Output(tmp_path, 10, Shard(2, 2), by_stem).files.naming == "stem"


def test_shard_of_another_number_does_not_run_beside_one_without_a_row(tmp_path: Path) -> None:
    first = Output(tmp_path, 10, Shard(1, 4))
    with pytest.raises(UsageError, match="use I/4, or merge them first"):
        Output(tmp_path, 10, Shard(2, 5))
    first.close(complete=True)
    Output(tmp_path, 10, Shard(2, 5)).close(complete=True)


def test_plan_of_a_shard_of_another_number_is_refused_as_its_run(tmp_path: Path) -> None:
    make_input(tmp_path, 1)
    first = Output(tmp_path / "o", 10, Shard(1, 4))
    first.save_caption(row("x.png"))
    first.close(complete=True)
    flags = ("--model=demo", *input_flags(tmp_path), f"--output={tmp_path / 'o'}")
    assert "has shards of 4" in run_here("plan", *flags, "--shard=1/2").stderr
    assert run_here("plan", *flags, "--shard=2/4").exit_code == 0
