"""`verify` and `export` need only `--output`: a run records what its input was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.image_files import put
from support.job import FAKE, QUICK, draw_shape, input_flags, make_input, run, run_here

from vllm_caption.config import InputConfig
from vllm_caption.driver.run_input import as_in_last_run, encode_input
from vllm_caption.flags import make_input_config
from vllm_caption.store.layout import INPUT

DEFAULTS = {"input": None, "skip_types": InputConfig().skip_types, "limit": None}
CONFIGS = [
    InputConfig(Path("a"), Path("b"), Path("c")),
    InputConfig(Path("a"), Path("b"), "s3://bucket/prefix", skip_types=()),
    InputConfig(Path("\udcff"), Path("图形"), Path("/c d"), skip_types=("A", "B")),
    InputConfig(input=Path("t.csv"), images_root=Path("/c"), image_column="i", id_column="n"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_recorded_input_means_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: InputConfig
) -> None:
    (tmp_path / INPUT).write_bytes(encode_input(config))
    here = Path.cwd()
    monkeypatch.chdir(tmp_path)
    values, note = as_in_last_run({**DEFAULTS, "output": tmp_path}, (), tmp_path)
    found = make_input_config(values)
    assert note.startswith("As in the last run: --")
    assert found.skip_types == config.skip_types
    assert str(found.images_root) == (
        config.images_root
        if isinstance(config.images_root, str)
        else str(here / config.images_root)
    )
    assert (found.image_column, found.id_column) == (config.image_column, config.id_column)
    if config.input is None:
        assert (found.jsons, found.json_detail) == (here / config.jsons, here / config.json_detail)
    else:
        assert found.input == here / config.input


def test_given_flags_win_and_another_input_inherits_nothing(tmp_path: Path) -> None:
    (tmp_path / INPUT).write_bytes(encode_input(CONFIGS[2]))
    values = {**DEFAULTS, "images_root": "given", "jsons": "given"}
    taken, _ = as_in_last_run(values, {"images_root"}, tmp_path)
    assert taken["images_root"] == "given"
    assert taken["jsons"] == Path.cwd() / "\udcff"
    for name in ("input", "jsons", "json_detail"):
        assert as_in_last_run(values, {name}, tmp_path) == (values, "")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"jsons": 3, "skip_types": "A"}'])
def test_file_that_no_run_wrote_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INPUT).write_bytes(content)
    assert as_in_last_run(DEFAULTS, (), tmp_path) == (DEFAULTS, "")


def test_newest_of_the_folder_and_its_shards_counts(tmp_path: Path) -> None:
    for age, name in ((50, "shards/0001-of-0002"), (10, "shards/0002-of-0002"), (90, "")):
        path = tmp_path / name / INPUT
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_input(InputConfig(input=Path(f"/{age}"))))
        os.utime(path, (1e9 - age, 1e9 - age))
    assert as_in_last_run(DEFAULTS, (), tmp_path)[0]["input"] == Path("/10")


def test_output_alone_is_enough_for_verify_export_and_report_after_a_run(tmp_path: Path) -> None:
    make_input(tmp_path, 12)
    output = f"--output={tmp_path / 'o'}"
    ran = run(*QUICK, *input_flags(tmp_path), output, "--skip-types=A", command=FAKE)
    assert ran.exit_code == 0, ran.stderr
    verified = run_here("verify", output)
    assert (verified.exit_code, verified.stderr) == (
        *(0, f"As in the last run: {' '.join(input_flags(tmp_path))}\n"),
    )
    assert run_here("verify", output, "--quiet").stderr == ""
    exported = run_here("export", str(tmp_path / "all.jsonl"), output)
    assert "12 records, 12 with a caption" in exported.stdout
    assert run_here("report", output).exit_code == 0
    kept = json.loads((tmp_path / "o" / INPUT).read_bytes())
    assert kept["skip_types"] == ["A"]


def test_run_over_another_input_says_what_the_last_one_captioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, number in (("many", 4), ("few", 1)):
        for index in range(number):
            put(tmp_path / name, f"{name}{index}.png", draw_shape(index))
    (tmp_path / "same").symlink_to("many")

    def said(folder: Path | str, *flags: str) -> list[str]:
        ran = run(f"--input={folder}", "--output=o", *QUICK, *flags, command=FAKE)
        assert ran.exit_code == 0, ran.stderr
        return [line for line in ran.stderr.splitlines() if "another input" in line]

    begin = "The last run here captioned another input: "
    assert said("many", "--limit=3") == []
    assert said(tmp_path / "same", "--limit=3") == []
    assert said("few") == [f"{begin}same."]
    planned = run_here("plan", f"--input={tmp_path / 'many'}", "--output=o")
    assert f"{begin}few." in planned.stderr.splitlines()
    assert said("many") == [f"{begin}few (1 of 1 item)."]
    assert said("few") == [f"{begin}many (4 of 4 items)."]


def test_run_over_an_empty_input_does_not_replace_the_record(tmp_path: Path) -> None:
    make_input(tmp_path, 2)
    (tmp_path / "o").mkdir()
    kept = encode_input(CONFIGS[0])
    (tmp_path / "o" / INPUT).write_bytes(kept)
    flags = [
        *QUICK,
        *input_flags(tmp_path),
        f"--output={tmp_path / 'o'}",
        "--skip-types=SvgElement",
    ]
    assert run(*flags, command=FAKE).exit_code == 2
    assert (tmp_path / "o" / INPUT).read_bytes() == kept
