"""What a rerun leaves to the engines, and what it settles without them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.job import make_input, write_document
from support.scan import RECIPE, leave, row_of, scan, txt_of

from vllm_caption.config import (
    Redo,
    ResumeConfig,
)

EVERY_REDO = [
    *(ResumeConfig(redo) for redo in (None, "failed", "stale", "flagged", "all")),
    ResumeConfig(redo_kinds=("too_long",)),
]


def edit(path: Path, text: str) -> None:
    """Edit as a person would, a minute later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    later_s = path.stat().st_mtime + 60
    os.utime(path, (later_s, later_s))


def failed(file: str, kind: str) -> Any:
    return row_of(file, status="failed", error_kind=kind)


def test_new_items_are_pending_in_the_order_of_their_documents(tmp_path: Path) -> None:
    files = make_input(tmp_path, 12)
    found, _ = scan(tmp_path)
    assert [item.file for item in found.pending] == files
    assert not found.rows


def test_captioned_item_is_done_whatever_made_it(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    found, _ = scan(tmp_path, [row_of(files[1])])
    assert [item.file for item in found.pending] == [files[0], files[2]]
    assert (found.num_done, found.kept["stale"]) == (1, 1)


@pytest.mark.parametrize(
    ("redo", "pending"),
    [(None, ""), ("failed", ""), ("stale", "a"), ("flagged", "b"), ("all", "ab")],
)
def test_redo_chooses_what_is_captioned_again(
    tmp_path: Path, redo: Redo | None, pending: str
) -> None:
    make_input(tmp_path, 0)
    write_document(tmp_path, "design", list("abc"), ["SvgElement"] * 3)
    known = [
        row_of("a"),
        row_of("b", recipe_id=RECIPE.id, flags=("too_long",)),
        row_of("c", recipe_id=None),
    ]
    found, _ = scan(tmp_path, known, ResumeConfig(redo))
    assert [item.file for item in found.pending] == list(pending)


@pytest.mark.parametrize(
    ("kinds", "pending"),
    [(("poison",), "cd"), (("too_long", "engine_error"), "abd"), (("cut_off",), "bd")],
)
def test_redo_kind_retries_these_and_new_items_but_no_other_failures(
    tmp_path: Path, kinds: tuple[str, ...], pending: str
) -> None:
    make_input(tmp_path, 0)
    write_document(tmp_path, "design", list("abcd"), ["SvgElement"] * 4)
    known = [
        failed("a", "engine_error"),
        row_of("b", flags=("too_long", "cut_off")),
        failed("c", "poison"),
    ]
    found, _ = scan(tmp_path, known, ResumeConfig(redo_kinds=kinds))
    assert [item.file for item in found.pending] == list(pending)
    kept = {file for _, file in found.failures_kept}
    assert kept == {"a", "c"} - set(pending)


# --- a .txt that is not there --------------------------------------------------------------------

NOTHING = [None, b"", b" \n", b"\xef\xbb\xbf", b"\0" * 16]
"""What may be left of a .txt: no file, an empty one, or what an editor or a power loss leaves."""


def spoil(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("content", NOTHING)
def test_lost_txt_of_this_recipe_is_restored_from_its_row(
    tmp_path: Path, content: bytes | None
) -> None:
    files = make_input(tmp_path, 3)
    leave(tmp_path, *(row_of(file, recipe_id=RECIPE.id) for file in files))
    spoil(txt_of(tmp_path, files[1]), content)
    found, _ = scan(tmp_path)
    assert [(item.file, text) for item, text in found.restored] == [
        (files[1], f"caption of {files[1]}")
    ]
    assert (found.pending, found.num_done, found.num_gone) == ([], 2, 0)


def test_lost_txt_is_restored_from_the_newest_of_several_rows(tmp_path: Path) -> None:
    (file,) = make_input(tmp_path, 1)
    leave(tmp_path, row_of(file, caption="the first", recipe_id=RECIPE.id))
    leave(tmp_path, row_of(file, caption="the second", recipe_id=RECIPE.id))
    txt_of(tmp_path, file).unlink()
    found, _ = scan(tmp_path)
    assert [text for _, text in found.restored] == ["the second"]


@pytest.mark.parametrize("recipe_id", ["old recipe", None])
@pytest.mark.parametrize("content", NOTHING)
def test_lost_txt_of_another_recipe_is_captioned_again(
    tmp_path: Path, content: bytes | None, recipe_id: str | None
) -> None:
    files = make_input(tmp_path, 2)
    leave(tmp_path, *(row_of(file, recipe_id=recipe_id) for file in files))
    spoil(txt_of(tmp_path, files[0]), content)
    found, _ = scan(tmp_path)
    assert [item.file for item in found.pending] == files[:1]
    assert (found.restored, found.num_gone, found.num_done) == ([], 1, 1)


def test_lost_txt_that_redo_asks_for_is_captioned_and_not_restored(tmp_path: Path) -> None:
    (file,) = make_input(tmp_path, 1)
    leave(tmp_path, row_of(file, recipe_id=RECIPE.id, flags=("too_long",)))
    txt_of(tmp_path, file).unlink()
    found, _ = scan(tmp_path, resume=ResumeConfig("flagged"))
    assert [item.file for item in found.pending] == [file]


# --- captions of people --------------------------------------------------------------------------


@pytest.mark.parametrize("resume", EVERY_REDO)
@pytest.mark.parametrize("text", ["a better text", "caption by d0/shape_0.png", "z" * 10_000])
def test_edited_caption_is_kept_and_not_counted_as_stale_whatever_is_redone(
    tmp_path: Path, text: str, resume: ResumeConfig
) -> None:
    files = make_input(tmp_path, 2)
    leave(tmp_path, *(row_of(file, flags=("too_long",)) for file in files))
    edit(txt_of(tmp_path, files[0]), text)
    found, _ = scan(tmp_path, resume=resume)
    assert files[0] not in [item.file for item in found.pending]
    assert (found.kept["edited"], found.num_spared) == (1, int(resume.redo == "all"))
    assert txt_of(tmp_path, files[0]).read_text() == text


@pytest.mark.parametrize("redo", ["stale", "flagged", "all"])
def test_edit_that_keeps_size_and_time_is_detected_before_it_would_be_replaced(
    tmp_path: Path, redo: Redo
) -> None:
    (file,) = make_input(tmp_path, 1)
    row = row_of(file, caption="a grey cat", flags=("too_long",))
    leave(tmp_path, row)
    txt_of(tmp_path, file).write_text("a gray cat")
    os.utime(txt_of(tmp_path, file), (row.finished_at / 1e6, row.finished_at / 1e6))
    found, _ = scan(tmp_path, resume=ResumeConfig(redo))
    assert (found.pending, found.kept) == ([], {"edited": 1})


@pytest.mark.parametrize("resume", EVERY_REDO)
def test_adopted_caption_is_kept_and_not_counted_as_stale_whatever_is_redone(
    tmp_path: Path, resume: ResumeConfig
) -> None:
    files = make_input(tmp_path, 2)
    leave(tmp_path, row_of(files[0], recipe_id=None))
    edit(txt_of(tmp_path, files[1]), "of the old script")
    found, _ = scan(tmp_path, resume=resume)
    assert not found.pending
    assert found.kept == {"adopted": 1}
    assert [row.caption for row in found.rows] == ["of the old script"]
    assert found.num_spared == 2 * (resume.redo == "all")


@pytest.mark.parametrize("redo", ["stale", "all"])
def test_only_overwrite_edited_replaces_captions_of_people(tmp_path: Path, redo: Redo) -> None:
    files = make_input(tmp_path, 3)
    leave(tmp_path, row_of(files[0]), row_of(files[1], recipe_id=None))
    edit(txt_of(tmp_path, files[0]), "a better text")
    edit(txt_of(tmp_path, files[2]), "of the old script")
    found, _ = scan(tmp_path, resume=ResumeConfig(redo, overwrite_edited=True))
    assert [item.file for item in found.pending] == files[: 2 if redo == "stale" else 3]
    assert (found.num_done, found.num_spared) == (0, 0)


def test_overwrite_edited_alone_replaces_nothing(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    leave(tmp_path, row_of(files[0]))
    edit(txt_of(tmp_path, files[0]), "a better text")
    edit(txt_of(tmp_path, files[1]), "of the old script")
    found, _ = scan(tmp_path, resume=ResumeConfig(overwrite_edited=True))
    assert (found.pending, found.kept, len(found.rows)) == ([], {"edited": 1}, 1)


@pytest.mark.parametrize("content", [b"one\r\ntwo", b"one\rtwo"])
def test_other_line_endings_are_not_an_edit(tmp_path: Path, content: bytes) -> None:
    (file,) = make_input(tmp_path, 1)
    leave(tmp_path, row_of(file, caption="one\ntwo"))
    txt_of(tmp_path, file).write_bytes(content)
    found, _ = scan(tmp_path)
    assert found.kept == {"stale": 1}


def test_copy_of_a_folder_with_other_times_is_not_an_edit(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    leave(tmp_path, *map(row_of, files))
    for file in files:
        edit(txt_of(tmp_path, file), txt_of(tmp_path, file).read_text())
    found, _ = scan(tmp_path)
    assert found.kept == {"stale": 2}


@pytest.mark.parametrize("resume", EVERY_REDO)
def test_unreadable_file_in_place_of_a_caption_is_never_replaced(
    tmp_path: Path, resume: ResumeConfig
) -> None:
    (file,) = make_input(tmp_path, 1)
    leave(tmp_path, row_of(file, flags=("too_long",)))
    txt_of(tmp_path, file).unlink()
    os.mkfifo(txt_of(tmp_path, file))
    found, _ = scan(tmp_path, resume=resume)
    assert (found.pending, found.kept) == ([], {"edited": 1})


# --- what has no caption -------------------------------------------------------------------------


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
    found, _ = scan(tmp_path, [failed(files[0], "missing_file")])
    (row,) = found.rows
    assert (row.file, row.error_kind, row.attempts) == (files[0], "missing_file", 0)
    assert [item.file for item in found.pending] == [files[1]]


@pytest.mark.parametrize("kind", ["missing_file", "engine_error", "poison", "caption_rejected"])
def test_failed_item_whose_file_is_fixed_is_tried_again(tmp_path: Path, kind: str) -> None:
    files = make_input(tmp_path, 1)
    found, _ = scan(tmp_path, [failed(files[0], kind)])
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
    assert [(row.file, row.error_kind, row.attempts) for row in found.rows] == [(file, kind, 0)]
    assert not found.pending


def test_caption_whose_path_is_taken_fails_before_an_engine_sees_its_image(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    (tmp_path / "out" / f"{files[0]}.txt").mkdir(parents=True)
    found, _ = scan(tmp_path)
    assert [(row.file, row.error_kind) for row in found.rows] == [(files[0], "output_conflict")]
    assert [item.file for item in found.pending] == files[1:]


@pytest.mark.parametrize("redo", ["all", "stale"])
def test_redone_caption_whose_path_is_taken_fails_before_an_engine_sees_its_image(
    tmp_path: Path, redo: Redo
) -> None:
    files = make_input(tmp_path, 2)
    leave(tmp_path, *map(row_of, files))
    txt_of(tmp_path, files[0]).unlink()
    txt_of(tmp_path, files[0]).mkdir()
    found, _ = scan(tmp_path, resume=ResumeConfig(redo))
    refused = [(failure.item.file, failure.kind) for failure in found.refused]
    assert (refused, found.rows) == ([(files[0], "output_conflict")], [])
    assert [item.file for item in found.pending] == files[1:]


def test_entry_without_a_file_name_fails_under_its_index_in_its_document(tmp_path: Path) -> None:
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
