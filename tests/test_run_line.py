"""Commands that read what a run wrote take that run's line: only its first word changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.image_files import put
from support.job import FAKE, run, run_here

from vllm_caption import engine_flags
from vllm_caption.flags import run_parser

COMMANDS = ("status", "verify", "report", "merge", "export")
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


def test_empty_word_is_shown_as_one() -> None:
    assert "error: '': unexpected argument" in run_here("status", "").stderr


def test_default_output_is_used_if_the_command_names_only_the_input(done: Path) -> None:
    Path("o").rename("shape_descriptions")
    result = run_here("report", "images", "--model=demo")
    assert result.stdout.startswith("shape_descriptions/report.html: 2 items")


def test_folder_that_no_run_wrote_is_named_if_there_is_no_output_at_all(done: Path) -> None:
    result = run_here("report", "images")
    assert result.exit_code == 2
    assert "--output images: holds no rows yet" in result.stderr


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


def test_export_with_a_second_file_says_how_the_input_is_named(done: Path) -> None:
    Path("t.csv").write_text("image\na.png\n")
    result = run_here("export", "e.jsonl", "t.csv", "--output=o")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "t.csv: unexpected argument; name the input with --input" in result.stderr
    assert not Path("e.jsonl").exists()
