"""The names in an output folder: spelled out in one module, and none available to a caption."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_caption.config import Shard
from vllm_caption.store import layout

PACKAGE = Path(layout.__file__).parents[1]
NAMES = {
    layout.MANIFEST,
    layout.DAMAGED_PARTS,
    layout.JOURNAL,
    layout.DOCUMENTS,
    layout.NAMING,
    layout.RECIPES,
    layout.STATUS,
    layout.SAMPLES,
    layout.INPUT,
    layout.REPORT,
    layout.COMPARISON,
    layout.LOCK,
    layout.OWNER,
    layout.PREFLIGHT_LOG,
    *(layout.part_name(1)[:5], layout.temporary_name(""), layout.engine_log(1)[-4:]),
}


def strings(path: Path) -> Iterator[str]:
    """Every string that is not a docstring."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in prose and type(node.value) is str:
            yield node.value


def test_no_other_module_spells_out_a_name_of_the_output_folder() -> None:
    spelled = [
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in PACKAGE.rglob("*.py")
        if path != Path(layout.__file__)
        for text in strings(path)
        if any(name in text for name in NAMES)
        or text in (layout.LOGS, layout.SHARDS)
        # A .txt beside an image in a tar is part of the input.
        or (text.startswith(layout.CAPTION_SUFFIX) and path.parent.name != "inputs")
    ]
    assert spelled == []


@pytest.mark.parametrize(
    "name",
    [
        "manifest.parquet",
        "manifest.damaged",
        "journal.jsonl",
        "documents.parquet",
        ".documents.parquet.tmp",
        "recipes.json",
        ".recipes.json.tmp",
        "recipes.json.damaged",
        "naming.json",
        "status.json",
        ".status.json.tmp",
        "monitor.parquet",
        ".monitor.parquet.tmp",
        "report.html",
        "compare.html",
        "redo.json",
        "input.json",
        ".input.json.tmp",
        ".redo.json.tmp",
        ".rewriting.json",
        "..rewriting.json.tmp",
        ".run.lock",
        ".run.owner.json",
        "logs/engine-0.log",
        "logs/preflight.log",
        "shards/0001-of-0008",
    ],
)
def test_no_caption_may_need_a_folder_with_a_name_of_the_job(name: str) -> None:
    assert layout.is_reserved(f"{name}/a.png")
    assert not layout.is_reserved(f"d/{name}/a.png")
    assert not layout.is_reserved(name)


@pytest.mark.parametrize(
    ("file", "by_stem"),
    [
        ("x.png", "x.txt"),
        ("d.1/x.png", "d.1/x.txt"),
        ("a.b.png", "a.b.txt"),
        ("x", "x.txt"),
        ("d.1/x", "d.1/x.txt"),
        (".png", ".png.txt"),
        ("d/.png", "d/.png.txt"),
        ("d/..png", "d/..png.txt"),
        ("x.", "x.txt"),
        ("x.txt", "x.txt.txt"),
        ("x.TXT", "x.TXT.txt"),
        ("x.txt.png", "x.txt.txt"),
        ("status.json", "status.txt"),
        ("manifest.parquet", "manifest.txt"),
        ("图形/é.png", "图形/é.txt"),
    ],
)
def test_caption_is_named_after_the_whole_file_or_after_its_stem(file: str, by_stem: str) -> None:
    assert layout.caption_name(file) == f"{file}.txt"
    assert layout.caption_name(file, "stem") == by_stem


@pytest.mark.parametrize("file", ["logs/a.png", "shards/a.png", "manifest.parquet.png/b.png"])
def test_names_that_the_job_does_not_use_are_free(file: str) -> None:
    assert not layout.is_reserved(file)


def test_parts_are_listed_by_number_without_those_being_written(tmp_path: Path) -> None:
    for number in (10, 9, 100_000_000):
        (tmp_path / layout.part_name(number)).touch()
    (tmp_path / layout.temporary_name(layout.part_name(11))).touch()
    numbers = [layout.part_number(path) for path in layout.parts(tmp_path)]
    assert numbers == [9, 10, 100_000_000]
    assert [path.name for path in layout.temporary_parts(tmp_path)] == [
        ".part-00000011.parquet.tmp"
    ]


def test_shard_is_found_by_its_folder(tmp_path: Path) -> None:
    shard = Shard(3, 8)
    layout.shard_folder(tmp_path, shard).mkdir(parents=True)
    assert layout.shard_folders(tmp_path) == {shard: tmp_path / "shards/0003-of-0008"}
    assert layout.state_folder(tmp_path, None) == tmp_path


@pytest.mark.parametrize(
    ("path", "is_temporary"),
    [
        (".status.json.tmp", True),
        ("shards/0001-of-0008/.status.json.tmp", True),
        (".report.html.4711.tmp", True),
        (".compare.html.4711.tmp", True),
        (".naming.json.3.tmp", True),
        (layout.PROBE, True),
        ("d0/.0123456789abcdef0123.tmp", True),
        ("d0/.status.json.tmp", False),
        ("status.json", False),
        (".mine.tmp", False),
    ],
)
def test_files_left_by_a_killed_process_are_distinguished_from_other_files(
    path: str, is_temporary: bool
) -> None:
    assert layout.is_temporary(path) == is_temporary
