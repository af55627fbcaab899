"""Commands that read what a run wrote take that run's line: only its first word changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.image_files import put
from support.job import FAKE, run, run_here, write_document

from vllm_caption import engine_flags
from vllm_caption.cli import main
from vllm_caption.flags import run_parser

READERS = ("status", "verify", "report", "merge", "export")
COMMANDS = ("plan", *READERS)
VALUES = {
    "--caption-name": "file",
    "--executor": "local",
    "--redo": "all",
    "--redo-kind": "poison,too_long",
    "--shard": "1/2",
    "--data-parallel-size": "2",
}
"""Values of the flags that do not accept 1."""
OF_VLLM = ("--gpu-memory-utilization", "0.8", "--enforce-eager", "-O3", "--hf-overrides", "-a b")
ELSEWHERE = {"--input", "--jsons", "--json-detail", "--images-root", "--limit", "--output"}
ELSEWHERE |= {"--image-column", "--id-column", "--type-column", "--skip-types"}
"""Flags that some of the commands have themselves."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two images, and what a run over them wrote."""
    folder = tmp_path_factory.mktemp("finished")
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        put(folder / "images", name, Image.new("RGB", (8, 8), colour))
    done = run(f"--input={folder / 'images'}", f"--output={folder / 'o'}", "-dp=1", command=FAKE)
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def done(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of these, which is the working directory."""
    folder = tmp_path / "done"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


def every_flag_of_run() -> list[str]:
    """Every flag that a line of `run` may have, each with a value."""
    words = []
    for action in dict.fromkeys(run_parser().flags.values()):
        flag = action.option_strings[0]
        if flag not in ELSEWHERE and action.dest not in ("help", "version"):
            words.append(flag)
            words += [] if action.nargs == 0 else [VALUES.get(flag, "1")]
    words.remove("--no-txt")  # contradicts --caption-name
    return words


def of(command: str, *line: str) -> list[str]:
    """A line of the command, as of `run`."""
    return [command, *(["t.jsonl"] if command == "export" else []), *line]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flags", [["--caption-name=file"], [*OF_VLLM], ["--max_num_seqs", "1"]])
def test_command_accepts_flags_of_a_line_that_runs(
    done: Path, command: str, flags: list[str]
) -> None:
    line = ["--input=images", "--model=demo", "--output=o", "-dp=1", *flags]
    result = run_here(*of(command, *line))
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("flags", [every_flag_of_run(), ["--no-txt"], [*OF_VLLM]])
def test_tune_accepts_every_flag_of_run_and_of_vllm(flags: list[str]) -> None:
    refused = run_here("tune", *flags, "--no-such-flag")
    assert refused.stderr.startswith("vllm-caption: error: --no-such-flag: unknown flag")


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize(
    "flags", [every_flag_of_run(), ["--no-txt"], [*OF_VLLM], ["--max_num_seqs", "1"]]
)
def test_command_accepts_every_flag_of_run_and_of_vllm(
    done: Path, command: str, flags: list[str]
) -> None:
    result = run_here(*of(command, "--output=o", *flags))
    assert result.exit_code == 0, result.stderr
    assert "error" not in result.stderr
    if command == "export":
        records = [json.loads(line) for line in Path("t.jsonl").read_text().splitlines()]
        assert [record["caption"] for record in records] == ["caption of a.png", "caption of b.png"]


@pytest.mark.parametrize("command", ["status", "verify", "report", "merge"])
def test_input_may_come_first_as_after_run(done: Path, command: str) -> None:
    result = run_here(command, "images", "--model=demo", "--output=o", "--max-num-seqs=4")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("command", ["status", "verify", "report"])
def test_output_may_come_first_if_no_flag_names_it(done: Path, command: str) -> None:
    result = run_here(command, "o")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("command", ["verify", "report", "merge"])
def test_captions_beside_their_images_are_named_twice_by_the_command_of_the_run(
    done: Path, command: str
) -> None:
    shutil.copytree("images", "o", dirs_exist_ok=True)
    result = run_here(command, "o", "--model=demo", "--output=o")
    assert result.exit_code == 0, result.stderr
    assert "holds no output" not in result.stderr


def test_folder_that_is_not_merged_is_named(done: Path) -> None:
    result = run_here("merge", "images", "--output=o")
    assert result.exit_code == 0
    assert result.stderr == "images holds no output of a run, so it is taken for the run's input.\n"


@pytest.mark.parametrize("command", ["status", "verify"])
def test_first_word_that_is_neither_input_nor_output_is_named(done: Path, command: str) -> None:
    wanted = "does not exist; name the folder that a run wrote"
    Path("o").rename("captions")
    refused = run_here(command, "nowhere")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == f"vllm-caption: error: nowhere: {wanted}, such as captions\n"
    refused = run_here(command, "captoins")
    assert refused.stderr.endswith(f"{wanted} (did you mean captions?)\n")
    refused = run_here(command, "nowhere", "--output=captions")
    assert "error: nowhere: does not exist; name the input of the run" in refused.stderr
    refused = run_here(command, "images")
    assert "error: images: holds no output of a run, and the default sh" in refused.stderr
    assert refused.exit_code == 2


def test_suggested_folder_is_the_newest_in_which_something_was_captioned(done: Path) -> None:
    for name, age_s in (("old", 200), ("new", 100), ("interrupted", 50), ("a_failed", 0)):
        shutil.copytree("o", name)
        os.utime(name, (1e9 - age_s, 1e9 - age_s))
    shutil.rmtree("o")
    for name in ("interrupted", "a_failed"):
        for part in Path(name, "manifest.parquet").iterdir():
            part.unlink()
    Path("interrupted/journal.jsonl").write_text("{}\n")
    Path("a_failed/journal.jsonl").unlink(missing_ok=True)
    for wanted in ("interrupted", "new", "old"):
        assert run_here("status", "nowhere").stderr.endswith(f", such as {wanted}\n")
        shutil.rmtree(wanted)
    assert run_here("status", "nowhere").stderr.endswith("name the folder that a run wrote\n")


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere", "--output nowhere: does not exist; name the folder that a run wrote"),
        ("images/a.png", "--output images/a.png: is not a folder; name the folder that"),
    ],
)
def test_wrong_output_is_named_and_nothing_is_said_of_the_input(
    done: Path, command: str, output: str, message: str
) -> None:
    refused = run_here(*of(command, f"--output={output}"))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["verify", "export"])
def test_folder_whose_input_is_not_known_is_named(done: Path, command: str) -> None:
    Path("o/input.json").unlink()
    refused = run_here(*of(command, "--output=o"))
    assert refused.exit_code == 2
    assert "--output o: does not record what its input was; name it" in refused.stderr
    assert run_here(*of(command, "--output=o", "--input=images")).exit_code == 0
    refused = run_here(*of(command, "--output=images"))
    assert "--output images: holds no output of a run; name the folder" in refused.stderr


@pytest.mark.parametrize("command", ["verify", "export"])
def test_designs_that_are_only_the_default_are_named(done: Path, command: str) -> None:
    Path("o/input.json").unlink()
    write_document(Path(), "one", ["a.png"], ["SvgElement"])
    result = run_here(*of(command, "--output=o"))
    said = "o does not record its input; using --jsons=jsons --json-detail=json_detail\n"
    assert result.stderr == said


@pytest.mark.parametrize("command", READERS)
def test_folder_that_this_user_may_not_read_is_a_usage_error(
    done: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    refused = run_here(*of(command, "--output=o"))
    assert refused.exit_code == 2
    assert "--output o: cannot be read; fix its permissions" in refused.stderr


def test_merge_of_one_folder_merges_its_shards_and_makes_no_other(done: Path) -> None:
    before = sorted(Path().rglob("*"))
    for line in (["images"], ["--output=images"], ["images", "--output=new"], ["o", "o"]):
        assert run_here("merge", *line).exit_code == 2, line
    assert sorted(Path().rglob("*")) == before
    merged = run_here("merge", "o")
    assert merged.exit_code == 0
    assert merged.stdout.splitlines()[-1] == "Manifest: o/manifest.parquet"
    assert not Path("shape_descriptions").exists()


@pytest.mark.parametrize(
    ("command", "flag", "suffix"),
    [("report", "--html", ".html"), ("export", "FILE", ".csv"), ("verify", "--json", ".json")],
)
def test_result_never_takes_the_place_of_a_folder_or_a_pipe(
    done: Path, command: str, flag: str, suffix: str
) -> None:
    def result(name: str) -> str:
        words = [name] if flag == "FILE" else [f"{flag}={name}"]
        refused = run_here(command, *words, "--output=o")
        assert (refused.exit_code, refused.stdout) == (2, "")
        return refused.stderr

    if flag != "FILE":  # such a folder would be an input
        Path(f"folder{suffix}").mkdir()
        assert f"{flag} folder{suffix}: is a folder; name a file" in result(f"folder{suffix}")
    if flag != "--json":  # which is written in place
        os.mkfifo(f"pipe{suffix}")
        assert f"{flag} pipe{suffix}: is not a regular file" in result(f"pipe{suffix}")
        assert Path(f"pipe{suffix}").is_fifo()


def test_empty_word_is_shown_as_one() -> None:
    assert "error: '': unexpected argument" in run_here("status", "").stderr


def test_default_output_is_used_if_the_command_names_only_the_input(done: Path) -> None:
    Path("o").rename("shape_descriptions")
    result = run_here("report", "images", "--model=demo")
    assert result.stdout.startswith("shape_descriptions/report.html: 2 items")


def test_folder_that_no_run_wrote_is_named_if_there_is_no_output_at_all(done: Path) -> None:
    result = run_here("report", "images")
    assert result.exit_code == 2
    assert "error: images: holds no output of a run; name the folder" in result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["verify", "--repare"], "--repare: unknown flag; did you mean --repair?"),
        (["report", "--galery=3"], "--galery: unknown flag; did you mean --gallery?"),
        (["status", "--wach"], "--wach: unknown flag; did you mean --watch?"),
    ],
)
@pytest.mark.parametrize("has_vllm", [True, False])
def test_misspelt_flag_of_a_command_is_refused_with_and_without_vllm(
    done: Path, monkeypatch: pytest.MonkeyPatch, line: list[str], message: str, has_vllm: bool
) -> None:
    if not has_vllm:
        monkeypatch.setattr(engine_flags, "flags_of_vllm", frozenset)
    result = run_here(*line, "--output=o")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"vllm-caption: error: {message}\n"


def test_misspelt_flag_of_the_run_is_refused_by_commands_that_read_its_output(done: Path) -> None:
    result = run_here("verify", "--output=o", "--gpu-memory-utilisation=0.8")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean --gpu-memory-utilization?" in result.stderr


def test_export_takes_the_output_as_its_second_word(done: Path) -> None:
    for words in (("e.jsonl", "o"), ("o", "e.jsonl"), ("e.jsonl", "o", "--model=demo")):
        exported = run_here("export", *words)
        assert exported.exit_code == 0, exported.stderr
        Path("e.jsonl").unlink()
    assert run_here("export", "e.jsonl", "images", "--output=o").exit_code == 0
    refused = run_here("export", "e.jsonl", "nowhere")
    assert "error: nowhere: does not exist; name the folder that a run wrote" in refused.stderr


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("status", "[OUTPUT] [FLAG ...]"),
        ("verify", "[OUTPUT] [FLAG ...]"),
        ("report", "[OUTPUT ...] [FLAG ...]"),
        ("export", "FILE [OUTPUT] [FLAG ...]"),
    ],
)
def test_help_shows_where_the_output_stands_and_says_it_of_no_other_flag(
    capsys: pytest.CaptureFixture[str], command: str, usage: str
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: vllm-caption {command} {usage} ")
    assert shown.count("without the flag") == (0 if command == "report" else 1)


def test_export_with_a_second_file_says_how_the_input_is_named(done: Path) -> None:
    Path("t.csv").write_text("image\na.png\n")
    result = run_here("export", "e.jsonl", "t.csv", "--output=o")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "t.csv: unexpected argument; name the input with --input" in result.stderr
    assert not Path("e.jsonl").exists()
