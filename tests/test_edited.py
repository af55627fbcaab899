"""Captions that were lost, edited or added by hand, through the whole job with fake engines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.job import (
    FAKE,
    Result,
    captions,
    input_flags,
    make_input,
    rows,
    run,
    run_here,
    write_document,
)

from vllm_caption.store.caption_files import MAX_CAPTION_BYTES

OTHER_RECIPE = "--max-tokens=50"


def job(folder: Path, *flags: str) -> Result:
    """One run over the input into ``folder/out``."""
    return run(*input_flags(folder), f"--output={folder / 'out'}", "--quiet", *flags, command=FAKE)


def txt(folder: Path, file: str) -> Path:
    return folder / "out" / f"{file}.txt"


def edit(path: Path, text: str) -> None:
    """Edit as a person would, a minute later."""
    path.write_text(text)
    later_s = path.stat().st_mtime + 60
    os.utime(path, (later_s, later_s))


# --- lost ----------------------------------------------------------------------------------------


def test_lost_captions_are_restored_from_their_rows_without_an_engine(tmp_path: Path) -> None:
    files = make_input(tmp_path, 12)
    assert job(tmp_path).exit_code == 0
    made = captions(tmp_path / "out")
    for file in files[:5]:
        txt(tmp_path, file).unlink()
    txt(tmp_path, files[5]).write_bytes(b"")
    result = job(tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Items: 12, captioned 12 (0 in this run), failed 0" in result.stdout
    assert (
        "6 caption files missing or empty: 6 restored from their rows, 0 captioned again"
        in result.stdout
    )
    assert captions(tmp_path / "out") == made
    assert run_here("verify", *input_flags(tmp_path), f"--output={tmp_path / 'out'}").exit_code == 0
    assert "missing" not in job(tmp_path).stdout


def test_deleted_folder_of_captions_is_restored(tmp_path: Path) -> None:
    files = make_input(tmp_path, 600)
    assert job(tmp_path, "--no-dedup").exit_code == 0
    for file in files:
        txt(tmp_path, file).unlink()
    result = job(tmp_path)
    assert result.exit_code == 0
    assert "captioned 600 (0 in this run)" in result.stdout
    assert captions(tmp_path / "out") == {file: f"caption of {file}" for file in files}


def test_lost_captions_of_another_recipe_are_captioned_again(tmp_path: Path) -> None:
    files = make_input(tmp_path, 4)
    assert job(tmp_path).exit_code == 0
    txt(tmp_path, files[0]).unlink()
    result = job(tmp_path, OTHER_RECIPE)
    assert result.exit_code == 0
    assert "captioned 4 (1 in this run)" in result.stdout
    assert "1 caption file missing or empty: 0 restored from their rows, 1 " in result.stdout
    said = (
        "3 kept captions are stale (--redo stale captions them again): made with --max-tokens 100\n"
    )
    assert said in result.stdout
    made = rows(tmp_path / "out")
    assert len({made[file]["recipe_id"] for file in files}) == 2


def test_lost_caption_whose_path_is_taken_fails_and_the_others_are_restored(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    assert job(tmp_path).exit_code == 0
    for file in files:
        txt(tmp_path, file).unlink()
    txt(tmp_path, files[1]).mkdir()
    result = job(tmp_path)
    assert result.exit_code == 1
    assert "output_conflict 1" in result.stdout
    assert sorted(captions(tmp_path / "out")) == [files[0], files[2]]


def test_lost_caption_stays_in_its_row_if_making_another_fails(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    job(tmp_path)
    made = captions(tmp_path / "out")
    txt(tmp_path, files[0]).unlink()
    txt(tmp_path, files[1]).unlink()
    txt(tmp_path, files[1]).mkdir()
    (tmp_path / "raw" / files[0]).unlink()
    for _ in range(2):
        result = job(tmp_path, OTHER_RECIPE)
        assert (result.exit_code, result.stdout.count("failed 2")) == (1, 1)
    txt(tmp_path, files[1]).rmdir()
    assert job(tmp_path).exit_code == 0
    assert captions(tmp_path / "out") == made


def test_shard_restores_its_lost_captions(tmp_path: Path) -> None:
    files = make_input(tmp_path, 20)
    for shard in ("1/2", "2/2"):
        assert job(tmp_path, f"--shard={shard}").exit_code == 0
    for file in files:
        txt(tmp_path, file).unlink()
    for shard in ("1/2", "2/2"):
        assert "(0 in this run)" in job(tmp_path, f"--shard={shard}").stdout
    assert captions(tmp_path / "out") == {file: f"caption of {file}" for file in files}


# --- of people -----------------------------------------------------------------------------------


@pytest.mark.parametrize("redo", ["stale", "all"])
def test_redo_replaces_what_a_run_made_and_nothing_that_a_person_wrote(
    tmp_path: Path, redo: str
) -> None:
    files = make_input(tmp_path, 6)
    txt(tmp_path, files[0]).parent.mkdir(parents=True)
    txt(tmp_path, files[0]).write_text("of the old script")
    assert job(tmp_path).exit_code == 0
    edit(txt(tmp_path, files[1]), "by hand")
    result = job(tmp_path, OTHER_RECIPE, f"--redo={redo}")
    assert (result.exit_code, "captioned 6 (4 in this run)" in result.stdout) == (0, True)
    assert "1 edited caption, 1 adopted caption: kept, also by --redo." in result.stdout
    spared = "2 of these would be captioned again with --overwrite-edited"
    assert (spared in result.stdout) == (redo == "all")
    kept = captions(tmp_path / "out")
    assert (kept[files[0]], kept[files[1]]) == ("of the old script", "by hand")


def test_overwrite_edited_replaces_everything(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    txt(tmp_path, files[0]).parent.mkdir(parents=True)
    txt(tmp_path, files[0]).write_text("of the old script")
    assert job(tmp_path).exit_code == 0
    edit(txt(tmp_path, files[1]), "by hand")
    result = job(tmp_path, "--redo=all", "--overwrite-edited")
    assert "captioned 3 (3 in this run)" in result.stdout
    assert captions(tmp_path / "out") == {file: f"caption of {file}" for file in files}


def test_overwrite_edited_replaces_nothing_that_cannot_be_read(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    job(tmp_path)
    txt(tmp_path, files[0]).unlink()
    os.mkfifo(txt(tmp_path, files[0]))
    os.truncate(txt(tmp_path, files[1]), MAX_CAPTION_BYTES + 1)
    result = job(tmp_path, "--redo=all")
    assert (result.exit_code, "--overwrite-edited" in result.stdout) == (0, False)
    result = job(tmp_path, "--redo=all", "--overwrite-edited")
    assert result.exit_code == 1
    assert "output_conflict 2" in result.stdout
    assert txt(tmp_path, files[0]).is_fifo()
    assert txt(tmp_path, files[1]).stat().st_size == MAX_CAPTION_BYTES + 1


def test_twin_of_an_edited_caption_gets_its_own_caption(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    job(tmp_path)
    edit(txt(tmp_path, files[0]), "by hand, and much better")
    copies = ["copy/0.png", "copy/1.png"]
    (tmp_path / "raw/copy").mkdir()
    for file, copy in zip(files, copies, strict=False):
        (tmp_path / "raw" / copy).write_bytes((tmp_path / "raw" / file).read_bytes())
    write_document(tmp_path, "copies", copies, ["SvgElement"] * 2)
    assert job(tmp_path).exit_code == 0
    made = rows(tmp_path / "out")
    assert [made[copy]["caption"] for copy in copies] == [
        "caption of copy/0.png",
        f"caption of {files[1]}",
    ]
    assert txt(tmp_path, files[0]).read_text() == "by hand, and much better"


def test_no_message_advises_replacing_what_a_person_wrote(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    assert job(tmp_path).exit_code == 0
    for file in files:
        edit(txt(tmp_path, file), "by hand")
    flags = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    said = [job(tmp_path, OTHER_RECIPE).stdout, job(tmp_path, OTHER_RECIPE, "--redo=stale").stdout]
    for repair in ((), ("--repair",)):
        said.append(run_here("verify", *flags, *repair).stdout)
        said.append(run_here("plan", *flags, OTHER_RECIPE).stdout)
    said.append(job(tmp_path, OTHER_RECIPE).stdout)
    assert not [text for text in said if "--redo stale" in text or "overwrite" in text]
    assert captions(tmp_path / "out") == dict.fromkeys(files, "by hand")
