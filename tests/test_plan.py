"""What `plan` reports before a run, and that it leaves no trace."""

from __future__ import annotations

import ast
import json
import math
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import CRELLO_LIKE
from support.job import (
    FAKE,
    Terminal,
    draw_shape,
    input_flags,
    make_input,
    run,
    run_here,
    write_document,
)
from support.scan import RECIPE, leave, row_of, scan, txt_of

from vllm_caption.commands.plan import report as plan_report
from vllm_caption.commands.plan.command import make_plan, parse_plan
from vllm_caption.commands.plan.images import num_vision_tokens
from vllm_caption.commands.plan.output import Room, read_rate, read_recorded
from vllm_caption.commands.plan.report import VERSION, Plan
from vllm_caption.commands.plan.text import describe
from vllm_caption.commands.tune.record import Figures, Setting, Tuning, write_tuning
from vllm_caption.config import RunConfig
from vllm_caption.monitoring.figures import EngineFigures
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.monitoring.status import Speed, encode_status, make_status
from vllm_caption.store.checkpoint import Checkpoint


def config_of(folder: Path, *flags: str) -> RunConfig:
    """The settings of a run over an input in the usual layout, as its command line gives them."""
    output = f"--output={folder / 'out'}"
    return parse_plan([*input_flags(folder), output, "--quiet", *flags])[0]


def plan_of(folder: Path, *flags: str, **options: Any) -> Plan:
    return make_plan(config_of(folder, *flags), **options)


def kinds(problems: list[Any]) -> dict[str, int]:
    return {problem.kind: problem.count for problem in problems}


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with size and mtime."""
    found = [folder, *folder.rglob("*")] if folder.exists() else []
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def record(output: Path, *rows: tuple[str, str, dict[str, Any]], in_journal: bool = False) -> None:
    """An output folder with these rows, (file, status, further columns), and with their .txt."""
    output.mkdir(exist_ok=True)
    made = [row_of(file, status=status, **rest) for file, status, rest in rows]
    for row in made:
        if row.caption is not None:
            make_parent(output / f"{row.file}.txt").write_text(row.caption)
    if in_journal:
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in made)
        (output / "journal.jsonl").write_bytes(lines + b'{"file": "torn')
        return
    checkpoint = Checkpoint(output, 1000)
    for row in made:
        checkpoint.append(row)
    checkpoint.close()


# ------------------------------------------------------------------------------- the input


def corpus_plan(tmp_path: Path, **options: Any) -> tuple[Plan, dict[str, Any]]:
    plan = plan_of(CRELLO_LIKE, f"--output={tmp_path / 'out'}", **options)
    return plan, json.loads((CRELLO_LIKE / "expected.json").read_text())


def test_documents_elements_and_items_of_the_corpus_are_counted_exactly(
    tmp_path: Path,
) -> None:
    plan, expected = corpus_plan(tmp_path)
    counts = expected["counts"]
    documents, items = plan.documents, plan.items
    assert (documents.read, documents.skipped) == (
        counts["documents"],
        counts["documents_skipped"],
    )
    assert documents.without_items == counts["documents_without_shapes"]
    reasons = [document["reason"] for document in expected["skipped_documents"].values()]
    assert kinds(documents.problems) == {r: reasons.count(r) for r in set(reasons)}
    assert {t.name: t.elements for t in plan.element_types} == counts["element_types"]
    assert sum(t.items for t in plan.element_types) == items.total == counts["items"]
    assert items.references == counts["shape_references"] == items.total + items.duplicates


def test_missing_files_are_found_without_opening_an_image(tmp_path: Path) -> None:
    plan, expected = corpus_plan(tmp_path)
    items = expected["items"].values()
    missing = sum(item.get("kind") == "missing_file" for item in items)
    there = len(items) - missing
    assert missing == 5
    assert kinds(plan.items.problems) == {"missing_file": missing}
    assert len(plan.items.problems[0].examples) == 3
    assert (plan.items.to_caption, plan.images.found, plan.images.opened) == (there, there, False)
    assert plan.images.vision_tokens is None


def test_opening_images_gives_exact_problems_sizes_tokens_and_twins(
    tmp_path: Path,
) -> None:
    plan, expected = corpus_plan(tmp_path, open_images=True)
    good = [item for item in expected["items"].values() if item["outcome"] == "captioned"]
    assert kinds(plan.items.problems) == {"missing_file": 5, "decode_error": 2}
    assert plan.items.to_caption == len(good) == expected["counts"]["captioned"]
    images = plan.images
    assert images.bytes == sum(item["bytes"] for item in good)
    areas = sorted(item["size"][0] * item["size"][1] for item in good)
    assert images.sizes is not None
    found = (images.sizes.smallest, images.sizes.median, images.sizes.largest)
    assert [s.width * s.height for s in found] == [areas[0], areas[(len(good) - 1) // 2], areas[-1]]
    assert images.twins is not None
    assert images.twins.files - images.twins.groups == 12
    assert images.twins.saved == 12
    assert plan.time.images == expected["counts"]["unique_bytes"]
    assert sum(images.backdrops.values()) == len(good)
    tokens = images.vision_tokens
    assert tokens is not None
    assert 8 <= tokens.min <= tokens.median <= tokens.max <= 64
    assert round(tokens.total / len(good), 1) == tokens.mean


@pytest.mark.parametrize("open_images", [False, True])
def test_hostile_corpus_is_planned_to_its_end(
    hostile_corpus: Path, tmp_path: Path, open_images: bool
) -> None:
    (tmp_path / "out").mkdir()
    flags = [*input_flags(hostile_corpus), f"--output={tmp_path / 'out'}"]
    result = run_here("plan", *flags, *(["--images"] if open_images else []))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "path_escape" in result.stdout
    assert all(line.isprintable() for line in result.stdout.splitlines())
    assert len(result.stdout.splitlines()) < 50


def test_name_that_no_caption_can_have_is_a_problem_before_anything_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "raw").mkdir()
    files = ["../secret.png", "manifest.parquet/x.png", "a/" + "x" * 252]
    write_document(tmp_path, "design", files, ["SvgElement"] * 3)
    plan = plan_of(tmp_path)
    assert kinds(plan.items.problems) == {"path_escape": 1, "output_conflict": 1, "bad_name": 1}
    assert plan.items.to_caption == 0


def test_caption_whose_path_is_taken_is_a_problem_before_anything_is_read(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    (tmp_path / "out" / f"{files[0]}.txt").mkdir(parents=True)
    plan = plan_of(tmp_path)
    assert kinds(plan.items.problems) == {"output_conflict": 1}
    assert plan.items.to_caption == 2


def test_folder_in_place_of_an_image_is_found_without_opening(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    (tmp_path / "raw" / files[0]).unlink()
    (tmp_path / "raw" / files[0]).mkdir()
    assert kinds(plan_of(tmp_path).items.problems) == {"not_a_file": 1}


def test_folder_name_that_no_file_system_allows_is_a_problem_of_its_item(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "out").mkdir()
    write_document(tmp_path, "design", ["x" * 300 + "/a.png"], ["SvgElement"])
    assert kinds(plan_of(tmp_path).items.problems) == {"bad_name": 1}


def test_row_with_an_empty_name_is_shown_by_its_place_alone(tmp_path: Path) -> None:
    table, out = tmp_path / "t.csv", f"--output={tmp_path / 'out'}"
    table.write_text("image,title\n,one\na.png,two\n")
    draw_shape(0).save(tmp_path / "a.png")
    said = " 1, e.g. t.csv[0]: `image` is empty"
    assert said in run_here("plan", str(table), out, "-dp=1").stdout
    assert run(str(table), out, "-dp=1", "--quiet", command=FAKE).exit_code == 1
    assert "t.csv[0]: bad_name: `image` is empty" in run_here("verify", out).stdout


def test_names_to_redo_that_no_item_has_are_named(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    said = describe(plan_of(tmp_path, "--redo-file", files[0], "nope.png", "x/*"))
    assert "No item has the name of --redo-file: nope.png, x/*" in said


def test_images_that_are_named_again_are_counted_by_plan_and_run(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    write_document(tmp_path, "again", [files[0], *files], ["SvgElement"] * 3)
    said = "3 further references to images named before, which are captioned once"
    assert said in describe(plan_of(tmp_path))
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=1", "--quiet"]
    assert f"  {said}.\n" in run(*flags, command=FAKE).stdout
    assert said not in run(*flags, command=FAKE).stdout  # nothing is captioned


def test_limit_and_type_names_that_skip_nothing_are_reported(tmp_path: Path) -> None:
    make_input(tmp_path, 12)
    limited = plan_of(tmp_path, "--limit=5")
    assert (limited.items.total, limited.documents.complete) == (5, False)
    assert plan_of(tmp_path).no_type_was_skipped


def next_step(folder: Path, *flags: str) -> str:
    """The last section: what to do, and the command if there is one."""
    text = describe(plan_of(folder, *flags)).rpartition("\nNext")[2]
    return "\n".join(line.strip() for line in text.splitlines())


def command_of(folder: Path, *flags: str) -> str:
    """The run that a plan with these flags is of."""
    line = [*input_flags(folder), f"--output={folder / 'out'}", "--quiet", *flags]
    return shlex.join(["python", "-m", "vllm_caption", *line])


def test_next_step_names_the_root_where_most_images_are_missing(tmp_path: Path) -> None:
    files = make_input(tmp_path, 5)
    for file in files[2:]:
        (tmp_path / "raw" / file).unlink()
    root = tmp_path / "raw"
    wanted = f"3 of 5 images are not below {root}; name their folder with --images-root, then plan"
    assert next_step(tmp_path) == f"{wanted} again"


def test_next_step_is_never_that_nothing_is_left_while_items_fail(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    leave(tmp_path, *(row_of(file, recipe_id=plan_of(tmp_path).recipe_id) for file in files[:2]))
    (tmp_path / "raw" / files[2]).unlink()
    assert next_step(tmp_path) == "fix the 1 item known to fail, then plan again"
    draw_shape(0).save(tmp_path / "raw" / files[2])
    step = "run (or plan with --images, which opens every image):"
    assert next_step(tmp_path) == f"{step}\n{command_of(tmp_path)}"
    txt_of(tmp_path, files[2]).write_text("A shape.")
    assert next_step(tmp_path) == "nothing is left to caption"


def test_next_step_names_redo_where_captions_are_stale(tmp_path: Path) -> None:
    leave(tmp_path, *map(row_of, make_input(tmp_path, 2)))
    said = "2 kept captions are stale (--redo stale captions them again): made with settings that"
    assert said in describe(plan_of(tmp_path))
    step = "nothing is left to caption; to caption the 2 stale ones again:"
    assert next_step(tmp_path) == f"{step}\n{command_of(tmp_path, '--redo', 'stale')}"
    assert next_step(tmp_path, "--redo=flagged") == "nothing is left to caption"


def test_next_step_is_the_command_of_the_run_to_paste_however_long(tmp_path: Path) -> None:
    make_input(tmp_path, 1)
    of_run = ["--stop", "a b", "--prompt=shape-zh", f"--log-file={tmp_path / ('x' * 200)}"]
    of_plan = ["--images", "--images-per-s", "2", "--json=p.json"]
    assert next_step(tmp_path, *of_plan, *of_run).splitlines()[-1] == command_of(tmp_path, *of_run)
    config, _ = parse_plan(shlex.split(command_of(tmp_path, *of_run))[3:])
    assert config == config_of(tmp_path, *of_plan, *of_run)


# --------------------------------------------------------------------- what is done already


def test_done_stale_failed_and_found_captions_are_counted_separately(tmp_path: Path) -> None:
    files = make_input(tmp_path, 8)
    current = plan_of(tmp_path).recipe_id
    record(
        tmp_path / "out",
        (files[0], "captioned", {"recipe_id": current}),
        (files[1], "captioned", {"recipe_id": "another"}),
        (files[2], "captioned", {"recipe_id": current, "flags": ("too_long",)}),
        (files[3], "failed", {"error_kind": "decode_error"}),
        (files[4], "failed", {"error_kind": "engine_error"}),
    )
    txt_of(tmp_path, files[5]).write_text("of the old script")
    items = plan_of(tmp_path).items
    assert (items.total, items.done, items.adopted, items.stale) == (8, 4, 1, 1)
    assert items.to_caption == 4
    assert items.failed_before == {"decode_error": 1, "engine_error": 1}
    redone = {r: plan_of(tmp_path, f"--redo={r}").items for r in ("stale", "flagged", "all")}
    assert {r: i.to_caption for r, i in redone.items()} == {"stale": 5, "flagged": 5, "all": 7}
    assert {r: i.redone for r, i in redone.items()} == {"stale": 1, "flagged": 1, "all": 3}
    assert {r: i.spared for r, i in redone.items()} == {"stale": 0, "flagged": 0, "all": 1}
    everything = plan_of(tmp_path, "--redo=all", "--overwrite-edited").items
    assert (everything.to_caption, everything.redone, everything.spared) == (8, 4, 0)


def test_captions_of_people_are_counted_separately_and_replacing_them_is_never_advised(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 4)
    leave(tmp_path, row_of(files[0]), row_of(files[1]), row_of(files[2], recipe_id=None))
    txt_of(tmp_path, files[1]).write_text("by hand, and better")
    items = plan_of(tmp_path).items
    assert (items.stale, items.edited, items.adopted_before) == (1, 1, 1)
    flags = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    for redo in ((), ("--redo=stale",), ("--redo=flagged",)):
        text = run_here("plan", *flags, *redo).stdout
        assert "1 edited caption, 1 adopted caption: kept, also by --redo" in text
        assert "overwrite" not in text
    text = run_here("plan", *flags, "--redo=all").stdout
    assert "2 of these would be captioned again with --overwrite-edited" in text


def test_lost_txt_files_are_counted_by_what_a_run_does_about_them(tmp_path: Path) -> None:
    files = make_input(tmp_path, 5)
    current = plan_of(tmp_path).recipe_id
    leave(tmp_path, *(row_of(file, recipe_id=current) for file in files[:3]), row_of(files[3]))
    for file in files[1:4]:
        txt_of(tmp_path, file).unlink()
    items = plan_of(tmp_path).items
    assert (items.done, items.restored, items.to_caption, items.gone) == (3, 2, 2, 1)
    flags = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    text = run_here("plan", *flags).stdout
    assert (
        "3 caption files missing or empty: 2 to write again from their rows, 1 to caption again"
        in text
    )
    txt_of(tmp_path, files[3]).write_text("by hand")
    txt_of(tmp_path, files[4]).write_text("by hand")
    text = run_here("plan", *flags).stdout
    assert "Next       run; it only writes the missing .txt files:" in text


@pytest.mark.parametrize(
    "flags",
    [
        *([], ["--redo=failed"], ["--redo=flagged"], ["--redo=stale"], ["--redo=all"]),
        *(["--redo-kind=engine_error"], ["--redo-kind=too_long,poison"]),
        *(["--redo=stale", "--overwrite-edited"], ["--redo=all", "--overwrite-edited"]),
    ],
)
def test_plan_agrees_with_the_run_on_what_is_left(tmp_path: Path, flags: list[str]) -> None:
    states = {
        "new": None,
        "captioned": ("captioned", {"recipe_id": "old"}),
        "current": ("captioned", {"recipe_id": RECIPE.id}),
        "adopted": ("captioned", {"recipe_id": None}),
        "flagged": ("captioned", {"recipe_id": "old", "flags": ("too_long",)}),
        "current_flagged": ("captioned", {"recipe_id": RECIPE.id, "flags": ("too_long",)}),
        "engine_error": ("failed", {"error_kind": "engine_error"}),
        "poison": ("failed", {"error_kind": "poison"}),
    }
    places = ("own", "text", "empty", "free", "folder")
    files = {f"{state}_{place}": (state, place) for state in states for place in places}
    write_document(tmp_path, "design", list(files), ["SvgElement"] * len(files))
    known = ((file, states[state]) for file, (state, _) in files.items())
    record(tmp_path / "out", *[(file, *found) for file, found in known if found])
    for file, (_, place) in files.items():
        draw_shape(0).save(make_parent(tmp_path / "raw" / file), format="PNG")
        path = make_parent(txt_of(tmp_path, file))
        if place != "own":
            path.unlink(missing_ok=True)
        if place == "text":
            path.write_text("of the old script, or edited")
        elif place == "empty":
            path.touch()
        elif place == "folder":
            path.mkdir()

    config = config_of(tmp_path, *flags)
    plan = plan_of(tmp_path, *flags)
    assert plan.recipe_id == RECIPE.id
    items = plan.items
    found, _ = scan(tmp_path, resume=config.resume)
    adopted = [row for row in found.rows if row.status == "captioned"]
    assert items.to_caption == len(found.pending)
    assert items.done == found.num_done + len(adopted) + len(found.restored)
    assert (items.adopted, items.restored) == (len(adopted), len(found.restored))
    assert (items.adopted_before, items.edited, items.stale) == tuple(
        found.kept[origin] for origin in ("adopted", "edited", "stale")
    )
    assert (items.spared, items.gone) == (found.num_spared, found.num_gone)
    refused = [row.error_kind for row in found.rows if row.status == "failed"]
    refused += [failure.kind for failure in found.refused]
    kept = [kind for kind, _ in found.failures_kept]
    assert kinds(items.problems) == Counter([*refused, *kept])


def make_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_rows_in_the_journal_of_a_running_run_count_and_a_torn_line_does_not(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 4)
    record(tmp_path / "out", (files[0], "failed", {"error_kind": "engine_error"}))
    record(tmp_path / "out", *[(f, "captioned", {}) for f in files[:2]], in_journal=True)
    items = plan_of(tmp_path).items
    assert (items.done, items.to_caption, items.failed_before) == (2, 2, {})


def test_images_of_done_items_are_not_checked(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    record(tmp_path / "out", (files[0], "captioned", {}))
    (tmp_path / "raw" / files[0]).unlink()
    plan = plan_of(tmp_path, open_images=True)
    assert (plan.items.problems, plan.images.found) == ([], 2)


# --------------------------------------------------------------------------------- no trace


@pytest.mark.parametrize("flags", [[], ["--images"]])
def test_nothing_is_written_and_no_folder_is_made(tmp_path: Path, flags: list[str]) -> None:
    make_input(tmp_path, 3)
    before = listing(tmp_path)
    result = run_here("plan", *input_flags(tmp_path), f"--output={tmp_path / 'new/out'}", *flags)
    assert result.exit_code == 0
    assert listing(tmp_path) == before


def test_output_that_a_run_holds_is_not_changed(tmp_path: Path) -> None:
    from vllm_caption.store.output import Output

    files = make_input(tmp_path, 3)
    output = Output(tmp_path / "out", 1000)
    try:
        output.save_caption(row_of(files[0], caption="a"))
        txt_of(tmp_path, files[1]).write_text("b")  # as written by the run, whose row comes later
        before = listing(tmp_path / "out")
        plan = plan_of(tmp_path)
        assert listing(tmp_path / "out") == before
    finally:
        output.close(complete=False)
    assert (plan.items.done, plan.items.to_caption) == (2, 1)
    assert plan.holder is not None
    assert f"the output is in use by {plan.holder}: these numbers change" in describe(plan)
    assert "1 caption without a row yet" in describe(plan)
    assert "Next       wait for the run that is at work; if it does not finish, run:" in (
        describe(plan)
    )
    assert "adopted" not in describe(plan)
    after = plan_of(tmp_path)
    assert after.holder is None
    assert "in use" not in describe(after)
    assert "1 adopted caption: kept" in describe(after)


def test_part_that_is_compacted_away_during_reading_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path, ("a", "captioned", {}))
    from vllm_caption.store.layout import all_parts

    lists = iter([[tmp_path / "manifest.parquet" / "part-00000009.parquet"]])
    monkeypatch.setattr(
        "vllm_caption.store.reader.all_parts", lambda root: next(lists, all_parts(root))
    )
    assert set(read_recorded(tmp_path).states) == {"a"}


def test_plan_imports_neither_vllm_nor_torch(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "--images"]
    code = (
        "import sys; from vllm_caption.cli import main; code = main(sys.argv[1:]);"
        "print({'vllm', 'torch', 'ray', 'transformers'} & set(sys.modules), code)"
    )
    line = [sys.executable, "-c", code, "plan", *flags]
    out = subprocess.run(line, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "set() 0"


def test_machine_without_vllm_plans_for_one_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_caption.errors import UsageError

    def absent() -> str:
        raise UsageError("vllm", "is not installed", "install it")

    monkeypatch.setattr("vllm_caption.engines.hardware.platform", absent)
    make_input(tmp_path, 1)
    assert plan_of(tmp_path).time.engines == 1


# ------------------------------------------------------------------------- while it reads


def test_progress_is_a_bar_of_documents_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_input(tmp_path, 30)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    config, _ = parse_plan([*input_flags(tmp_path), f"--output={tmp_path / 'out'}"])
    make_plan(config)
    assert "3/3" in terminal.getvalue()


def test_progress_is_a_plain_line_now_and_then_elsewhere_and_nothing_when_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_input(tmp_path, 30)
    monkeypatch.setattr("vllm_caption.monitoring.progress.PLAIN_EVERY_S", 0.0)
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}"]
    assert "2/3 designs\n" in run_here("plan", *flags).stderr
    assert run_here("plan", *flags, "--quiet").stderr == ""


def test_progress_over_a_folder_of_images_counts_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        make_parent(tmp_path / name / "x.png").touch()
    monkeypatch.setattr("vllm_caption.monitoring.progress.PLAIN_EVERY_S", 0.0)
    assert "2 folders\n" in run_here("plan", str(tmp_path), f"--output={tmp_path / 'o'}").stderr


def test_plan_is_of_the_full_run_and_says_so_where_the_line_has_a_pilot(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}"]
    result = run_here("plan", *flags, "--pilot=1", "--quiet")
    assert result.stderr == "--pilot is left out: this is the plan of the full run.\n"
    assert "--pilot" not in result.stdout.partition("\nNext")[2]
    assert "3 to caption" in result.stdout


def test_name_of_a_skipped_folder_never_breaks_the_line(tmp_path: Path) -> None:
    make_parent(tmp_path / "images" / "a.png").touch()
    (tmp_path / "images" / "b\n\x1b[31m").symlink_to(tmp_path, target_is_directory=True)
    result = run_here("plan", str(tmp_path / "images"), f"--output={tmp_path / 'o'}")
    assert "e.g. b\\u000a\\u001b[31m: it is a link to a folder" in result.stdout


def test_ctrl_c_is_one_line_and_exit_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    make_input(tmp_path, 3)
    monkeypatch.setattr("vllm_caption.commands.plan.images.prepare_image", interrupt)
    result = run_here("plan", *input_flags(tmp_path), f"--output={tmp_path / 'out'}", "--images")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "Interrupted: nothing was planned.\n"


# ------------------------------------------------------------------------- time, disk, JSON


def test_time_is_estimated_from_the_rate_of_one_engine(tmp_path: Path) -> None:
    make_input(tmp_path, 36)
    times = plan_of(tmp_path, "-dp=4", "-tp=2", images_per_s=0.5).time
    assert (times.images, times.engines, times.gpus_per_engine) == (36, 4, 2)
    assert times.wall_hours == pytest.approx(36 / (0.5 * 4) / 3600, abs=1e-4)
    assert times.gpu_hours == pytest.approx(36 / (0.5 * 4) / 3600 * 8, abs=1e-4)


def test_twins_cost_no_engine_time_unless_dedup_is_off(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    files = [f"{name}.png" for name in "abc"]
    for file in files:
        draw_shape(1).save(tmp_path / "raw" / file)
    write_document(tmp_path, "design", files, ["SvgElement"] * 3)
    plan = plan_of(tmp_path, open_images=True)
    assert plan.time.images == 1
    same = "3 files have the same content: "
    assert f"{same}2 are copies, so the engines caption 1 image\n" in describe(plan)
    assert "    width × height, ordered by area: " in describe(plan)
    plan = plan_of(tmp_path, "--no-dedup", open_images=True)
    assert plan.time.images == 3
    assert f"{same}all are captioned (--no-dedup, or different prompts)" in describe(plan)
    assert "3 have the same size as another; --images finds" in describe(plan_of(tmp_path))
    assert "--images finds" not in describe(plan_of(tmp_path, "--no-dedup"))


@pytest.mark.parametrize(("number", "how"), [(39, "a run or"), (60, "a run with --pilot 20 or")])
def test_without_a_rate_the_text_says_how_to_get_one(tmp_path: Path, number: int, how: str) -> None:
    make_input(tmp_path, number)
    result = run_here("plan", *input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=1")
    assert (
        f"unknown for {number} images on 1 engine: the speed has not been measured yet"
        in result.stdout
    )
    assert f"{how} `tune` measures it; then plan again" in result.stdout
    assert "--images-per-s" in result.stdout
    assert "hours" not in result.stdout


def test_speed_of_several_engines_is_also_given_for_all_together(tmp_path: Path) -> None:
    make_input(tmp_path, 36)
    line = "36 images at 2.5 images/s (--images-per-s) on each of 8 engines, 20 images/s in all"
    assert line in describe(plan_of(tmp_path, "-dp=8", images_per_s=2.5))
    line = "at 12,346 images/s (--images-per-s) on each of 8 engines, 98,765 images/s in all"
    assert line in describe(plan_of(tmp_path, "-dp=8", images_per_s=12345.6789))


def test_newest_of_the_last_run_the_shards_and_tune_gives_the_rate(tmp_path: Path) -> None:
    make_input(tmp_path, 2)
    figures = Figures(
        images=99,
        steady_s=9.0,
        images_per_s=7.0,
        tokens_per_s=1.0,
        engine_s_p50=1.0,
        engine_s_p95=1.0,
        limited_by=None,
        gpu_percent=None,
        gpu_memory_percent=None,
        start_s=1.0,
    )
    setting = Setting("16", "x", figures)
    at = "2026-11-24T10:00:00+00:00"
    tuning = Tuning(flag="max-num-seqs", started_at=at, num_sampled=99, settings=[setting])
    (tmp_path / "out.tune").mkdir()
    write_tuning(tmp_path / "out.tune", tuning)
    assert plan_of(tmp_path).time.images_per_s is None  # measured at another --max-num-seqs
    times = plan_of(tmp_path, "--max-num-seqs=16").time
    source = "tune.json of 24 Nov 2026, 10:00 UTC, --max-num-seqs 16"
    assert (times.images_per_s, times.source) == (7.0, source)
    shard = tmp_path / "out" / "shards" / "1-of-2"
    shard.mkdir(parents=True)
    for moment, expected in (("2026-11-24T11:00:00+00:00", 3.0), ("2026-11-24", 7.0)):
        write_speed(shard, Speed(3.0, 5, 1, 1, moment))
        assert plan_of(tmp_path, "--max-num-seqs=16").time.images_per_s == expected


def write_speed(folder: Path, speed: Speed) -> None:
    """The status of a run that captioned nothing, after one with this speed."""
    stats = RunStats([EngineFigures(0)])
    status = make_status("run", "finished", stats, 0.0, "2026-11-30", earlier=speed)
    (folder / "status.json").write_bytes(encode_status(status))


def test_plan_knows_the_speed_after_a_run_that_had_nothing_to_caption(tmp_path: Path) -> None:
    make_input(tmp_path, 12)
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "-dp=1", "--quiet"]
    assert run(*flags, command=FAKE).exit_code == 0
    first = plan_of(tmp_path, "--redo=all").time
    assert first.images_per_s is not None
    assert run(*flags, command=FAKE).exit_code == 0  # nothing is left
    assert plan_of(tmp_path, "--redo=all").time == first


def test_rate_of_the_last_run_is_divided_among_its_busy_engines(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, 2)
    stats = RunStats([EngineFigures(number) for number in range(3)])
    for number in range(25):
        stats.count_caption(number % 2, 1, 1, number / 24)
    status = make_status("run", "finished", stats, 1.0, "2026-11-24")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "status.json").write_bytes(encode_status(status))
    assert plan_of(tmp_path).time.images_per_s == 12.0
    assert "2 images at 12 images/s (run of 24 Nov 2026, 00:00 UTC)" in describe(plan_of(tmp_path))
    assert plan_of(tmp_path, images_per_s=3.0).time.images_per_s == 3.0
    (tmp_path / "out" / "status.json").write_text("{")
    assert read_rate(tmp_path / "out") is None


@pytest.mark.parametrize("room", [Room(1000, None), Room(10**12, 3)])
def test_too_small_disk_is_reported_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: Room
) -> None:
    make_input(tmp_path, 5)
    asked: list[Path] = []
    monkeypatch.setattr(
        "vllm_caption.commands.plan.output.room", lambda path: asked.append(path) or room
    )
    result = run_here("plan", *input_flags(tmp_path), f"--output={tmp_path / 'a/b/out'}")
    assert asked == [tmp_path]
    assert result.exit_code == 0
    assert f"DOES NOT FIT on {tmp_path}" in result.stdout
    assert result.stdout.splitlines()[-2] == "Next       free some disk space, then run:"


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_impossible_output_is_refused_as_by_a_run(tmp_path: Path, below: str) -> None:
    make_input(tmp_path, 1)
    (taken := tmp_path / "notes.txt").write_text("not a folder")
    result = run_here("plan", *input_flags(tmp_path), f"--output={taken}{below}")
    assert result.exit_code == 2
    assert f"--output {taken}{below}: {taken} is not a folder; choose another" in result.stderr


def test_disk_counts_captions_their_new_folders_and_the_manifest(tmp_path: Path) -> None:
    files = make_input(tmp_path, 20)  # d0/, d1/
    disk = plan_of(tmp_path).disk
    assert disk.fits
    assert 4096 * 22 <= disk.caption_bytes <= 4096 * 30
    assert 22 <= disk.inodes_needed <= 50
    without = plan_of(tmp_path, "--no-txt").disk
    assert (without.caption_bytes, without.inodes_needed) == (4096 * 3, disk.inodes_needed - 22)
    record(tmp_path / "out", *[(file, "captioned", {}) for file in files])
    done = plan_of(tmp_path).disk
    assert (done.caption_bytes, done.manifest_bytes) == (0, 0)


def test_json_is_the_documented_structure(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    target = tmp_path / "plan.json"
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'out'}", "--images-per-s=2"]
    assert run_here("plan", *flags, "--images", f"--json={target}").exit_code == 0
    plan = msgspec.json.decode(target.read_bytes(), type=Plan)
    assert (plan.version, plan.items.to_caption, plan.time.images_per_s) == (VERSION, 3, 2.0)
    fields = Path(plan_report.__file__).read_text()  # where a reader looks them up
    missing = [name for name in names_in(msgspec.json.decode(target.read_bytes()))
               if f"``{name}``" not in fields]  # fmt: skip
    assert not missing


def names_in(value: object) -> set[str]:
    """Every field name, at any depth, except the keys that are data."""
    if isinstance(value, list):
        return set().union(*map(names_in, value))
    if not isinstance(value, dict):
        return set()
    data = {"backdrops", "failed_before"}
    return set(value).union(*(names_in(v) for k, v in value.items() if k not in data))


def test_plan_accepts_a_run_command_with_all_its_engine_flags(tmp_path: Path) -> None:
    make_input(tmp_path, 1)
    flags = ["--model=Qwen/Qwen2.5-VL-7B-Instruct", "--gpu-memory-utilization", "0.9", "-tp=2"]
    result = run_here("plan", *flags, *input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    assert (result.exit_code, result.stderr) == (0, "")


Spoil = Callable[[Path], list[str]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "jsons") or [], "--jsons"),
        (lambda folder: shutil.rmtree(folder / "raw") or [], "--images-root"),
        (lambda folder: ["--prompt=nope"], "--prompt nope: no such prompt"),
        (lambda folder: [f"--json={folder / 'no/plan.json'}"], "--json"),
        (lambda folder: ["--images-per-s=0"], "error: --images-per-s: 0 is not more than 0"),
        (lambda folder: ["--images-per-s=fast"], "error: --images-per-s"),
    ],
)
def test_mistake_is_one_line_and_exit_2(tmp_path: Path, spoil: Spoil, message: str) -> None:
    make_input(tmp_path, 1)
    flags = spoil(tmp_path)
    result = run_here("plan", *input_flags(tmp_path), f"--output={tmp_path / 'out'}", *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert message in line


# ------------------------------------------------------------------------------------ tokens


def smart_resize() -> Callable[..., tuple[int, int]]:
    """transformers' function, extracted from its source, so that torch is not imported."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        pytest.skip("transformers is not installed")
    path = Path(spec.origin).parent / "models" / "qwen2_vl" / "image_processing_qwen2_vl.py"
    tree = ast.parse(path.read_text())
    (function,) = (n for n in tree.body if getattr(n, "name", "") == "smart_resize")
    space: dict[str, Any] = {"math": math}
    exec(compile(ast.Module([function], []), str(path), "exec"), space)
    return space["smart_resize"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("bounds", [(28 * 28 * 8, 28 * 28 * 64), (56 * 56, 28 * 28 * 1280)])
def test_vision_tokens_are_those_of_the_models_own_processor(bounds: tuple[int, int]) -> None:
    resize = smart_resize()
    sides = [1, 2, 5, 14, 27, 28, 29, 42, 70, 100, 168, 224, 256, 300, 511, 777, 1024]
    for width in sides:
        for height in sides:
            if max(width, height) <= 200 * min(width, height):
                h, w = resize(height, width, 28, *bounds)
                assert num_vision_tokens(width, height, *bounds) == h * w // 28**2


def test_output_that_cannot_be_written_is_said_where_the_run_would_be_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_input(tmp_path, 1)
    (tmp_path / "out").mkdir()
    plan = plan_of(tmp_path)
    assert plan.disk.writable
    monkeypatch.setattr("os.access", lambda *_: False)  # as on a disk that is mounted read-only
    plan = plan_of(tmp_path)
    assert not plan.disk.writable
    *_, problem, last, _ = describe(plan).splitlines()
    assert problem.strip() == f"CANNOT BE WRITTEN: {tmp_path / 'out'}"
    remedy = f"fix the permissions of {tmp_path / 'out'}, or choose another folder with --output"
    assert last == f"Next       {remedy}; then run:"
