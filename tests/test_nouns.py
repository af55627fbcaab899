"""Documents and elements have the names that fit the input, wherever people read about them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.image_files import encoded, put
from support.job import FAKE, input_flags, make_input, run, run_here

CONTENTS = [encoded(Image.new("RGB", (8 + n, 8)), "PNG") for n in range(3)]


def folder(root: Path) -> list[str]:
    for number, content in enumerate(CONTENTS):
        put(root / "images", f"{number}.png", content)
    return [str(root / "images")]


def table(root: Path) -> list[str]:
    folder(root)
    (root / "t.csv").write_text("image\n" + "".join(f"{n}.png\n" for n in range(3)))
    return [str(root / "t.csv"), f"--images-root={root / 'images'}"]


def table_of_lists(root: Path) -> list[str]:
    designs = [[{"bytes": content, "path": None} for content in CONTENTS]] * 2
    pq.write_table(pa.table({"image": designs}), root / "t.parquet")
    return [str(root / "t.parquet"), "--no-dedup"]


def tar(root: Path) -> list[str]:
    with tarfile.open(root / "t.tar", "w") as opened:
        for number, content in enumerate(CONTENTS):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return [str(root / "t.tar")]


def designs(root: Path) -> list[str]:
    make_input(root, 3)
    return input_flags(root)


@pytest.mark.parametrize(
    ("make", "noun", "number"),
    [
        (folder, "Folders", 1),
        (table, "Tables", 1),
        (table_of_lists, "Rows", 2),
        (tar, "Tars", 1),
        (designs, "Designs", 1),
    ],
)
def test_plan_run_and_verify_call_documents_by_their_name(
    tmp_path: Path, make: Callable[[Path], list[str]], noun: str, number: int
) -> None:
    line = [*make(tmp_path), f"--output={tmp_path / 'o'}", "-dp=1"]
    read = f"{number} read, 0 skipped"
    planned = run_here("plan", *line, "--model=demo").stdout
    assert f"{noun:10} {read}" in planned.splitlines()
    assert ("Elements" in planned) == (noun == "Designs")
    assert "(empty)" not in planned
    done = run(*line, command=FAKE)
    assert done.exit_code == 0, done.stderr
    assert f"{noun}: {read}" in done.stdout.splitlines()
    assert f"{noun:10} {read}" in run_here("verify", *line).stdout.splitlines()


def test_rows_with_types_are_counted_as_rows(tmp_path: Path) -> None:
    folder(tmp_path)
    path = tmp_path / "t.csv"
    path.write_text("image,kind\n0.png,Icon\n1.png,TextElement\n2.png,\n")
    flags = [f"--images-root={tmp_path / 'images'}", "--type-column=kind"]
    json_path = tmp_path / "plan.json"
    result = run_here(
        "plan", str(path), *flags, f"--output={tmp_path / 'o'}", f"--json={json_path}"
    )
    lines = result.stdout.splitlines()
    assert "Rows       3, of which 1 has a type that is skipped" in lines
    assert any(line.split() == ["no", "type", "1", "1", "item"] for line in lines)
    assert json.loads(json_path.read_text())["nouns"] == {"document": "table", "element": "row"}


def test_pilot_of_an_input_without_types_names_none(tmp_path: Path) -> None:
    line = [*folder(tmp_path), f"--output={tmp_path / 'o'}", "-dp=1", "--pilot=2"]
    done = run(*line, command=FAKE)
    assert done.exit_code == 0, done.stderr
    assert "Pilot: 2 of 3 items in 1 folder, across all file sizes\n" in done.stdout
