"""`--caption-name stem` and `--no-txt`: every command keeps the naming that a folder started with.

The engines are fakes; command lines, processes and files are real.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from support.job import (
    FAKE,
    QUICK,
    Result,
    draw_shape,
    input_flags,
    rows,
    run,
    run_here,
    write_document,
)
from test_output import row

from vllm_caption.config import CaptionName, InputConfig, Shard
from vllm_caption.errors import ItemError, RunStopped, UsageError
from vllm_caption.inputs.reader import InputReader
from vllm_caption.items import Item
from vllm_caption.store.caption_files import CaptionFiles, NoCaptionFiles
from vllm_caption.store.layout import NAMING, OWNER
from vllm_caption.store.naming import naming_of_run, read_naming, record_naming, settle
from vllm_caption.store.output import Output
from vllm_caption.store.rows import Row

OTHER_RECIPE = "--max-tokens=50"
ODD_NAMES = ["d/a.b.png", "plain", ".png", "status.json", "x.png"]
BY_STEM = ["d/a.b.txt", "plain.txt", ".png.txt", "status.txt", "x.txt"]


def make(folder: Path, *files: str) -> None:
    """One document with these files, each a different image."""
    for number, file in enumerate(files):
        path = folder / "raw" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_shape(number).save(path, format="PNG")
    write_document(folder, "doc", list(files), ["SvgElement"] * len(files))


def job(folder: Path, *flags: str, out: str = "out") -> Result:
    """Run into ``folder/out``."""
    arguments = (*input_flags(folder), f"--output={folder / out}", *QUICK, *flags)
    result = run(*arguments, command=FAKE)
    assert "Traceback" not in result.stderr
    return result


def other(folder: Path, command: str, *flags: str, out: str = "out") -> Result:
    """Another command over the same folders, without a naming flag."""
    inputs = input_flags(folder) + ["--model=demo"] * (command == "plan")
    result = run_here(command, *inputs, f"--output={folder / out}", *flags)
    assert "Traceback" not in result.stderr
    return result


def txt_files(folder: Path, out: str = "out") -> dict[str, str]:
    """Path in the output folder → text."""
    found = (folder / out).rglob("*.txt")
    return {str(path.relative_to(folder / out)): path.read_text() for path in found}


# --- which naming ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "asked", "chosen"),
    [
        (None, None, "file"),
        (None, "stem", "stem"),
        (None, "none", "none"),
        ("stem", None, "stem"),
        ("stem", "stem", "stem"),
        ("file", None, "file"),
        ("none", None, "file"),
        ("none", "none", "none"),
        ("none", "stem", "stem"),
        ("file", "stem", "the captions in out are named by file, as x.png.txt"),
        ("stem", "file", "the captions in out are named by stem, as x.txt"),
        ("file", "none", "--no-txt: would leave old .txt files in out"),
    ],
)
def test_folder_keeps_the_naming_it_started_with(
    known: CaptionName | None, asked: CaptionName | None, chosen: str
) -> None:
    try:
        assert settle(Path("out"), known, asked) == chosen
    except UsageError as error:
        assert chosen in str(error)
        assert "choose another --output" in str(error)


def test_naming_is_recorded_before_the_first_caption_and_only_if_it_changes(
    tmp_path: Path,
) -> None:
    assert read_naming(tmp_path) is None
    record_naming(tmp_path, "stem", 0)
    before = (tmp_path / NAMING).stat()
    record_naming(tmp_path, "stem", 0)
    assert read_naming(tmp_path) == "stem"
    assert (tmp_path / NAMING).stat().st_ino == before.st_ino
    assert os.listdir(tmp_path) == [NAMING]


@pytest.mark.parametrize("close", [True, False])
def test_folder_from_a_version_without_a_record_has_captions_named_by_file(
    tmp_path: Path, close: bool
) -> None:
    output = Output(tmp_path, 10)
    output.save_caption(row("x.png"))
    if close:
        output.close(complete=False)
    (tmp_path / NAMING).unlink()
    assert read_naming(tmp_path) == "file"


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("naming", ["file", "stem"])
def test_if_its_record_was_removed_the_naming_is_that_of_the_rows(
    tmp_path: Path, naming: CaptionName, close: bool
) -> None:
    output = Output(tmp_path, 10, choose_naming=lambda root: naming)
    for file in (".png", "x.png"):  # the first one has the same .txt by both
        output.save_caption(row(file, caption_path=output.files.name(file)))
    if close:
        output.close(complete=True)
    (tmp_path / NAMING).unlink()
    assert read_naming(tmp_path) == naming


@pytest.mark.parametrize("content", ['{"caption_name": "whole"}', '{"x": ' + "[" * 100_000])
def test_damaged_record_is_reported_with_what_to_write_there(tmp_path: Path, content: str) -> None:
    (tmp_path / NAMING).write_text(content)
    with pytest.raises(RunStopped, match=r'naming.json is damaged .*"caption_name": "file"'):
        read_naming(tmp_path)


def test_captions_of_older_scripts_are_not_recaptioned_under_other_names(
    tmp_path: Path,
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "notes.txt").touch()
    assert naming_of_run(tmp_path, "stem") == "stem"
    (tmp_path / "d/x.PNG.txt").write_text("mine")
    assert naming_of_run(tmp_path, None) == "file"
    with pytest.raises(UsageError, match=r"named by file, as d/x\.PNG\.txt"):
        naming_of_run(tmp_path, "stem")


# --- names that meet ---------------------------------------------------------------------------


def test_second_file_with_a_stem_is_an_output_conflict_unless_the_first_has_no_caption(
    tmp_path: Path,
) -> None:
    files = CaptionFiles(tmp_path, naming="stem")
    files.claims.record(["b.jpg"])
    files.check_name("a.png")
    files.check_name("a.png")
    files.check_name("d/a.jpg")
    files.check_name("b.jpg")
    for file, owner in (("a.jpg", "a.png"), ("a", "a.png"), ("b.png", "b.jpg")):
        with pytest.raises(ItemError, match=f"its .txt is that of {owner}, .* only in its ending"):
            files.check_name(file)


def test_name_may_be_as_long_as_the_name_of_its_caption_allows(tmp_path: Path) -> None:
    longest = "a" * 251
    files = CaptionFiles(tmp_path, naming="stem")
    files.check_name(f"{longest}.png")
    files.write(f"{longest}.png", "text")
    assert os.listdir(tmp_path) == [f"{longest}.txt"]
    with pytest.raises(ItemError, match="over 255 bytes"):
        files.check_name(f"a{longest}.png")
    NoCaptionFiles(tmp_path, naming="none").check_name(f"a{longest}.png")


def test_files_with_the_same_stem_are_in_one_shard_so_that_their_conflict_is_found(
    tmp_path: Path,
) -> None:
    files = [f"{number}.{ending}" for number in range(20) for ending in ("png", "jpg", "webp")]
    make(tmp_path, *files)
    config = InputConfig(tmp_path / "jsons", tmp_path / "json_detail", tmp_path / "raw")
    found: list[set[str]] = []
    for index in (1, 2, 3):
        of_shard = InputConfig(
            config.jsons, config.json_detail, config.images_root, shard=Shard(index, 3)
        ).named("stem")
        found.append({e.file for e in InputReader(of_shard) if isinstance(e, Item)})
    assert set().union(*found) == set(files)
    assert sum(map(len, found)) == len(files)
    stems = [{file.partition(".")[0] for file in shard} for shard in found]
    assert sum(map(len, stems)) == 20


# --- the whole job by stem ---------------------------------------------------------------------


def test_run_by_stem_is_resumed_verified_and_merged_by_stem_without_a_flag(tmp_path: Path) -> None:
    make(tmp_path, *ODD_NAMES, "x.jpg")
    first = job(tmp_path, "--caption-name=stem")
    assert first.exit_code == 1
    assert "<file without its ending>.txt" in first.stdout
    expected = {name: f"caption of {file}" for name, file in zip(BY_STEM, ODD_NAMES, strict=True)}
    assert txt_files(tmp_path) == expected
    made = rows(tmp_path / "out")
    assert [made[file]["caption_path"] for file in ODD_NAMES] == BY_STEM
    assert made["x.jpg"]["error_kind"] == "output_conflict"
    assert "its .txt is that of x.png" in made["x.jpg"]["error"]

    (tmp_path / "out/x.txt").unlink()  # comes back
    (tmp_path / "out/plain.txt").write_text("mine, and longer than it was")
    plan = other(tmp_path, "plan")
    assert "run; it only writes the missing .txt files:" in plan.stdout
    again = job(tmp_path)
    assert "captioned 5 (0 in this run), failed 1" in again.stdout
    assert "1 edited caption" in again.stdout
    expected["plain.txt"] = "mine, and longer than it was"
    assert txt_files(tmp_path) == expected

    for flag in ("--caption-name=file", "--no-txt"):
        for refused in (job(tmp_path, flag), other(tmp_path, "plan", flag)):
            assert refused.exit_code == 2
            assert f"error: {flag.partition('=')[0]}" in refused.stderr
            assert len(refused.stderr.splitlines()) == 1
    assert txt_files(tmp_path) == expected

    (tmp_path / "out/old.txt").write_text("of no item")
    (tmp_path / "out/x.txt").unlink()
    verified = other(tmp_path, "verify", "--repair")
    for found in ("1 × a .txt whose item is not in the input", "old.txt", "missing_txt", "edited"):
        assert found in verified.stdout
    assert verified.stdout.count("orphan_txt: ") == 1
    assert txt_files(tmp_path) == expected | {"old.txt": "of no item"}

    merged = run_here("merge", f"--output={tmp_path / 'all'}", str(tmp_path / "out"))
    assert merged.exit_code == 0, merged.stderr
    assert txt_files(tmp_path, "all") == expected
    assert read_naming(tmp_path / "all") == "stem"


def test_merge_into_a_folder_with_another_naming_uses_the_naming_of_that_folder(
    tmp_path: Path,
) -> None:
    for folder, naming, files in (
        ("a", "stem", ["x.png"]),
        ("b", "file", ["y.png", "y.jpg"]),
        ("c", "none", ["z.png", "x.jpg"]),
    ):
        (tmp_path / folder).mkdir()
        record_naming(tmp_path / folder, naming, 0)  # type: ignore[arg-type]
        output = Output(tmp_path / folder, 10)
        for file in files:
            output.save_caption(row(file))
        output.close(complete=True)
    merged = run_here("merge", f"--output={tmp_path / 'a'}", *(f"{tmp_path}/{n}" for n in "bc"))
    assert merged.exit_code == 1, merged.stderr  # two captions have no place there
    texts = txt_files(tmp_path, "a")
    assert sorted(texts) == ["x.txt", "y.txt", "z.txt"]
    assert texts["x.txt"] == "caption of x.png"
    assert merged.stdout.count("its .txt is that of") == 2
    assert rows(tmp_path / "a")["z.png"]["caption_path"] == "z.txt"


def test_copies_of_an_image_share_its_caption_each_under_its_stem(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png")
    (tmp_path / "raw/b.png").write_bytes((tmp_path / "raw/a.png").read_bytes())
    assert job(tmp_path, "--caption-name=stem", "-dp=1").exit_code == 0
    make(tmp_path, "a.png", "b.png", "c.png")
    for copy in ("b.png", "c.png"):
        (tmp_path / "raw" / copy).write_bytes((tmp_path / "raw/a.png").read_bytes())
    assert job(tmp_path).exit_code == 0
    texts = txt_files(tmp_path)
    assert sorted(texts) == ["a.txt", "b.txt", "c.txt"]
    assert len(set(texts.values())) == 1


def test_image_named_txt_is_never_mistaken_for_a_caption(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "picture.txt")
    before = (tmp_path / "raw/picture.txt").read_bytes()
    assert job(tmp_path, "--caption-name=stem", out="raw").exit_code == 0
    assert (tmp_path / "raw/picture.txt").read_bytes() == before
    assert (tmp_path / "raw/picture.txt.txt").read_text() == "caption of picture.txt"
    assert (tmp_path / "raw/a.txt").read_text() == "caption of a.png"


# --- a folder without a caption ------------------------------------------------------------------


def failed(file: str) -> Row:
    return row(file, status="failed", caption=None, error_kind="missing_file", error="gone")


def test_folder_in_which_nothing_was_captioned_binds_nothing(tmp_path: Path) -> None:
    output = Output(tmp_path, 10, choose_naming=partial(naming_of_run, asked="file"))
    output.save_row(failed("x.png"))
    output.close(complete=True)
    asked: CaptionName
    for asked in ("stem", "none", "file"):
        Output(tmp_path, 10, choose_naming=partial(naming_of_run, asked=asked)).close(complete=True)
        assert read_naming(tmp_path) == asked


@pytest.mark.parametrize("left", ["row", "txt"])
def test_one_caption_binds_the_folder(tmp_path: Path, left: str) -> None:
    output = Output(tmp_path, 10, choose_naming=partial(naming_of_run, asked="file"))
    if left == "row":
        output.save_caption(row("x.png"))
        (tmp_path / "x.png.txt").unlink()
    else:  # the run was killed before its row was there
        output.files.write("x.png", "a caption")
    output.close(complete=True)
    with pytest.raises(UsageError, match=r"the captions in .* are named by file"):
        naming_of_run(tmp_path, "stem")


def test_shard_that_is_at_work_binds_the_folder_before_its_first_caption(tmp_path: Path) -> None:
    first = Output(tmp_path, 10, Shard(1, 2), partial(naming_of_run, asked="file"))
    owner = first.root / OWNER  # as if another process held it
    owner.write_text(owner.read_text().replace(f'"pid":{os.getpid()}', '"pid":1'))
    with pytest.raises(UsageError, match="are named by file"):
        Output(tmp_path, 10, Shard(2, 2), partial(naming_of_run, asked="stem"))
    first.close(complete=True)
    Output(tmp_path, 10, Shard(2, 2), partial(naming_of_run, asked="stem")).close(complete=True)
