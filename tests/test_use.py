"""docs/use.md: each example does what it shows on a run's output, if its library is installed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.job import FAKE, QUICK, draw_shape, rows, run, write_document

from vllm_caption.store.rows import SCHEMA

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/use.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
LIBRARIES = [re.split(r"\s", example)[1] for example in EXAMPLES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where a run with relative paths has captioned two of three items."""
    folder = tmp_path_factory.mktemp("use")
    (folder / "raw/d").mkdir(parents=True)
    for number, file in enumerate(("a.png", "d/b.png")):
        draw_shape(number).save(folder / "raw" / file)
    write_document(folder, "doc", ["a.png", "d/b.png", "gone.png"], ["SvgElement"] * 3)
    result = run("--images-root=raw", *QUICK, command=FAKE, cwd=folder)
    assert result.exit_code == 1, result.stderr
    return folder


def test_image_path_is_absolute_although_the_images_root_was_not(folder: Path) -> None:
    made = rows(folder / "shape_descriptions")
    assert {file: row["image_path"] for file, row in made.items()} == {
        file: f"{folder}/raw/{file}" for file in ("a.png", "d/b.png", "gone.png")
    }


@pytest.mark.parametrize(("library", "example"), zip(LIBRARIES, EXAMPLES, strict=True))
def test_example_shows_the_captions_of_a_run(folder: Path, library: str, example: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "caption of a.png" in done.stdout
    assert "caption of d/b.png" in done.stdout


def test_first_example_shows_why_items_failed(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[0]], cwd=folder, capture_output=True, text=True, check=True
    )
    assert re.search(r"gone\.png +missing_file +\S+", done.stdout)


def test_every_column_is_explained_where_the_page_links_to() -> None:
    source = ROOT / "vllm_caption/store/rows.py"
    assert f"](../{source.relative_to(ROOT)})" in PAGE.read_text("utf-8")
    found = re.search(r"^class Row\(.*?^    def ", source.read_text("utf-8"), re.M | re.S)
    assert found
    explained = re.findall(r'^    (\w+): .+\n    """.+"""$', found[0], re.M)
    # The height is explained with the width.
    assert explained == [name for name in SCHEMA.names if name != "image_height"]


def test_columns_that_the_page_names_exist() -> None:
    section = PAGE.read_text("utf-8").partition("## The manifest")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z_0-9]+)`", section))
    assert {"file", "caption", "error_kind"} <= named <= set(SCHEMA.names)


def test_page_shows_these_libraries() -> None:
    assert LIBRARIES == ["pandas", "duckdb", "polars", "datasets"]
