"""What `verify` finds, what `--repair` fixes, and that no caption is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.job import captions, input_flags, rows, run_here, write_document
from support.scan import scan

from vllm_caption.commands.verify.command import verify
from vllm_caption.commands.verify.verdict import KINDS, Verdict
from vllm_caption.config import InputConfig
from vllm_caption.driver.row_maker import adopted
from vllm_caption.inputs.reader import InputReader
from vllm_caption.items import Item
from vllm_caption.store.layout import all_parts, parts
from vllm_caption.store.output import Output
from vllm_caption.store.rows import Row

FILES = [f"d{number // 4}/s{number}.png" for number in range(12)]


def config_of(folder: Path, limit: int | None = None) -> InputConfig:
    return InputConfig(folder / "jsons", folder / "json_detail", folder / "raw", limit=limit)


def make_input(folder: Path, files: list[str] = FILES) -> None:
    for first in range(0, len(files), 5):
        chunk = files[first : first + 5]
        write_document(folder, f"design_{first:02}", chunk, ["SvgElement"] * len(chunk))


def row_of(item: Item, **columns: object) -> Row:
    made = adopted(item, f"caption of {item.file}", "raw", "run")
    return Row(**{name: getattr(made, name) for name in Row.__struct_fields__} | columns)


def make_output(folder: Path, interval: int = 5) -> Path:
    """What a complete run over the input leaves."""
    output = Output(folder / "out", interval)
    for entry in InputReader(config_of(folder)):
        assert isinstance(entry, Item)
        output.save_caption(row_of(entry, recipe_id="r1"))
    output.close(complete=True)
    return folder / "out"


def complete(folder: Path) -> Path:
    make_input(folder)
    return make_output(folder)


def kinds(verdict: Verdict) -> dict[str, int]:
    """What still diverges."""
    return {d.kind: d.left for d in verdict.divergences if d.left}


def entries(verdict: Verdict, kind: str) -> list[str]:
    return [e.file for d in verdict.divergences if d.kind == kind for e in d.entries]


def add_row(folder: Path, file: str, **columns: object) -> None:
    """Add a row as a later run would."""
    items = (e for e in InputReader(config_of(folder)) if isinstance(e, Item))
    item = next(item for item in items if item.file == file)
    output = Output(folder / "out", 100)
    output.save_row(row_of(item, **columns))
    output.close(complete=False)


def remove_rows(folder: Path, *files: str) -> None:
    """The manifest as if these items had never been recorded."""
    output = Output(folder / "rest", 100)
    for entry in InputReader(config_of(folder)):
        if isinstance(entry, Item) and entry.file not in files:
            output.save_row(row_of(entry, recipe_id="r1"))
    output.close(complete=True)
    for path in parts(folder / "out" / "manifest.parquet"):
        path.unlink()
    for path in parts(folder / "rest" / "manifest.parquet"):
        path.rename(folder / "out" / "manifest.parquet" / path.name)


# --- every divergence, found and repaired ------------------------------------------------------


def test_nothing_diverges_after_a_complete_run(tmp_path: Path) -> None:
    out = complete(tmp_path)
    verdict = verify(config_of(tmp_path), out)
    assert verdict.agrees
    assert not verdict.divergences
    assert (verdict.items, verdict.items_agreeing, verdict.rows) == (12, 12, 12)
    assert verdict.leftovers.num_temporary == verdict.leftovers.journal_rows == 0


def test_txt_without_a_row_gets_its_row_with_its_text(tmp_path: Path) -> None:
    out = complete(tmp_path)
    remove_rows(tmp_path, FILES[1], FILES[2])
    verdict = verify(config_of(tmp_path), out)
    assert (kinds(verdict), entries(verdict, "missing_row")) == ({"missing_row": 2}, FILES[1:3])
    assert kinds(verify(config_of(tmp_path), out, repair=True)) == {}
    row = rows(out)[FILES[1]]
    assert (row["status"], row["caption"]) == ("captioned", f"caption of {FILES[1]}")
    assert (row["recipe_id"], row["document"]) == (None, "design_00")
    assert verify(config_of(tmp_path), out).agrees


def test_row_without_its_txt_gets_the_txt_with_the_caption_of_the_row(tmp_path: Path) -> None:
    out = complete(tmp_path)
    (out / f"{FILES[3]}.txt").unlink()
    assert kinds(verify(config_of(tmp_path), out)) == {"missing_txt": 1}
    assert kinds(verify(config_of(tmp_path), out, repair=True)) == {}
    assert (out / f"{FILES[3]}.txt").read_text() == f"caption of {FILES[3]}"
    assert rows(out)[FILES[3]]["recipe_id"] == "r1"


def test_missing_txt_of_an_item_that_was_captioned_again_gets_the_newest_caption(
    tmp_path: Path,
) -> None:
    out = complete(tmp_path)
    add_row(tmp_path, FILES[0], caption="the newest")
    (out / f"{FILES[0]}.txt").unlink()
    verify(config_of(tmp_path), out, repair=True)
    assert (out / f"{FILES[0]}.txt").read_text() == "the newest"


def test_empty_txt_gets_the_caption_of_its_row_back(tmp_path: Path) -> None:
    out = complete(tmp_path)
    (out / f"{FILES[3]}.txt").write_text(" \n")
    assert kinds(verify(config_of(tmp_path), out)) == {"empty_txt": 1}
    assert verify(config_of(tmp_path), out, repair=True).agrees
    assert (out / f"{FILES[3]}.txt").read_text() == f"caption of {FILES[3]}"


def test_empty_txt_without_a_row_is_left_for_the_next_run(tmp_path: Path) -> None:
    out = complete(tmp_path)
    remove_rows(tmp_path, FILES[3])
    (out / f"{FILES[3]}.txt").write_text("")
    assert kinds(verify(config_of(tmp_path), out, repair=True)) == {"empty_txt": 1}
    assert (out / f"{FILES[3]}.txt").read_bytes() == b""
    assert FILES[3] not in rows(out)


def test_txt_that_was_changed_by_hand_counts_and_gets_a_row_of_unknown_recipe(
    tmp_path: Path,
) -> None:
    out = complete(tmp_path)
    (out / f"{FILES[4]}.txt").write_text("a better text\n")
    assert kinds(verify(config_of(tmp_path), out)) == {"edited": 1}
    assert verify(config_of(tmp_path), out, repair=True).agrees
    row = rows(out)[FILES[4]]
    assert (row["caption"], row["recipe_id"]) == ("a better text\n", None)
    assert verify(config_of(tmp_path), out).agrees


@pytest.mark.parametrize("content", [b"caf\xe9", b"one\r\ntwo\rthree", "图形".encode("utf-16")])
def test_txt_with_another_encoding_or_line_ending_agrees_after_repair(
    tmp_path: Path, content: bytes
) -> None:
    out = complete(tmp_path)
    (out / f"{FILES[4]}.txt").write_bytes(content)
    assert verify(config_of(tmp_path), out, repair=True).agrees
    assert verify(config_of(tmp_path), out).agrees
    assert (out / f"{FILES[4]}.txt").read_bytes() == content


def test_failed_row_is_named_with_kind_and_reason(tmp_path: Path) -> None:
    out = complete(tmp_path)
    (out / f"{FILES[5]}.txt").unlink()
    failed = {"status": "failed", "caption": None, "error_kind": "missing_file", "error": "gone"}
    add_row(tmp_path, FILES[5], **failed)
    verdict = verify(config_of(tmp_path), out)
    assert kinds(verdict) == {"failed": 1}
    assert verdict.divergences[0].entries[0].detail == "missing_file: gone"
    assert kinds(verify(config_of(tmp_path), out, repair=True)) == {"failed": 1}


def test_caption_beside_a_failed_row_is_adopted_by_a_run(tmp_path: Path) -> None:
    out = complete(tmp_path)
    add_row(
        tmp_path, FILES[5], status="failed", caption=None, error_kind="engine_error", error="late"
    )
    assert kinds(verify(config_of(tmp_path), out)) == {"missing_row": 1}
    assert verify(config_of(tmp_path), out, repair=True).agrees
    assert rows(out)[FILES[5]]["status"] == "captioned"


def test_item_that_was_never_tried_is_named(tmp_path: Path) -> None:
    out = complete(tmp_path)
    write_document(tmp_path, "new", ["new/a.png"], ["SvgElement"])
    verdict = verify(config_of(tmp_path), out)
    assert (kinds(verdict), entries(verdict, "untried")) == ({"untried": 1}, ["new/a.png"])


def test_caption_and_row_without_an_item_are_both_named_and_kept(tmp_path: Path) -> None:
    out = complete(tmp_path)
    for side in ("jsons", "json_detail"):
        (tmp_path / side / "design_10.json").unlink()
    (out / "stray.txt").write_text("x")
    for repair in (False, True):
        verdict = verify(config_of(tmp_path), out, repair=repair)
        assert kinds(verdict) == {"orphan_txt": 3, "orphan_row": 2}
        assert set(entries(verdict, "orphan_row")) == set(FILES[10:])
    assert (out / "stray.txt").read_text() == "x"
    assert set(rows(out)) == set(FILES)


def test_items_beyond_the_limit_are_not_orphans(tmp_path: Path) -> None:
    out = complete(tmp_path)
    verdict = verify(config_of(tmp_path, limit=3), out)
    assert verdict.agrees
    assert (verdict.items, verdict.complete) == (3, False)


def test_element_without_a_file_name_is_a_failed_item_once_a_run_has_seen_it(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, [])
    write_document(tmp_path, "odd", [None], ["SvgElement"])  # type: ignore[list-item]
    (tmp_path / "raw").mkdir()
    (row,) = scan(tmp_path)[0].rows
    output = Output(tmp_path / "out", 10)
    assert kinds(verify(config_of(tmp_path), tmp_path / "out")) == {"untried": 1}
    output.save_row(row)
    output.close(complete=True)
    assert kinds(verify(config_of(tmp_path), tmp_path / "out")) == {"failed": 1}


@pytest.mark.parametrize("name", ["../secret.png", "manifest.parquet/x.png", "a/" + "x" * 300])
def test_forbidden_name_is_neither_read_nor_written(tmp_path: Path, name: str) -> None:
    out = complete(tmp_path)
    (tmp_path / "secret.png.txt").write_text("not ours")
    write_document(tmp_path, "bad", [name], ["SvgElement"])
    assert kinds(verify(config_of(tmp_path), out, repair=True)) == {"untried": 1}
    assert (tmp_path / "secret.png.txt").read_text() == "not ours"


# --- what cannot be repaired -------------------------------------------------------------------


def test_folder_in_place_of_a_txt_still_diverges_after_repair(tmp_path: Path) -> None:
    out = complete(tmp_path)
    (out / f"{FILES[0]}.txt").unlink()
    (out / f"{FILES[0]}.txt").mkdir()
    for repair in (False, True):
        assert kinds(verify(config_of(tmp_path), out, repair=repair)) == {"missing_txt": 1}


def test_fifo_or_giant_file_in_place_of_a_txt_is_named_but_not_read(tmp_path: Path) -> None:
    out = complete(tmp_path)
    for file in FILES[:2]:
        (out / f"{file}.txt").unlink()
    os.mkfifo(out / f"{FILES[0]}.txt")
    with open(out / f"{FILES[1]}.txt", "wb") as giant:
        giant.truncate(2**40)
    for repair in (False, True):
        verdict = verify(config_of(tmp_path), out, repair=repair)
        assert kinds(verdict) == {"unreadable_txt": 2}


# --- what a killed run leaves ----------------------------------------------------------------

KILLED = """
import os, sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_verify import Output, Item, InputReader, config_of, row_of
folder = Path(sys.argv[1])
output = Output(folder / "out", 5)
for number, entry in enumerate(InputReader(config_of(folder))):
    if number == 8:
        output.files.write(entry.file, f"caption of {entry.file}")
        os.kill(os.getpid(), 9)
    output.save_caption(row_of(entry))
"""


@pytest.fixture(scope="module")
def folder_of_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    make_input(folder)
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=root, check=False)
    return folder


@pytest.fixture
def killed(tmp_path: Path, folder_of_killed: Path) -> Path:
    """Eight rows, three of them in the journal only; a ninth .txt without a row."""
    shutil.copytree(folder_of_killed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


def test_rows_that_only_a_killed_runs_journal_holds_count(tmp_path: Path, killed: Path) -> None:
    verdict = verify(config_of(tmp_path), killed)
    assert kinds(verdict) == {"missing_row": 1, "untried": 3}
    assert (verdict.rows, verdict.leftovers.journal_rows) == (8, 3)
    assert kinds(verify(config_of(tmp_path), killed, repair=True)) == {"untried": 3}
    assert verify(config_of(tmp_path), killed).leftovers.journal_rows == 0
    assert len(rows(killed)) == 9


def test_torn_line_of_the_journal_is_counted_and_its_caption_is_found(
    tmp_path: Path, killed: Path
) -> None:
    with open(killed / "journal.jsonl", "ab") as journal:
        journal.write(b'{"file":"' + FILES[8].encode())
    verdict = verify(config_of(tmp_path), killed)
    assert verdict.leftovers.torn_journal_lines == 1
    assert entries(verdict, "missing_row") == [FILES[8]]


def test_temporary_files_of_a_killed_run_are_leftovers_that_repair_removes(tmp_path: Path) -> None:
    out = complete(tmp_path)
    left = [
        out / "d0" / ".0123456789abcdef0123.tmp",
        out / "manifest.parquet" / ".part-00000009.parquet.tmp",
        out / ".status.json.tmp",
    ]
    for path in left:
        path.write_text("half a ca")
    (out / "d0" / ".mine.tmp").write_text("somebody else's")
    assert verify(config_of(tmp_path), out).leftovers.num_temporary == 3
    assert verify(config_of(tmp_path), out).agrees
    verify(config_of(tmp_path), out, repair=True)
    assert not any(path.exists() for path in left)
    assert (out / "d0" / ".mine.tmp").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def scribble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"other": [1]}), path)


def hide_a_column(path: Path) -> None:
    """A part whose page claims to be an index page, which readers skip."""
    import pyarrow.parquet as pq

    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    place = metadata.schema.names.index("document")
    content[metadata.row_group(0).column(place).data_page_offset + 1] = 2
    path.write_bytes(content)


def retype(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    place = table.column_names.index("model")
    pq.write_table(table.set_column(place, "model", pa.array([{"name": "a"}] * len(table))), path)


@pytest.mark.parametrize("damage", [truncate, scribble, empty, replace, hide_a_column, retype])
def test_damaged_part_is_named_moved_aside_and_its_rows_are_rebuilt_from_the_txt(
    tmp_path: Path, killed: Path, damage: Callable[[Path], None]
) -> None:
    (part,) = parts(killed / "manifest.parquet")
    damage(part)
    content = part.read_bytes()
    verdict = verify(config_of(tmp_path), killed)
    assert kinds(verdict) == {"damaged_part": 1, "missing_row": 6, "untried": 3}
    assert part.read_bytes() == content
    assert kinds(verify(config_of(tmp_path), killed, repair=True)) == {"untried": 3}
    (aside,) = (killed / "manifest.damaged").iterdir()
    assert aside.read_bytes() == content
    assert set(rows(killed)) == set(FILES[:9])
    assert kinds(verify(config_of(tmp_path), killed)) == {"untried": 3}


@pytest.mark.parametrize("seed", range(20))
def test_any_scattered_damage_of_a_part_is_survived_and_repaired(tmp_path: Path, seed: int) -> None:
    out = complete(tmp_path)
    (part,) = parts(out / "manifest.parquet")
    chance, content = random.Random(seed), bytearray(part.read_bytes())
    for _ in range(1 + seed % 3):
        content[chance.randrange(len(content))] = chance.randrange(256)
    part.write_bytes(content)
    (out / f"{FILES[0]}.txt").write_text("changed, so that a part is added and both become one")
    held = captions(out)
    assert set(kinds(verify(config_of(tmp_path), out, repair=True))) <= {"orphan_row"}
    assert captions(out) == held
    assert set(kinds(verify(config_of(tmp_path), out))) <= {"orphan_row"}


# --- beside a run ----------------------------------------------------------------------------


def test_run_that_holds_the_folder_is_named_and_may_continue(tmp_path: Path) -> None:
    make_input(tmp_path)
    output = Output(tmp_path / "out", 5)
    items = [e for e in InputReader(config_of(tmp_path)) if isinstance(e, Item)]
    for item in items[:7]:
        output.save_caption(row_of(item))
    output.files.write(items[7].file, "in place, its row not yet")
    verdict = verify(config_of(tmp_path), tmp_path / "out")
    assert verdict.holder is not None
    assert f"process {os.getpid()} on " in verdict.holder
    assert (verdict.items_agreeing, verdict.items_written_meanwhile) == (7, 1)
    assert kinds(verdict) == {"untried": 4}
    shown = run_here("verify", *input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    assert shown.stdout.splitlines()[-1] == (
        f"Verdict    A run is in progress (process {os.getpid()}): 4 items are not tried yet."
        " Run verify again when it has ended."
    )
    assert "untried" not in shown.stdout
    assert shown.exit_code == 1
    (tmp_path / "out" / f"{items[0].file}.txt").unlink()
    shown = run_here("verify", *input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    assert "Verdict    1 divergence. A run is in progress" in shown.stdout
    output.close(complete=True)
    assert verify(config_of(tmp_path), tmp_path / "out").holder is None


def test_repair_is_refused_while_a_run_holds_the_folder(tmp_path: Path) -> None:
    out = complete(tmp_path)
    code = "import sys; from pathlib import Path; from vllm_caption.store.output import Output\n"
    code += "output = Output(Path(sys.argv[1]), 5); print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen([sys.executable, "-c", code, out], **pipes)
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        before = captions(out)
        flags = [*input_flags(tmp_path), f"--output={out}"]
        result = run_here("verify", "--repair", *flags)
        assert result.exit_code == 2
        assert f"is in use by process {holder.pid} on " in result.stderr
        result = run_here("verify", *flags)
        assert (result.exit_code, f"process {holder.pid} on " in result.stdout) == (0, True)
        assert captions(out) == before
    finally:
        holder.kill()
        holder.communicate()


# --- a repair that does not come to its end --------------------------------------------------


def damaged(folder: Path) -> Path:
    """One .txt to be restored, one row to be added."""
    out = complete(folder)
    remove_rows(folder, FILES[1])
    (out / f"{FILES[0]}.txt").unlink()
    return out


def test_repair_on_a_full_disk_stops_with_3_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = damaged(tmp_path)
    before = captions(out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vllm_caption.store.caption_files.CaptionFiles.write", full)
        result = run_here("verify", "--repair", *input_flags(tmp_path), f"--output={out}")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "No space left on device" in result.stderr
    assert captions(out) == before
    assert verify(config_of(tmp_path), out, repair=True).agrees


def test_repair_that_is_interrupted_keeps_what_it_did_and_frees_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = damaged(tmp_path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vllm_caption.commands.verify.repair.Repair.restore", interrupt)
        result = run_here("verify", "--repair", *input_flags(tmp_path), f"--output={out}")
    assert result.exit_code == 130
    assert kinds(verify(config_of(tmp_path), out)) == {"missing_txt": 1}
    assert verify(config_of(tmp_path), out, repair=True).agrees


def test_rows_are_read_while_a_run_compacts_them(tmp_path: Path) -> None:
    make_input(tmp_path)
    output = Output(tmp_path / "out", 1)
    for entry in InputReader(config_of(tmp_path)):
        assert isinstance(entry, Item)
        output.save_caption(row_of(entry))
    listed = parts(tmp_path / "out" / "manifest.parquet")
    calls: list[Path] = []

    def parts_once_stale(folder: Path) -> list[Path]:
        calls.append(folder)
        if len(calls) == 1:
            output.close(complete=True)
            return listed
        return all_parts(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vllm_caption.store.reader.all_parts", parts_once_stale)
        verdict = verify(config_of(tmp_path), tmp_path / "out")
    assert (len(calls), verdict.items_agreeing, kinds(verdict)) == (2, 12, {})


# --- any mixture of damage -------------------------------------------------------------------

DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(FILES),
        st.sampled_from(["unlink", "empty", "edit", "no_row", "failed", "stray", "leave"]),
    ),
    max_size=8,
    unique_by=lambda change: change[0],
)


def do_damage(folder: Path, changes: list[tuple[str, str]]) -> None:
    remove_rows(folder, *(file for file, change in changes if change == "no_row"))
    for file, change in changes:
        path = folder / "out" / f"{file}.txt"
        if change == "unlink":
            path.unlink()
        elif change == "empty":
            path.write_bytes(b"")
        elif change == "edit":
            path.write_bytes(b"by hand \xff\r\n")
        elif change == "stray":
            (path.parent / f"{path.stem}.stray.txt").write_text("x")
        elif change == "failed":
            path.unlink()
            add_row(folder, file, status="failed", caption=None, error_kind="poison", error="x")


@settings(max_examples=25)
@given(DAMAGE)
def test_repair_leaves_only_what_cannot_be_repaired_and_changes_no_caption(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    out = complete(folder)
    do_damage(folder, changes)
    held = {p: p.read_bytes() for p in out.rglob("*.txt") if p.read_bytes().strip()}
    before = verify(config_of(folder), out)
    repaired = verify(config_of(folder), out, repair=True)
    after = verify(config_of(folder), out)
    assert {d.kind: d.count for d in before.divergences} == {
        d.kind: d.count for d in repaired.divergences
    }
    assert kinds(repaired) == kinds(after)
    assert set(kinds(after)) <= {"failed", "orphan_txt"}
    assert {p: p.read_bytes() for p in held} == held
    for verdict in (before, after):
        in_input = (d for d in verdict.divergences if not d.kind.startswith("orphan"))
        assert verdict.items == verdict.items_agreeing + sum(d.count for d in in_input)


# --- what a user meets -----------------------------------------------------------------------


def test_report_names_each_kind_with_examples_and_what_to_do(tmp_path: Path) -> None:
    out = complete(tmp_path)
    for file in FILES[:5]:
        (out / f"{file}.txt").unlink()
    json_path = tmp_path / "verdict.json"
    flags = [*input_flags(tmp_path), f"--output={out}"]
    result = run_here("verify", *flags, f"--json={json_path}")
    assert (result.exit_code, result.stderr) == (1, "")
    assert f"missing_txt: 5 × {KINDS['missing_txt'].meaning}" in result.stdout
    assert f"→ {KINDS['missing_txt'].remedy}" in result.stdout
    assert result.stdout.count(".png") == 3
    written = json.loads(json_path.read_text())
    assert [entry["file"] for entry in written["divergences"][0]["entries"]] == FILES[:5]
    result = run_here("verify", *flags, "--repair")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "everything agrees now" in result.stdout
    assert run_here("verify", *flags).stdout.splitlines()[-1].endswith("everything agrees")


def test_only_what_is_damaged_missing_or_not_tried_is_exit_1(tmp_path: Path) -> None:
    out = complete(tmp_path)
    flags = [*input_flags(tmp_path), f"--output={out}"]

    def last_line(exit_code: int) -> str:
        result = run_here("verify", *flags)
        assert result.exit_code == exit_code
        assert f"Items      {len(FILES)}: " in result.stdout
        return result.stdout.splitlines()[-1].removeprefix("Verdict    ")

    assert last_line(0) == "everything agrees"
    (out / f"{FILES[0]}.txt").write_text("by hand")
    (out / "old.png.txt").write_text("of an image that is gone")
    add_row(tmp_path, FILES[1], status="failed", error_kind="poison", caption=None)
    (out / f"{FILES[1]}.txt").unlink()
    expected = "apart from what is expected: edited 1, failed 1, orphan_txt 1"
    assert last_line(0) == f"everything agrees, {expected}"
    assert f": {len(FILES) - 2} agree, 1 edited, 1 failed, 0 disagree" in (
        run_here("verify", *flags).stdout
    )
    (out / f"{FILES[2]}.txt").unlink()
    assert last_line(1) == f"1 divergence, {expected}"
    shutil.rmtree(out / "manifest.parquet")
    assert "divergences" in last_line(1)


def test_what_a_run_has_not_tried_is_no_divergence_but_exit_1(tmp_path: Path) -> None:
    make_input(tmp_path)
    output = Output(tmp_path / "out", 100)
    for entry in InputReader(config_of(tmp_path, limit=2)):
        assert isinstance(entry, Item)
        output.save_caption(row_of(entry))
    output.close(complete=False)
    result = run_here("verify", *input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    left = len(FILES) - 2
    assert f"2 agree, {left} not tried yet, 0 disagree" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert (result.exit_code, last) == (1, f"Verdict    {left} items not tried yet: run again")


def remedy_of(verdict: Verdict, kind: str) -> str:
    return next(found.remedy for found in verdict.divergences if found.kind == kind)


def test_remedy_of_a_failure_depends_on_its_kind(tmp_path: Path) -> None:
    out = complete(tmp_path)
    of_prompt = "run again, change the prompt, or accept such captions with --no-checks"
    of_image = "fix the image or its entry if it is at fault, then run again"
    of_both = f"{of_image}; if captions were rejected, change the prompt, or add --no-checks"
    for file, kind, remedy in (
        (FILES[0], "caption_rejected", of_prompt),
        (FILES[1], "missing_file", of_both),
        (FILES[0], "missing_file", of_image),
    ):
        (out / f"{file}.txt").unlink(missing_ok=True)
        add_row(tmp_path, file, status="failed", error_kind=kind, caption=None, error="x")
        assert remedy_of(verify(config_of(tmp_path), out), "failed") == remedy


def test_caption_of_another_input_of_the_folder_is_kept_and_types_are_named_only_if_there_are_any(
    tmp_path: Path,
) -> None:
    out = complete(tmp_path)
    (out / "stray.txt").write_text("x")
    assert "or its type is one of --skip-types" in remedy_of(
        verify(config_of(tmp_path), out), "orphan_txt"
    )
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.png").write_bytes(b"")
    of_folder = InputConfig(input=tmp_path / "raw", images_root=tmp_path / "raw")
    remedy = remedy_of(verify(of_folder, out), "orphan_txt")
    assert remedy == "it is kept: another input of this output may own it, or its image is gone"


def test_skipped_documents_are_reported_with_their_reasons(tmp_path: Path) -> None:
    out = complete(tmp_path)
    (tmp_path / "json_detail" / "design_10.json").unlink()
    result = run_here("verify", *input_flags(tmp_path), f"--output={out}")
    assert "3 read, 1 skipped" in result.stdout
    assert "missing_detail 1, e.g. design_10: there is no detail of this name" in result.stdout


def test_images_are_not_needed(tmp_path: Path) -> None:
    out = complete(tmp_path)
    assert not (tmp_path / "raw").exists()
    assert verify(config_of(tmp_path), out).agrees


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output=/no/such/folder"], "--output /no/such/folder: does not exist"),
        (["--output=/dev/null"], "--output /dev/null: is not a folder"),
        (["--jsons=/no/jsons"], "--jsons /no/jsons: does not exist"),
        (["--json=/no/such/folder/x.json"], "--json /no/such/folder/x.json: is in a folder"),
        (
            ["--tensor-parallel-siez=2"],
            "--tensor-parallel-siez: unknown flag; did you mean --tensor-parallel-size?",
        ),
    ],
)
def test_mistake_is_one_line_and_exit_2(tmp_path: Path, flags: list[str], message: str) -> None:
    out = complete(tmp_path)
    result = run_here("verify", *input_flags(tmp_path), f"--output={out}", *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert message in line


def test_verify_without_repair_writes_nothing(tmp_path: Path, killed: Path) -> None:
    def listing() -> dict[str, tuple[int, int]]:
        found = [killed, *killed.rglob("*")]
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}

    before = listing()
    assert run_here("verify", *input_flags(tmp_path), f"--output={killed}").exit_code == 1
    assert listing() == before


def test_verify_and_status_import_neither_vllm_nor_torch(tmp_path: Path) -> None:
    out = complete(tmp_path)
    code = (
        "import sys; from vllm_caption.cli import main\n"
        "import vllm_caption.commands.status.command\n"
        "code = main(sys.argv[1:]);"
        "print({'vllm', 'torch', 'ray', 'transformers'} & set(sys.modules), code)"
    )
    flags = ["verify", *input_flags(tmp_path), f"--output={out}"]
    result = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "set() 0"
