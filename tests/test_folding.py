"""Names that collide: if the output's disk treats two names as equal, one item owns the .txt.

The disk that folds case, or composes accents, is `support.faulty_disk`; the engines are fakes.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.faulty_disk import folding_disk, needs_compiler
from support.job import (
    ENVIRONMENT,
    FAKE,
    QUICK,
    Result,
    captions,
    draw_shape,
    input_flags,
    rows,
    run,
    write_document,
)
from test_output import row

from vllm_caption.store.checkpoint import Checkpoint
from vllm_caption.store.disk.folding import Claims, Folding, probe_folding
from vllm_caption.store.output import Output

COMPOSED, APART = "caf\u00e9.png", "cafe\u0301.png"


def make(folder: Path, *files: str) -> None:
    """An input with one document per file, in this order, each with an image."""
    (folder / "out").mkdir(exist_ok=True)
    for number, file in enumerate(files):
        path = folder / "raw" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_shape(number).save(path, format="PNG")
        write_document(folder, f"doc_{number}", [file], ["SvgElement"])


def command(folder: Path, *arguments: str, composes: bool = False, folds: bool = True) -> Result:
    """A command line on a disk that folds case below `out`; `run` has fake engines."""
    flags = (*arguments, *input_flags(folder), f"--output={folder / 'out'}")
    options: dict[str, Any] = {}
    if arguments[:1] == ("run",):
        flags, options = (*flags[1:], *QUICK), {"command": FAKE}
    environment = folding_disk(folder / "out", composes=composes) if folds else {}
    result = run(*flags, environment=environment, **options)
    assert "Traceback" not in result.stderr
    return result


def refused(folder: Path) -> dict[str, str]:
    """file → reason, of items that failed with output_conflict, from the manifest."""
    found = rows(folder / "out").items()
    return {file: r["error"] for file, r in found if r["error_kind"] == "output_conflict"}


# --- the key -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folding", "one", "other", "meet"),
    [
        (Folding(), "star.png", "Star.png", False),
        (Folding(case=True), "star.png", "Star.png", True),
        (Folding(case=True), "A/b.png", "a/B.png", True),
        (Folding(case=True), "Ä.png", "ä.png", True),
        (Folding(case=True), COMPOSED, APART, False),
        (Folding(accents=True), COMPOSED, APART, True),
        (Folding(accents=True), "star.png", "Star.png", False),
        (Folding(case=True, accents=True), COMPOSED.upper(), APART, True),
    ],
)
def test_names_collide_if_the_disk_treats_them_as_equal(
    folding: Folding, one: str, other: str, meet: bool
) -> None:
    claims = Claims(folding)
    assert claims.claim(one) is None
    assert claims.claim(other) == (one if meet else None)
    assert claims.claim(one) is None


def test_probing_a_disk_that_distinguishes_all_names_leaves_no_trace(tmp_path: Path) -> None:
    assert probe_folding(tmp_path) == Folding(case=False, accents=False)
    assert not list(tmp_path.iterdir())


@needs_compiler
@pytest.mark.parametrize("composes", [False, True])
def test_disk_that_folds_names_is_recognised(tmp_path: Path, composes: bool) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from vllm_caption.store.disk.folding import probe_folding\n"
        "print(probe_folding(Path(sys.argv[1])))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=ENVIRONMENT | folding_disk(tmp_path, composes=composes),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == str(Folding(case=True, accents=composes))
    assert not list(tmp_path.iterdir())


# --- whole commands ----------------------------------------------------------------------------


@needs_compiler
def test_second_item_with_a_name_is_an_output_conflict_in_every_run_plan_and_repair(
    tmp_path: Path,
) -> None:
    make(tmp_path, "a/star.png", "A/Star.png", "other.png")
    expected = {file: f"caption of {file}" for file in ("a/star.png", "other.png")}
    for made in (2, 0):
        result = command(tmp_path, "run")
        assert result.exit_code == 1
        assert f"captioned 2 ({made} in this run)" in result.stdout
        assert captions(tmp_path / "out") == expected
        reason = refused(tmp_path)["A/Star.png"]
        assert "its .txt is that of a/star.png, whose name differs only in case" in reason
        assert len(refused(tmp_path)) == 1
    plan = command(tmp_path, "plan")
    assert "output_conflict" in plan.stdout
    assert "Next       fix the 1 item known to fail, then plan again" in plan.stdout
    for flags in ((), ("--repair",), ()):
        verified = command(tmp_path, "verify", *flags)
        assert verified.exit_code == 0
        assert "1 × a failed row and no caption" in verified.stdout
        assert "A/Star.png: output_conflict" in verified.stdout
        assert captions(tmp_path / "out") == expected
        assert list(refused(tmp_path)) == ["A/Star.png"]


@needs_compiler
def test_item_with_a_caption_keeps_its_name_against_one_that_comes_first_in_the_input(
    tmp_path: Path,
) -> None:
    make(tmp_path, "star.png")
    assert command(tmp_path, "run").exit_code == 0
    make(tmp_path, "Star.png", "star.png")
    assert command(tmp_path, "run").exit_code == 1
    assert captions(tmp_path / "out") == {"star.png": "caption of star.png"}
    assert list(refused(tmp_path)) == ["Star.png"]


@needs_compiler
def test_two_spellings_of_an_accent_collide_if_the_disk_composes_them(tmp_path: Path) -> None:
    make(tmp_path, COMPOSED, APART)
    assert command(tmp_path, "run", composes=True).exit_code == 1
    assert captions(tmp_path / "out") == {COMPOSED: f"caption of {COMPOSED}"}
    assert list(refused(tmp_path)) == [APART]


@needs_compiler
def test_folder_of_the_job_is_reserved_in_any_letter_case(tmp_path: Path) -> None:
    make(tmp_path, "MANIFEST.Parquet/x.png", "Logs/Engine-0.LOG/x.png", "y.png")
    assert command(tmp_path, "run").exit_code == 1
    assert sorted(refused(tmp_path)) == ["Logs/Engine-0.LOG/x.png", "MANIFEST.Parquet/x.png"]
    assert captions(tmp_path / "out") == {"y.png": "caption of y.png"}


def test_names_that_differ_only_in_case_are_two_if_the_disk_distinguishes_them(
    tmp_path: Path,
) -> None:
    make(tmp_path, "star.png", "Star.png", COMPOSED, APART, "LOGS/engine-0.log/x.png")
    assert command(tmp_path, "run", folds=False).exit_code == 0
    assert len(captions(tmp_path / "out")) == 5


@needs_compiler
def test_names_that_collide_are_in_one_shard_which_refuses_the_second(tmp_path: Path) -> None:
    names = [f"{letter}tar_{number}.png" for number in range(8) for letter in "Ss"]
    make(tmp_path, *names)
    shards = [f"--shard={index}/3" for index in (1, 2, 3)]
    with ThreadPoolExecutor(3) as beside:
        results = beside.map(lambda shard: command(tmp_path, "run", shard), shards)
        assert {result.exit_code for result in results} <= {0, 1}
    merging = ("merge", f"--output={tmp_path / 'out'}")
    assert run(*merging, environment=folding_disk(tmp_path / "out")).exit_code == 0
    first = [name for name in names if name[0] == "S"]
    assert captions(tmp_path / "out") == {name.lower(): f"caption of {name}" for name in first}
    assert sorted(refused(tmp_path)) == [name.lower() for name in first]


def test_row_whose_txt_is_another_items_keeps_its_text_after_a_kill(
    tmp_path: Path,
) -> None:
    (tmp_path / "Star.png.txt").write_text("of star.png")
    refused_row = row("Star.png", caption="its own", error_kind="output_conflict")
    Checkpoint(tmp_path, interval=100).append(refused_row)
    Output(tmp_path, 100).close(complete=True)
    assert rows(tmp_path)["Star.png"]["caption"] == "its own"


@needs_compiler
def test_repair_never_gives_one_item_the_caption_of_another(tmp_path: Path) -> None:
    make(tmp_path, "Star.png", "star.png")
    output = Output(tmp_path / "out", checkpoint_interval=10)  # without a probe of the disk
    for file in ("Star.png", "star.png"):
        output.save_row(row(file, document="doc_0"))
    output.files.write("star.png", "caption of star.png")
    output.close(complete=True)
    for _ in range(2):
        verified = command(tmp_path, "verify", "--repair")
        assert verified.exit_code == 1
        assert "Star.png: on this disk its .txt is that of star.png" in verified.stdout
        assert captions(tmp_path / "out") == {"star.png": "caption of star.png"}
        texts = {file: found["caption"] for file, found in rows(tmp_path / "out").items()}
        assert texts == {file: f"caption of {file}" for file in ("star.png", "Star.png")}
    (tmp_path / "out/star.png.txt").unlink()
    assert "1 repaired, 1 left" in command(tmp_path, "verify", "--repair").stdout
    assert captions(tmp_path / "out") == {"star.png": "caption of star.png"}
