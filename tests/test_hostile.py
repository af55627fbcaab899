"""The corpus of hostile inputs through the real job: every defect has its decided outcome.

The decisions are those of docs/input.md. The corpus is generated anew, because links, pipes and
names that are not UTF-8 survive no archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from support.hostile_corpus import make_big_corpus, make_hostile_corpus
from support.job import (
    ENVIRONMENT,
    Result,
    captions,
    input_flags,
    make_input,
    rows,
    run_here,
    write_document,
)

from vllm_caption.errors import ItemError
from vllm_caption.store.caption_files import CaptionFiles

engine = pytest.mark.engine
FLAGS = ("--model=demo", "-dp=1", "--no-checks", "--max-tokens=8")
PREFIX = "shape_descriptions/"


def rights_are_void() -> bool:
    """Whether files of mode 000 can be read here, as root can."""
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return os.access(file.name, os.R_OK)


AS_ROOT = rights_are_void()
MODE_000 = "captioned" if AS_ROOT else "unreadable"

DECIDED = {
    "i_bad_crc": "decode_error",
    "i_dot": "path_escape",
    "i_locked_dir": MODE_000,
    "i_name_252": "bad_name",
    "i_name_file_url": "path_escape",
    "i_name_http": "path_escape",
    "i_rgba_empty": "decode_error",
    "i_unreadable": MODE_000,
    "i_zero_dim": "decode_error",
}
"""Item cases where the corpus leaves a choice and we did not take the first one."""

CAPTIONED_BY_DECISION = {
    "img/i32.tif",
    "img/no_iend.png",
    "ok/d_deep_900.png",
    "ok/d_duplicate_keys.png",
    "ok/d_nan.png",
    "ok/d_type_empty.png",
    "ok/d_type_int.png",
    "ok/d_type_list.png",
    "ok/d_type_null.png",
    "ok/d_type_space.png",
    *(("fs/unreadable.png", "fs/locked/x.png", "skip/d_unreadable.png") if AS_ROOT else ()),
}
"""What the corpus allows to be captioned or refused, and we caption."""

NUM_ITEMS = 177
CONFLICT = {"fs/conflict", "fs/conflict.txt/x.png"}


@dataclass(frozen=True)
class HostileRun:
    """Two runs over the hostile corpus, one over a healthy input of its size; what they left."""

    folder: Path
    expected: dict[str, Any]
    output: Path
    first: Result
    second: Result
    changed: set[str]
    opened: set[str]
    sees_openings: bool
    fetched: bool | None
    costs: dict[str, Cost]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return rows(self.output)


@dataclass
class Cost:
    """The processor time of a run, and the peak of all its processes' memory together."""

    cpu_s: float = 0.0
    peak_mib: float = 0.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The corpus with everything that only a live file system can hold."""
    folder = tmp_path_factory.mktemp("hostile") / "corpus"
    make_hostile_corpus(folder, special=True)
    yield folder
    (folder / "raw/fs/locked").chmod(0o755)


@pytest.fixture(scope="module")
def hostile(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> HostileRun:
    expected = json.loads((corpus / "expected.json").read_text())
    output = corpus.parent / "run" / "output"
    output.parent.mkdir()
    healthy = tmp_path_factory.mktemp("healthy")
    make_input(healthy, NUM_ITEMS)
    healthy_arguments = [*FLAGS, *input_flags(healthy), f"--output={healthy / 'out'}"]
    run_here(*healthy_arguments, "--limit=1", "--quiet")  # vLLM's import counts for neither
    arguments = [*FLAGS, *input_flags(corpus), f"--output={output}"]
    before = contents(corpus.parent, but=output)
    forget_openings(corpus)
    costs = {"hostile": Cost(), "healthy": Cost()}
    with listening() as server, contextlib.chdir(output.parent):
        with measured(costs["hostile"]):
            first = run_here(*arguments)
        second = run_here(*arguments)
        opened = openings(corpus)
        fetched = has_caller(server)
    with measured(costs["healthy"]):
        run_here(*healthy_arguments, "--redo=all")
    after = contents(corpus.parent, but=output)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    sees = "raw/ok/control.png" in opened
    return HostileRun(
        corpus, expected, output, first, second, changed, opened, sees, fetched, costs
    )


def contents(folder: Path, but: Path) -> dict[str, tuple[int, ...]]:
    """Everything below a folder, without reading it."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(root, name) != but]
        for name in folders + files:
            status = os.lstat(os.path.join(root, name))
            is_folder = stat.S_ISDIR(status.st_mode)
            facts = () if is_folder else (status.st_size, status.st_mtime_ns)
            found[os.path.join(root, name)] = (status.st_mode, *facts)
    return found


def regular_files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    for root, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(root, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                yield path, status


def forget_openings(folder: Path) -> None:
    """Make every file look as if nobody had ever read it."""
    for path, status in regular_files(folder):
        os.utime(path, ns=(0, status.st_mtime_ns))


def openings(folder: Path) -> set[str]:
    """The files that were read since; nothing on a file system that keeps no access times."""
    return {
        os.path.relpath(path, folder) for path, status in regular_files(folder) if status.st_atime
    }


@contextlib.contextmanager
def listening() -> Iterator[socket.socket | None]:
    """A server at the URL in the corpus; None if the port is not available."""
    try:
        server = socket.create_server(("127.0.0.1", 9))
    except OSError:
        yield None
        return
    with server:
        server.setblocking(False)
        yield server


def has_caller(server: socket.socket | None) -> bool | None:
    if server is None:
        return None
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def measured(cost: Cost) -> Iterator[None]:
    """Measure every 50 ms the processor time and the memory of this process and its
    descendants."""
    ended, me = threading.Event(), psutil.Process()

    def look() -> dict[psutil.Process, float]:
        """The processor time of each."""
        cpu_s, num_bytes = {}, 0
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                cpu_s[process] = sum(process.cpu_times()[:2])  # without its children
                num_bytes += process.memory_info().rss
        cost.peak_mib = max(cost.peak_mib, num_bytes / 2**20)
        return cpu_s

    before = look()
    last = dict(before)

    def watch() -> None:
        while not ended.wait(0.05):
            last.update(look())
        last[me] -= time.thread_time()  # what watching took

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()
        cost.cpu_s = sum(last.values()) - sum(before.values())


def wanted_kinds(expected: dict[str, Any]) -> dict[str, str]:
    """Item case → "captioned" or the kind of its failure."""
    cases = (item for item in expected["items"] if item["document"] != "i_conflict")
    return {c["document"]: DECIDED.get(c["document"], c.get("kind", "captioned")) for c in cases}


# --- the corpus, end to end --------------------------------------------------------------------


@engine
def test_hostile_documents_are_skipped_with_the_expected_kinds_and_a_sentence(
    hostile: HostileRun,
) -> None:
    documents = hostile.expected["documents"]
    wanted = {name: d["reason"] for name, d in documents.items() if d["outcome"] == "skipped"}
    if AS_ROOT:
        del wanted["d_unreadable"]
    table = pq.read_table(hostile.output / "documents.parquet").to_pylist()
    assert {row["document"]: row["kind"] for row in table} == wanted
    assert all(row["reason"].isprintable() and row["reason"] for row in table)


@engine
def test_hostile_items_have_the_expected_or_decided_outcome(hostile: HostileRun) -> None:
    found = hostile.rows
    by_place = {(row["document"], row["element_index"]): row for row in found.values()}
    came = {}
    for item in hostile.expected["items"]:
        if item["document"] != "i_conflict":
            file, place = item["file"], (item["document"], item["index"])
            row = found.get(file) if isinstance(file, str) else None
            row = row or by_place[place]
            came[item["document"]] = row["error_kind"] or row["status"]
    assert came == wanted_kinds(hostile.expected)


@engine
def test_hostile_decisions_exist_only_for_cases_that_leave_a_choice(
    hostile: HostileRun,
) -> None:
    free = {item["document"] for item in hostile.expected["items"] if "policy" in item}
    assert DECIDED.keys() <= free
    may = {name.removeprefix(PREFIX)[: -len(".txt")] for name in hostile.expected["outputs_may"]}
    assert may >= CAPTIONED_BY_DECISION - {"skip/d_unreadable.png"}


@engine
def test_hostile_outputs_are_those_required_and_those_decided_on(
    hostile: HostileRun,
) -> None:
    must = {name.removeprefix(PREFIX)[: -len(".txt")] for name in hostile.expected["outputs_must"]}
    made = captions(hostile.output)
    assert made.keys() - CONFLICT == must | CAPTIONED_BY_DECISION
    assert all(text.strip() for text in made.values())
    found = hostile.rows
    assert {file for file, row in found.items() if row["status"] == "captioned"} == made.keys()


@engine
def test_hostile_outputs_that_must_not_exist_do_not(hostile: HostileRun) -> None:
    wrong = (name.removeprefix(PREFIX) for name in hostile.expected["outputs_must_not"])
    assert not [name for name in wrong if os.path.lexists(hostile.output / name)]


@engine
def test_hostile_captions_that_need_one_path_as_file_and_folder_end_in_one_caption(
    hostile: HostileRun,
) -> None:
    ends = {file: hostile.rows[file]["error_kind"] for file in CONFLICT}
    assert sorted(ends.values(), key=str) == [None, "output_conflict"]
    assert {file for file in CONFLICT if ends[file] is None} == CONFLICT & captions(
        hostile.output
    ).keys()


@engine
def test_hostile_rows_of_elements_without_a_usable_name_say_where_they_are(
    hostile: HostileRun,
) -> None:
    files = {row["file"] for row in hostile.rows.values() if row["error_kind"] == "bad_name"}
    assert files >= {
        "i_file_int[2]: 5",
        'i_entry_list[2]: ["ok/control.png"]',
        "i_nul[2]: ok/control.png\\u0000.png",
        "i_surrogateescape[2]: fs/\\udcff\\udcfe.png",
    }


@engine
def test_oversized_manifests_and_files_are_captioned_without_being_held_in_memory(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "big"
    make_big_corpus(folder)
    expected = json.loads((folder / "expected.json").read_text())
    may = {*expected["outputs_must"], *expected["outputs_may"]}
    files = {name.removeprefix(PREFIX)[: -len(".txt")] for name in may}
    healthy, big = Cost(), Cost()
    make_input(tmp_path, len(files))
    for place, cost in ((tmp_path, healthy), (folder, big)):
        with measured(cost):
            result = run_here(*FLAGS, *input_flags(place), f"--output={place / 'out'}")
        assert result.exit_code == 0, result.stderr
    assert captions(folder / "out").keys() == files
    assert big.peak_mib < 2 * healthy.peak_mib


@engine
def test_hostile_run_counts_what_it_did_and_exits_1(hostile: HostileRun) -> None:
    kinds = [row["error_kind"] for row in hostile.rows.values()]
    assert len(kinds) == NUM_ITEMS - (not AS_ROOT)
    num_captioned, num_failed = kinds.count(None), len(kinds) - kinds.count(None)
    documents = hostile.expected["documents"].values()
    skipped = sum(document["outcome"] == "skipped" for document in documents) - AS_ROOT
    ignored = sum(document["outcome"] == "ignored" for document in documents)
    read = len(documents) - ignored - 1  # plus the hidden one
    assert hostile.first.exit_code == 1, hostile.first.stderr
    assert f"Designs: {read:,} read, {skipped:,} skipped\n" in hostile.first.stdout
    counts = f"captioned {num_captioned} ({num_captioned} in this run), failed {num_failed}\n"
    assert f"Items: {len(kinds):,}, {counts}" in hostile.first.stdout


@engine
def test_hostile_rerun_starts_no_engine_and_ends_with_the_same_counts(
    hostile: HostileRun,
) -> None:
    assert "Checking" not in hostile.second.stderr
    assert hostile.second.exit_code == 1
    first, second = (
        [line.split(", e.g.")[0] for line in result.stdout.splitlines() if ", e.g." in line]
        for result in (hostile.first, hostile.second)
    )
    assert sorted(first) == sorted(second)
    kinds = [row["error_kind"] for row in hostile.rows.values()]
    counts = f"captioned {kinds.count(None)} (0 in this run), failed"
    assert counts in hostile.second.stdout


@engine
def test_hostile_run_writes_nothing_outside_the_output(hostile: HostileRun) -> None:
    assert not hostile.changed
    assert not os.path.lexists("/tmp/hostile_pwned")


@engine
def test_hostile_run_reads_nothing_outside_the_images_root_and_no_skipped_element(
    hostile: HostileRun,
) -> None:
    if not hostile.sees_openings:
        pytest.skip("this file system keeps no access times")
    images = {name for name in hostile.opened if not name.startswith(("jsons/", "json_detail/"))}
    assert not {name for name in images if not name.startswith("raw/")}
    skipped = {name.removeprefix("raw/") for name in images if name.startswith("raw/skip/")}
    assert skipped <= CAPTIONED_BY_DECISION
    secret = hashlib.sha256((hostile.folder / "outside/secret.png").read_bytes()).hexdigest()
    assert secret not in {row["image_sha256"] for row in hostile.rows.values()}


@engine
def test_hostile_run_fetches_nothing(hostile: HostileRun) -> None:
    if hostile.fetched is None:
        pytest.skip("port 9 cannot be listened on")
    assert not hostile.fetched


@engine
def test_hostile_names_are_in_the_manifest_as_they_are_and_pandas_reads_it(
    hostile: HostileRun,
) -> None:
    table = pd.read_parquet(hostile.output / "manifest.parquet")
    assert len(table) == table["file"].nunique() == len(hostile.rows)
    awkward = {
        " fs/ lead trail .png ",
        "fs/new\nline.png",
        "fs/\x1b[31mred\x07.png",
        "fs/\u202egnp.exe.png",
        "fs/图标/红心.png",
    }
    assert awkward <= set(table.loc[table["status"] == "captioned", "file"])
    assert len(table.to_json()) > 0
    failed = table[table["status"] == "failed"]
    assert all(reason and reason.isprintable() for reason in failed["error"])


@engine
def test_hostile_run_shows_no_control_character(hostile: HostileRun) -> None:
    shown = "".join(
        text
        for result in (hostile.first, hostile.second)
        for text in (result.stdout, result.stderr)
    )
    assert shown.replace("\n", "").isprintable()


@engine
def test_hostile_run_takes_at_most_twice_the_time_and_memory_of_a_healthy_one(
    hostile: HostileRun,
) -> None:
    bad, good = hostile.costs["hostile"], hostile.costs["healthy"]
    assert bad.cpu_s < 2 * good.cpu_s
    assert bad.peak_mib < 1.25 * good.peak_mib  # one decoded bomb would break this


# --- beyond the corpus -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    [
        "manifest.parquet",
        "documents.parquet",
        ".documents.parquet.tmp",
        "recipes.json",
        ".recipes.json.tmp",
        "recipes.json.damaged",
        "status.json",
        ".status.json.tmp",
        "journal.jsonl",
        ".run.lock",
        ".run.owner.json",
        "logs/engine-1.log",
    ],
)
def test_name_that_needs_a_folder_where_the_job_keeps_a_file_is_output_conflict(
    tmp_path: Path, folder: str
) -> None:
    with pytest.raises(ItemError) as caught:
        CaptionFiles(tmp_path).check_name(f"{folder}/x.png")
    assert caught.value.kind == "output_conflict"


@pytest.mark.parametrize(
    "file", ["documents.parquet", "logs/x.png", "logs.log/x", "a/logs/b.log/x", "a/status.json/x"]
)
def test_name_that_only_resembles_a_file_of_the_job_is_captioned(tmp_path: Path, file: str) -> None:
    CaptionFiles(tmp_path).check_name(file)


def test_path_that_is_too_long_below_the_output_fails_its_item_and_not_the_run(
    tmp_path: Path,
) -> None:
    file = "/".join(["d" * 200] * 20) + "/" + "x" * 70
    for act in (CaptionFiles(tmp_path).check_place, lambda f: CaptionFiles(tmp_path).write(f, "a")):
        with pytest.raises(ItemError) as caught:
            act(file)
        assert caught.value.kind == "bad_name"


def test_caption_is_written_once_the_obstacle_at_its_path_is_gone(tmp_path: Path) -> None:
    files = CaptionFiles(tmp_path)
    files.write("a", "a caption")
    with pytest.raises(ItemError, match="output_conflict"):
        files.check_place("a.txt/b")
    (tmp_path / "a.txt").unlink()
    files.check_place("a.txt/b")
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(ItemError, match="output_conflict"):
        files.check_place("a")


def test_names_that_would_steer_a_terminal_are_shown_escaped(tmp_path: Path) -> None:
    steering = "\x1b]0;pwned\x07\n\x9b2J"
    write_document(tmp_path, "good", [f"/{steering}"], ["SvgElement"])  # needs no engine to fail
    write_document(tmp_path, steering, ["a.png"], ["SvgElement"])
    (tmp_path / "json_detail" / f"{steering}.json").unlink()
    (tmp_path / "raw").mkdir()
    output = tmp_path / "out"
    result = run_here(*FLAGS, *input_flags(tmp_path), f"--output={output}")
    assert result.exit_code == 1
    assert "\\u001b]0;pwned\\u0007\\u000a\\u009b2J" in result.stdout
    assert (result.stdout + result.stderr).replace("\n", "").isprintable()
    assert set(rows(output)) == {f"/{steering}"}
    assert steering in set(pd.read_parquet(output / "documents.parquet")["document"])


def test_name_that_the_terminal_cannot_show_does_not_break_the_summary(tmp_path: Path) -> None:
    write_document(tmp_path, "good", ["/图标.png"], ["SvgElement"])
    (tmp_path / "raw").mkdir()
    command = [sys.executable, "-m", "vllm_caption", *FLAGS, *input_flags(tmp_path)]
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    command.append(f"--output={tmp_path / 'out'}")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("Traceback")) == (1, 0), done.stderr
    assert "path_escape 1, e.g. /\\u56fe\\u6807.png" in done.stdout
