"""An input from which nothing can be captioned is reported as a mistake by every command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
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
from support.locked import locked
from support.scan import row_of, scan

from vllm_caption.driver import resume
from vllm_caption.errors import UsageError


def job(folder: Path, *flags: str) -> Result:
    return run(*input_flags(folder), f"--output={folder / 'out'}", "--quiet", *flags, command=FAKE)


def swap(folder: Path) -> None:
    (folder / "jsons").rename(folder / "other")
    (folder / "json_detail").rename(folder / "jsons")
    (folder / "other").rename(folder / "json_detail")


def equal(name: str) -> Callable[[Path], None]:
    """Both folder flags name this one."""

    def link(folder: Path) -> None:
        other = "json_detail" if name == "jsons" else "jsons"
        shutil.rmtree(folder / other)
        (folder / other).symlink_to(folder / name)

    return link


def empty_details(folder: Path) -> None:
    shutil.rmtree(folder / "json_detail")
    (folder / "json_detail").mkdir()


def other_details(folder: Path) -> None:
    for path in (folder / "json_detail").iterdir():
        path.rename(path.with_name(f"detail_{path.name}"))


def broken(folder: Path) -> None:
    for path in (folder / "jsons").iterdir():
        path.write_text("{")


def texts(folder: Path) -> None:
    for name in ("design_000", "design_001"):
        write_document(folder, name, ["a.png", "b.png"], ["TextElement", "ImageElement"])


def no_images(folder: Path) -> None:
    for name in ("design_000", "design_001"):
        write_document(folder, name, [], [])


SPOILED: list[tuple[Callable[[Path], None], str]] = [
    (swap, "the details (`types`), and --json-detail {folder}/json_detail the designs: swap"),
    (equal("jsons"), "--json-detail {folder}/json_detail: is the folder of --jsons; name the one"),
    (equal("json_detail"), "--json-detail {folder}/json_detail: is the folder of --jsons"),
    (empty_details, "has no file for any of the 2 designs of --jsons, such as design_000.json"),
    (empty_details, "; it holds nothing"),
    (other_details, "; it holds detail_design_000.json, detail_design_001.json"),
    (broken, "--jsons {folder}/jsons: none of its 2 designs can be taken: invalid_json 2, e.g."),
    (texts, "leaves nothing to caption: the elements are TextElement 2, ImageElement 2"),
    (no_images, "--jsons {folder}/jsons: its 2 designs list no images"),
]


@pytest.mark.parametrize("command", ["run", "plan", "verify"])
@pytest.mark.parametrize(("spoil", "cause"), SPOILED)
def test_input_without_an_item_is_exit_2_with_its_likeliest_cause(
    tmp_path: Path, spoil: Callable[[Path], None], cause: str, command: str
) -> None:
    make_input(tmp_path, 20)
    (tmp_path / "out").mkdir()
    spoil(tmp_path)
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "--quiet"]
    result = run(*flags, command=FAKE) if command == "run" else run_here(command, *flags)
    assert result.exit_code == 2, result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("vllm-caption: error: --")
    assert cause.format(folder=tmp_path) in line


def test_documents_that_were_all_skipped_are_recorded(tmp_path: Path) -> None:
    make_input(tmp_path, 20)
    broken(tmp_path)
    assert job(tmp_path).exit_code == 2
    table = pq.read_table(tmp_path / "out/documents.parquet").to_pylist()
    assert [row["kind"] for row in table] == ["invalid_json"] * 2


def test_one_usable_document_is_enough(tmp_path: Path) -> None:
    make_input(tmp_path, 20)
    (tmp_path / "jsons/design_000.json").write_text("{")
    assert job(tmp_path).exit_code == 0


def test_shard_without_items_is_not_a_mistake_if_others_have_some(tmp_path: Path) -> None:
    make_input(tmp_path, 1)
    codes = [job(tmp_path, f"--shard={index}/4").exit_code for index in range(1, 5)]
    assert codes == [0, 0, 0, 0]


def test_elements_that_name_no_file_are_items_that_fail(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write_document(tmp_path, "odd", [None], ["SvgElement"])  # type: ignore[list-item]
    result = job(tmp_path)
    assert (result.exit_code, "bad_name 1" in result.stdout) == (1, True)


# --- no image ------------------------------------------------------------------------------------


def test_first_images_that_are_all_missing_stop_the_run_before_an_engine_starts(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 30)
    shutil.rmtree(tmp_path / "raw/d0")
    shutil.rmtree(tmp_path / "raw/d1")
    shutil.rmtree(tmp_path / "raw/d2")
    (tmp_path / "raw/elsewhere").mkdir()
    result = job(tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    root = tmp_path / "raw"
    assert f"--images-root {root}: none of the first images is there (30 paths tried" in line
    assert f"the first is {root}/{files[0]}); {root} is there and holds elsewhere" in line
    assert not captions(tmp_path / "out")
    assert run_here("plan", *input_flags(tmp_path), f"--output={tmp_path / 'out'}").exit_code == 2


def test_folder_that_this_user_may_not_enter_does_not_hide_that_no_image_is_there(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, 30)
    shutil.rmtree(tmp_path / "raw")
    (tmp_path / "raw/lost+found").mkdir(parents=True)
    with locked(tmp_path / "raw/lost+found"):
        result = run_here("plan", *input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{tmp_path / 'raw'} is there and holds lost+found\n" in result.stderr


def test_name_that_is_refused_does_not_show_that_the_root_is_right(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    shutil.rmtree(tmp_path / "raw")
    (tmp_path / "raw").mkdir()
    write_document(tmp_path, "odd", ["../own/x.png"], ["SvgElement"])
    with pytest.raises(UsageError, match=f"3 paths tried, the first is .*{files[0]}"):
        scan(tmp_path)


def test_items_of_a_run_that_found_no_image_are_not_charged(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    (tmp_path / "raw").rename(tmp_path / "images")
    (tmp_path / "raw").mkdir()
    assert job(tmp_path).exit_code == 2
    (tmp_path / "raw").rmdir()
    (tmp_path / "images").rename(tmp_path / "raw")
    result = job(tmp_path)
    assert (result.exit_code, "captioned 3 (3 in this run)" in result.stdout) == (0, True)
    assert sorted(captions(tmp_path / "out")) == files


def test_reading_stops_after_so_many_missing_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_input(tmp_path, 60)
    shutil.rmtree(tmp_path / "raw")
    (tmp_path / "raw").mkdir()
    monkeypatch.setattr(resume, "MAX_MISSING", 20)
    with pytest.raises(UsageError, match="20 paths tried"):
        scan(tmp_path)


def test_resumed_run_stops_if_its_images_are_not_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_input(tmp_path, 60)
    shutil.rmtree(tmp_path / "raw")
    (tmp_path / "raw").mkdir()
    monkeypatch.setattr(resume, "MAX_MISSING", 20)
    with pytest.raises(UsageError, match="20 paths tried"):
        scan(tmp_path, map(row_of, files[:30]))


def test_images_that_were_missing_before_are_failures_however_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_input(tmp_path, 30)
    shutil.rmtree(tmp_path / "raw")
    (tmp_path / "raw").mkdir()
    monkeypatch.setattr(resume, "MAX_MISSING", 5)
    known = [row_of(file, status="failed", error_kind="missing_file") for file in files[10:]]
    found, _ = scan(tmp_path, [*map(row_of, files[:10]), *known])
    assert [row.error_kind for row in found.rows] == ["missing_file"] * 20


def test_elements_without_a_name_leave_no_rows_if_the_folders_are_mixed_up(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, 0)
    write_document(tmp_path, "design", [f"{n}.png" for n in range(600)], ["SvgElement"] * 600)
    equal("json_detail")(tmp_path)
    assert job(tmp_path).exit_code == 2
    assert not rows(tmp_path / "out")


@pytest.mark.parametrize("there", ["image", "caption"])
def test_one_existing_image_or_caption_shows_that_the_root_is_right(
    tmp_path: Path, there: str
) -> None:
    files = make_input(tmp_path, 5)
    for file in files[: 4 if there == "image" else 5]:
        (tmp_path / "raw" / file).unlink()
    if there == "caption":
        (tmp_path / "out/d0").mkdir(parents=True)
        (tmp_path / "out" / f"{files[4]}.txt").write_text("of the old script")
    result = job(tmp_path)
    assert (result.exit_code, "missing_file 4" in result.stdout) == (1, True)


@pytest.mark.parametrize(
    ("root", "right"), [("raw/d0", "raw"), (".", "raw"), ("raw/d0/x/y", "raw")]
)
def test_nearby_root_that_has_the_images_is_named(tmp_path: Path, root: str, right: str) -> None:
    files = make_input(tmp_path, 3)
    (tmp_path / root).mkdir(parents=True, exist_ok=True)
    flags = [*input_flags(tmp_path)[:2], f"--images-root={tmp_path / root}"]
    result = run_here("plan", *flags, f"--output={tmp_path / 'out'}")
    assert result.exit_code == 2
    named = f"{tmp_path / right}/{files[0]} is there: use --images-root {tmp_path / right}"
    assert named in result.stderr
