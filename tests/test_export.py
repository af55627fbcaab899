"""`export`: one record per element of the input, in a file that other tools read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.job import FAKE, QUICK, draw_shape, input_flags, make_input, run, run_here

from vllm_caption.commands.export import write
from vllm_caption.errors import UsageError


def make_table(folder: Path) -> Path:
    """Rows with an image, a second row of the same image, one that fails and one never tried."""
    for number in range(2):
        draw_shape(number).save(folder / f"{number}.png")
    (folder / "bad.png").write_text("no image")
    table = folder / "list.jsonl"
    names = ["0.png", "1.png", "0.png", "bad.png"]
    lines = [{"image": n, "id": place, "caption": "alt"} for place, n in enumerate(names)]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines) + "nonsense\n")
    flags = [f"--input={table}", f"--output={folder / 'out'}", "--id-column=id", "--limit=3"]
    assert run(*flags, *QUICK, command=FAKE).exit_code == 1
    return table


def export(folder: Path, name: str, *flags: str) -> Path:
    result = run_here("export", str(folder / name), *flags, f"--output={folder / 'out'}")
    assert result.exit_code == 0, result.stderr
    return folder / name


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, CSV's empty cells as None."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(newline="") as opened:
            return [{k: v or None for k, v in r.items()} for r in csv.DictReader(opened)]
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_limit_ends_the_file_after_as_many_items(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    flags = [f"--input={table}", "--id-column=id"]
    found = read(export(tmp_path, "e.csv", *flags, "--limit=3"))
    assert [record["file"] for record in found] == ["0.png", "1.png", "0.png", "bad.png"]
    assert len(read(export(tmp_path, "e.csv", *flags, "--limit=1"))) == 1


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_row_of_a_table_has_a_record_even_if_it_failed(tmp_path: Path, suffix: str) -> None:
    table = make_table(tmp_path)
    path = export(tmp_path, f"e.{suffix}", f"--input={table}", "--id-column=id")
    found = read(path)
    assert [record["file"] for record in found] == ["0.png", "1.png", "0.png", "bad.png", None]
    assert [record["caption"] for record in found] == [
        *("caption of 0.png", "caption of 1.png", "caption of 0.png"),
        *(None, None),
    ]
    assert [record["item_id"] for record in found[:4]] == ["0", "1", "2", "3"]
    kinds = [record["error_kind"] for record in found]
    assert kinds == [None, None, None, "not_an_image", "bad_name"]
    assert [record["input_caption"] for record in found[:4]] == ["alt"] * 4
    assert not [*tmp_path.glob(".e.*")]


def test_metadata_has_the_file_name_that_hugging_face_datasets_requires(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    first, *_ = read(export(tmp_path, "metadata.jsonl", f"--input={table}"))
    assert (first["file_name"], first["caption"]) == ("0.png", "caption of 0.png")


def test_output_folder_may_come_first_as_after_other_commands(tmp_path: Path) -> None:
    draw_shape(0).save(tmp_path / "a.png")
    out, target = tmp_path / "out", tmp_path / "e.jsonl"
    assert run(str(tmp_path), f"--output={out}", *QUICK, command=FAKE).exit_code == 0
    assert run_here("export", str(out), str(target)).exit_code == 0
    assert [record["caption"] for record in read(target)] == ["caption of a.png"]


def test_text_that_somebody_wrote_counts_instead_of_the_row(tmp_path: Path) -> None:
    for number in range(3):
        draw_shape(number).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_text("no image")
    out, target = tmp_path / "out", tmp_path / "e.jsonl"
    assert run(str(tmp_path), f"--output={out}", *QUICK, command=FAKE).exit_code == 1
    (out / "0.png.txt").write_text("by hand")
    (out / "bad.png.txt").write_text("what it should show")
    (out / "1.png.txt").unlink()
    draw_shape(9).save(tmp_path / "new.png")
    (out / "new.png.txt").write_text("not seen by a run yet")
    (tmp_path / "escaped.png.txt").write_text("outside")
    assert run_here("export", str(target), f"--output={out}").exit_code == 0
    found = {record["file"]: (record["caption"], record["error"]) for record in read(target)}
    assert found == {
        "0.png": ("by hand", None),
        "1.png": ("caption of 1.png", None),
        "2.png": ("caption of 2.png", None),
        "bad.png": ("what it should show", None),
        "new.png": ("not seen by a run yet", None),
    }
    table = tmp_path / "t.csv"
    table.write_text("file\n../escaped.png\n0.png\n")
    assert run_here("export", str(target), f"--output={out}", f"--input={table}").exit_code == 0
    assert [record["caption"] for record in read(target)] == [None, "by hand"]


def test_elements_of_designs_have_records_except_for_skipped_types(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 3)
    out = f"--output={tmp_path / 'out'}"
    assert run(*input_flags(tmp_path), out, *QUICK, command=FAKE).exit_code == 0
    found = read(export(tmp_path, "e.jsonl", *input_flags(tmp_path)))
    assert [record["file"] for record in found] == files
    assert all(record["document"] and record["caption"] for record in found)


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("e.txt", [], "must end in one of .jsonl, .csv, .parquet"),
        ("no/e.csv", [], "is in a folder that does not exist"),
        ("e.csv", ["--output={}/nowhere"], "--output {}/nowhere: does not exist"),
    ],
)
def test_impossible_export_is_a_mistake(
    tmp_path: Path, name: str, flags: list[str], said: str
) -> None:
    draw_shape(0).save(tmp_path / "a.png")
    given = [flag.format(tmp_path) for flag in flags]
    result = run_here("export", str(tmp_path / name), f"--input={tmp_path}", *given)
    assert result.exit_code == 2
    assert said.format(tmp_path) in result.stderr


def test_column_with_several_types_is_a_mistake_in_parquet_and_leaves_no_file(
    tmp_path: Path,
) -> None:
    records = [{"a": 1}, {"a": "x"}]
    with pytest.raises(UsageError, match=r"several types.*\(a: .*export to \.jsonl"):
        write(tmp_path / "e.parquet", records)
    assert [*tmp_path.iterdir()] == []
    assert write(tmp_path / "e.jsonl", records) == 2


def test_column_that_is_empty_in_the_first_records_may_have_text_later(tmp_path: Path) -> None:
    records = ({"a": None if number < 10_000 else "x"} for number in range(10_001))
    assert write(tmp_path / "e.parquet", records) == 10_001
    assert pq.read_schema(tmp_path / "e.parquet").field("a").type == pa.string()
