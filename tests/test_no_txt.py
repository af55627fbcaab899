"""`--no-txt`: the manifest holds the captions, and is all that a rerun reads.

The engines are fakes; command lines, processes and files are real.
"""

from __future__ import annotations

from pathlib import Path

from support.job import draw_shape, make_input, rows, write_document
from test_caption_names import OTHER_RECIPE, job, make, other, txt_files
from test_output import row

from vllm_caption.config import ResumeConfig
from vllm_caption.driver.resume import Caption, Keep, Refuse, Restore, Wanted, decide
from vllm_caption.store.caption_files import CaptionFiles, NoCaptionFiles
from vllm_caption.store.naming import read_naming
from vllm_caption.store.output import Output
from vllm_caption.store.rows import KnownItems, Row

MINE = frozenset({"mine"})


def known(*rows: Row) -> KnownItems:
    states = KnownItems()
    for made in rows:
        states.add(made)
    return states


# --- decisions -----------------------------------------------------------------------------------


def test_item_with_a_captioned_row_is_done_whatever_files_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "new.png.txt").write_text("somebody's text")
    states = known(row("x.png", recipe_id="mine"), row("y.png", recipe_id="old"))
    files = NoCaptionFiles(tmp_path, naming="none")
    wanted = Wanted(ResumeConfig(), MINE)
    assert decide("x.png", states, files, wanted) == Keep("current")
    assert decide("y.png", states, files, wanted) == Keep("stale")
    assert decide("new.png", states, files, wanted) == Caption("new")
    again = Wanted(ResumeConfig(redo="stale"), MINE)
    as_it_is = states.trace("y.png").text_hash
    assert decide("y.png", states, files, again) == Caption("again", as_it_is)


def test_later_run_writes_the_txt_of_every_row_that_never_had_one_whatever_its_recipe(
    tmp_path: Path,
) -> None:
    states = known(
        row("x.png", recipe_id="old"),
        row("y.png", recipe_id="old", caption_path="y.png.txt"),
        row("z.png", recipe_id="old"),
    )
    files, wanted = CaptionFiles(tmp_path), Wanted(ResumeConfig(), MINE)
    assert decide("x.png", states, files, wanted) == Restore()
    assert decide("y.png", states, files, wanted) == Caption("gone")
    again = Wanted(ResumeConfig(redo="stale"), MINE)
    assert decide("z.png", states, files, again) == Caption("gone")


def test_row_whose_name_is_taken_once_there_are_txt_files_is_refused(tmp_path: Path) -> None:
    states = known(row("x.png"), row("x.jpg"))
    files = CaptionFiles(tmp_path, naming="stem")
    files.claims.record(states)
    assert isinstance(decide("x.png", states, files, Wanted(ResumeConfig(), MINE)), Refuse)
    assert decide("x.jpg", states, files, Wanted(ResumeConfig(), MINE)) == Restore()


# --- the whole job -------------------------------------------------------------------------------


def test_run_without_txt_files_is_resumed_verified_and_given_its_files_later(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 12)
    first = job(tmp_path, "--no-txt")
    assert first.exit_code == 0, first.stderr
    assert f"Captions: in the manifest, {tmp_path / 'out'}/manifest.parquet" in first.stdout
    assert txt_files(tmp_path) == {}
    made = rows(tmp_path / "out")
    assert {file: r["caption"] for file, r in made.items()} == {
        file: f"caption of {file}" for file in files
    }
    assert {r["caption_path"] for r in made.values()} == {None}

    again = job(tmp_path, "--no-txt", OTHER_RECIPE)
    assert "captioned 12 (0 in this run)" in again.stdout
    assert "12 kept captions are stale (--redo stale captions them again): made" in again.stdout
    verified = other(tmp_path, "verify", "--repair")
    assert (verified.exit_code, "12: 12 agree, 0 disagree" in verified.stdout) == (0, True)
    assert txt_files(tmp_path) == {}

    later = job(tmp_path, "--caption-name=stem", OTHER_RECIPE)
    assert "captioned 12 (0 in this run)" in later.stdout
    assert "12 restored from their rows" in later.stdout
    assert txt_files(tmp_path) == {
        file.replace(".png", ".txt"): f"caption of {file}" for file in files
    }
    assert read_naming(tmp_path / "out") == "stem"
    assert other(tmp_path, "verify").exit_code == 0
    assert job(tmp_path, "--no-txt").exit_code == 2


def test_caption_without_a_txt_stays_if_its_redo_fails(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png")
    assert job(tmp_path, "--no-txt").exit_code == 0
    (tmp_path / "raw/a.png").write_bytes(b"no image")
    redone = job(tmp_path, "--no-txt", "--redo=all")
    assert redone.exit_code == 1
    made = rows(tmp_path / "out")
    assert (made["a.png"]["status"], made["a.png"]["caption"]) == ("captioned", "caption of a.png")
    assert made["a.png"]["error_kind"] == "not_an_image"
    assert made["b.png"]["error_kind"] is None


def test_caption_that_never_had_a_txt_stays_if_its_redo_with_txt_files_fails(
    tmp_path: Path,
) -> None:
    make(tmp_path, "a.png", "b.png")
    assert job(tmp_path, "--no-txt").exit_code == 0
    (tmp_path / "raw/a.png").write_bytes(b"no image")
    assert job(tmp_path, "--redo=all").exit_code == 1
    kept = rows(tmp_path / "out")["a.png"]
    assert (kept["status"], kept["caption"]) == ("captioned", "caption of a.png")
    assert job(tmp_path).exit_code == 0
    assert txt_files(tmp_path) == {f"{f}.txt": f"caption of {f}" for f in ("a.png", "b.png")}


def test_caption_whose_txt_cannot_be_written_stays_in_its_row(tmp_path: Path) -> None:
    make(tmp_path, "x.png", "x.jpg")
    assert job(tmp_path, "--no-txt").exit_code == 0
    for _ in range(2):
        later = job(tmp_path, "--caption-name=stem")
        assert later.exit_code == 1
        assert "captioned 1 (0 in this run), failed 1" in later.stdout
        assert len(txt_files(tmp_path)) == 1
        made = rows(tmp_path / "out")
        assert {f: r["caption"] for f, r in made.items()} == {
            f: f"caption of {f}" for f in ("x.png", "x.jpg")
        }
        kinds = {r["error_kind"] for r in made.values()}
        assert kinds == {None, "output_conflict"}
        assert other(tmp_path, "verify").exit_code == 1


def test_copies_of_an_image_share_a_caption_of_this_run_or_of_an_earlier_one(
    tmp_path: Path,
) -> None:
    make(tmp_path, "a.png", "b.png")
    (tmp_path / "raw/b.png").write_bytes((tmp_path / "raw/a.png").read_bytes())
    assert "1 shares the caption" in job(tmp_path, "--no-txt", "-dp=1").stdout
    (tmp_path / "raw/c.png").write_bytes((tmp_path / "raw/a.png").read_bytes())
    draw_shape(7).save(tmp_path / "raw/d.png")
    write_document(tmp_path, "more", ["c.png", "d.png"], ["SvgElement"] * 2)
    assert "1 shares the caption" in job(tmp_path, "--no-txt", "-dp=1").stdout
    made = rows(tmp_path / "out")
    assert len({made[file]["caption"] for file in ("a.png", "b.png", "c.png")}) == 1
    assert made["c.png"]["same_as"] in ("a.png", "b.png")
    assert txt_files(tmp_path) == {}


def test_names_that_leave_no_room_for_a_txt_are_captioned_without_one(tmp_path: Path) -> None:
    file = "a" * 251 + ".png"
    make(tmp_path, file)
    assert job(tmp_path, "--no-txt", "--no-checks").exit_code == 0
    assert rows(tmp_path / "out")[file]["caption"] == f"caption of {file}"


def test_rows_of_a_killed_run_are_kept_without_a_txt(tmp_path: Path) -> None:
    output = Output(tmp_path, 100, choose_naming=lambda _: "none")
    output.save_caption(row("x.png"))
    output._lock.release()  # the process is dead
    output = Output(tmp_path, 100)
    assert output.item_states()["x.png"].status == "captioned"
    output.close(complete=True)
    assert rows(tmp_path)["x.png"]["caption"] == "caption of x.png"
    assert txt_files(tmp_path.parent, tmp_path.name) == {}
