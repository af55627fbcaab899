"""What a rerun leaves to the engines, and what it settles by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.job import make_input, write_document
from support.scan import RECIPE, scan

from vllm_caption.config import (
    Redo,
)
from vllm_caption.store.rows import ItemState

CAPTIONED = ItemState("captioned", "old recipe", "", None)


def test_new_items_are_pending_in_the_order_of_their_documents(tmp_path: Path) -> None:
    files = make_input(tmp_path, 12)
    found, _ = scan(tmp_path)
    assert [item.file for item in found.pending] == files
    assert not found.rows


def test_captioned_item_is_done_whatever_made_it(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    found, _ = scan(tmp_path, {files[1]: CAPTIONED})
    assert [item.file for item in found.pending] == [files[0], files[2]]
    assert (found.num_done, found.num_stale) == (1, 1)


@pytest.mark.parametrize(
    ("redo", "pending"),
    [(None, ""), ("failed", ""), ("stale", "ac"), ("flagged", "b"), ("all", "abc")],
)
def test_redo_chooses_what_is_captioned_again(
    tmp_path: Path, redo: Redo | None, pending: str
) -> None:
    make_input(tmp_path, 0)
    write_document(tmp_path, "design", list("abc"), ["SvgElement"] * 3)
    known = {
        "a": CAPTIONED,
        "b": ItemState("captioned", RECIPE.id, "too_long", None),
        "c": ItemState("captioned", None, "", None),
    }
    found, _ = scan(tmp_path, known, redo)
    assert [item.file for item in found.pending] == list(pending)


@pytest.mark.parametrize(
    ("kinds", "pending"),
    [(("poison",), "cd"), (("too_long", "engine_error"), "abd"), (("cut_off",), "bd")],
)
def test_redo_kind_tries_these_and_new_items_and_leaves_other_failures_as_they_are(
    tmp_path: Path, kinds: tuple[str, ...], pending: str
) -> None:
    make_input(tmp_path, 0)
    write_document(tmp_path, "design", list("abcd"), ["SvgElement"] * 4)
    known = {
        "a": ItemState("failed", "r", "", "engine_error"),
        "b": ItemState("captioned", "r", "too_long,cut_off", None),
        "c": ItemState("failed", "r", "", "poison"),
    }
    found, _ = scan(tmp_path, known, redo_kinds=kinds)
    assert [item.file for item in found.pending] == list(pending)
    kept = {file for _, file in found.failures_kept}
    assert kept == {"a", "c"} - set(pending)


def test_txt_without_a_row_is_adopted_with_its_text(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    old = tmp_path / "out" / f"{files[0]}.txt"
    old.parent.mkdir(parents=True)
    old.write_text("from the old script")
    found, _ = scan(tmp_path)
    (row,) = found.rows
    assert (row.file, row.status, row.caption) == (files[0], "captioned", "from the old script")
    assert [item.file for item in found.pending] == [files[1]]


def test_failed_item_whose_file_is_still_broken_is_settled_without_an_engine(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 2)
    (tmp_path / "raw" / files[0]).unlink()
    found, _ = scan(tmp_path, {files[0]: ItemState("failed", None, "", "missing_file")})
    assert [(row.file, row.error_kind) for row in found.rows] == [(files[0], "missing_file")]
    assert [item.file for item in found.pending] == [files[1]]


@pytest.mark.parametrize("kind", ["missing_file", "engine_error", "poison", "caption_rejected"])
def test_failed_item_whose_file_is_well_is_tried_again(tmp_path: Path, kind: str) -> None:
    files = make_input(tmp_path, 1)
    found, _ = scan(tmp_path, {files[0]: ItemState("failed", None, "", kind)})
    assert [item.file for item in found.pending] == files


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("../secret.png", "path_escape"),
        ("/etc/passwd", "path_escape"),
        ("a/" + "x" * 252, "bad_name"),
        ("manifest.parquet/x.png", "output_conflict"),
    ],
)
def test_name_that_must_not_reach_the_disk_fails_before_anything_is_read_or_written(
    tmp_path: Path, file: str, kind: str
) -> None:
    make_input(tmp_path, 0)
    write_document(tmp_path, "design", [file], ["SvgElement"])
    (tmp_path / "secret.png.txt").write_text("not a caption of ours")
    found, _ = scan(tmp_path)
    assert [(row.file, row.error_kind) for row in found.rows] == [(file, kind)]
    assert not found.pending


def test_caption_whose_place_is_taken_fails_before_an_engine_sees_its_image(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    (tmp_path / "out" / f"{files[0]}.txt").mkdir(parents=True)
    found, _ = scan(tmp_path)
    assert [(row.file, row.error_kind) for row in found.rows] == [(files[0], "output_conflict")]
    assert [item.file for item in found.pending] == files[1:]


@pytest.mark.parametrize("redo", ["all", "stale"])
def test_caption_to_be_replaced_whose_place_is_taken_fails_before_an_engine_sees_its_image(
    tmp_path: Path, redo: Redo
) -> None:
    files = make_input(tmp_path, 2)
    (tmp_path / "out" / f"{files[0]}.txt").mkdir(parents=True)
    found, _ = scan(tmp_path, dict.fromkeys(files, CAPTIONED), redo)
    assert [(row.file, row.error_kind) for row in found.rows] == [(files[0], "output_conflict")]
    assert [item.file for item in found.pending] == files[1:]


def test_entry_without_a_file_name_fails_under_its_place_in_its_document(tmp_path: Path) -> None:
    make_input(tmp_path, 1)
    write_document(tmp_path, "odd", [None, None], ["SvgElement"] * 2)  # type: ignore[list-item]
    found, _ = scan(tmp_path)
    assert {(row.file, row.error_kind) for row in found.rows} == {
        ("odd[0]: null", "bad_name"),
        ("odd[1]: null", "bad_name"),
    }


def test_first_pending_item_leaves_the_scan_before_the_rest_is_read(tmp_path: Path) -> None:
    make_input(tmp_path, 40)
    _, reading = scan(tmp_path)
    first = next(iter(reading.batches()))
    assert len(first.pending) == 1
    assert not reading.reader.complete
