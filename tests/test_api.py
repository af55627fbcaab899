"""`import vllm_caption`: a run, its counts and its table, from Python code."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.job import (
    ENVIRONMENT,
    FAKE,
    QUICK,
    WAIT_S,
    captions,
    input_flags,
    make_gated,
    make_input,
    run,
    start,
    status,
    wait_until,
    write_document,
)

import vllm_caption
from vllm_caption.api import run as api_run
from vllm_caption.api.arguments import as_arguments
from vllm_caption.errors import RunStopped, UsageError
from vllm_caption.flags import parse_known, run_parser
from vllm_caption.store.rows import SCHEMA

FAKE_SCRIPT = "from vllm_caption.api import run; run.CHILD = 'support.fake_child'\n"
"""The start of a script whose runs have fake engines."""


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process have fake engines."""
    monkeypatch.setattr(api_run, "CHILD", "support.fake_child")


def flags(folder: Path, **more: Any) -> dict[str, Any]:
    """The arguments of a run over ``folder`` into ``folder/out``."""
    usual = {"model": "demo", "data_parallel_size": 1, "max_num_seqs": 2, "quiet": True}
    names = {"jsons": "jsons", "json_detail": "json_detail", "images_root": "raw", "output": "out"}
    return usual | {name: folder / path for name, path in names.items()} | more


@contextlib.contextmanager
def script(folder: Path, text: str, *, fake: bool = True) -> Iterator[subprocess.Popen[str]]:
    """A user's script, without a main guard, as a process of its own that ends with the block."""
    path = folder / "script.py"
    path.write_text((FAKE_SCRIPT if fake else "") + "import vllm_caption\n" + text, "utf-8")
    with subprocess.Popen(
        [sys.executable, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def await_line(process: subprocess.Popen[str], text: str) -> None:
    """Wait until the process prints this on stderr."""
    assert process.stderr is not None
    assert any(text in line for line in process.stderr)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out, err


def call(folder: Path, **more: Any) -> str:
    """The call of `caption` as a script has it."""
    given = {
        name: str(v) if isinstance(v, Path) else v for name, v in flags(folder, **more).items()
    }
    return f"vllm_caption.caption(**{given!r})"


# --- from Python values to flags -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_side", 512, ["--max-side=512"]),
        ("temperature", 0.5, ["--temperature=0.5"]),
        ("output", Path("a b"), ["--output=a b"]),
        ("prompt", "-odd", ["--prompt=-odd"]),
        ("seed", None, []),
        ("quiet", True, ["--quiet"]),
        ("quiet", False, []),
        ("no_checks", True, ["--no-checks"]),
        ("no_checks", False, []),
        ("checks", False, ["--no-checks"]),
        ("checks", True, []),
        ("skip_types", ["A", "B"], ["--skip-types=A,B"]),
        ("skip_types", [], ["--skip-types="]),
        ("skip_types", "A,B", ["--skip-types=A,B"]),
        ("stop", ["--", "\n"], ["--stop=--", "--stop=\n"]),
        ("redo_file", ("a.png", Path("b/c.png")), ["--redo-file=a.png", "--redo-file=b/c.png"]),
        ("gpu_memory_utilization", 0.9, ["--gpu-memory-utilization=0.9"]),
        ("enforce_eager", True, ["--enforce-eager"]),
        ("enable_prefix_caching", False, ["--no-enable-prefix-caching"]),
        ("hf_overrides", {"a": [1]}, ['--hf-overrides={"a": [1]}']),
        ("served_model_name", ["a", "b"], ["--served-model-name", "a", "b"]),
    ],
)
def test_value_becomes_the_arguments_of_its_flag(name: str, value: Any, words: list[str]) -> None:
    assert as_arguments({name: value}) == words


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_side", True, "max_side True: takes a value; it is not a switch"),
        ("quiet", "yes", "quiet yes: is a switch; give True or False"),
        ("prompt", object, "prompt <class 'object'>: cannot be given; give a string, a number"),
        ("prompt", "a\0b", r"prompt 'a\x00b': cannot be given"),
        ("prompt", b"bytes", "prompt b'bytes': cannot be given"),
        ("skip_types", ["A,B"], "skip_types A,B: has a comma, which separates the entries"),
        ("hf_overrides", {"a": object()}, "hf_overrides: cannot be written as JSON ("),
        ("version", True, "version: prints and exits; use it on the command line"),
        ("quiet", object, "quiet <class 'object'>: is a switch; give True or False"),
        ("output", ["a", "b"], "output ['a', 'b']: cannot be given; give the path of a file or"),
        ("output", "a\ud800", r"output 'a\ud800': cannot be given"),
        ("output", " ", "output: it is empty; name a file or folder"),
        ("prompt", ["a"], "prompt ['a']: takes one value, not a list"),
        (
            "input",
            pa.table({"file": ["a.png"]}),
            'input pyarrow.Table file: string ---- file: [["a.png"]]: cannot be given; give the'
            " path of a file or folder",
        ),
    ],
)
def test_value_that_no_flag_accepts_is_a_usage_error(name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        as_arguments({name: value})
    assert str(refused.value).startswith(message)


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(texts), st.lists(texts, min_size=1), st.integers(1), st.floats(allow_nan=False))
def test_parser_reads_the_values_that_were_given(
    stop: list[str], names: list[str], side: int, temperature: float
) -> None:
    given = {"stop": stop, "redo_file": names, "max_side": side, "temperature": temperature}
    options, others = parse_known(run_parser(), as_arguments(given))
    assert (options.stop, options.redo_files) == (stop, names)
    assert (options.max_side, options.temperature, others) == (side, temperature, ())


# --- the result ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("fakes")
def test_run_returns_the_counts_of_its_summary_its_folder_and_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_input(tmp_path, 12)
    write_document(tmp_path, "y", ["missing.png", "silent.png"], ["SvgElement"] * 2)
    (tmp_path / "raw/silent.png").write_bytes((tmp_path / "raw" / files[0]).read_bytes())
    write_document(tmp_path, "z", ["a.png"], [])
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        done = vllm_caption.caption(**flags(tmp_path, output="out", dedup=False))
    assert (done.exit_code, done.items, done.captioned, done.captioned_now) == (1, 14, 12, 12)
    assert (done.failed, done.not_tried, done.failures["missing_file"]) == (2, 0, 1)
    assert (done.documents, done.skipped_documents) == (4, 1)
    assert done.output_tokens == 4 * 12
    assert "Designs: 4 read, 1 skipped" in out.getvalue()
    assert "Items: 14, captioned 12 (12 in this run), failed 2" in out.getvalue()
    assert done.output == tmp_path / "out"
    rows = {row["file"]: row for row in done.table.to_pylist()}
    assert rows.keys() == {*files, "missing.png", "silent.png"}
    assert rows[files[3]]["caption"] == f"caption of {files[3]}"
    assert rows["missing.png"]["error_kind"] == "missing_file"
    with pytest.raises(AttributeError):
        done.failed = 0  # type: ignore[misc]


@pytest.mark.usefixtures("fakes")
def test_second_call_in_a_process_resumes(tmp_path: Path) -> None:
    files = make_input(tmp_path, 12)
    first = vllm_caption.caption(**flags(tmp_path, limit=5))
    second = vllm_caption.caption(**flags(tmp_path))
    assert (first.items, first.captioned_now) == (5, 5)
    assert (second.items, second.captioned, second.captioned_now) == (12, 12, 7)
    assert captions(tmp_path / "out").keys() == set(files)


@pytest.mark.usefixtures("fakes")
def test_users_mistake_is_a_usage_error_with_field_value_and_remedy(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, 1)
    with pytest.raises(vllm_caption.UsageError) as refused:
        vllm_caption.caption(**flags(tmp_path, jsons=tmp_path / "nowhere"))
    assert (refused.value.field, refused.value.value) == ("jsons", str(tmp_path / "nowhere"))
    assert refused.value.remedy.startswith("does not exist (")
    with pytest.raises(vllm_caption.UsageError, match=r"^max_side: 0 is not 1 or more"):
        vllm_caption.caption(**flags(tmp_path, max_side=0))
    with pytest.raises(UsageError, match=r"^modle: unknown argument; did you mean model\?$"):
        vllm_caption.caption(**flags(tmp_path, modle=1))
    with pytest.raises(UsageError, match=r"^min_pixels 9: .* max_pixels 3; change one of them$"):
        vllm_caption.caption(**flags(tmp_path, min_pixels=9, max_pixels=3))
    with pytest.raises(UsageError, match=r"^output nothere: does not exist"):
        vllm_caption.read("nothere")
    with pytest.raises(UsageError, match=r"^prompt shape-breif: .*did you mean `shape-brief`"):
        vllm_caption.load_prompt("shape-breif")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "output None: cannot be given; give the path of a file or folder"),
        (5, "output 5: cannot be given; give the path of a file or folder"),
        ("", "output: it is empty; name a file or folder (the current one is `.`)"),
        ("~nobody-of-this-name", "output: ~nobody-of-this-name: there is no such home folder"),
    ],
)
def test_output_that_is_no_path_is_a_usage_error_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Any, message: str
) -> None:
    make_input(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    for call_with in (
        lambda: vllm_caption.caption(**flags(tmp_path, output=output)),
        lambda: vllm_caption.read(output),
    ):
        with pytest.raises(UsageError) as refused:
            call_with()
        assert str(refused.value).startswith(message)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("fakes")
def test_output_may_be_any_path_like_object(tmp_path: Path) -> None:
    make_input(tmp_path, 1)
    (tmp_path / "out").mkdir()
    with os.scandir(tmp_path) as entries:
        entry = next(entry for entry in entries if entry.name == "out")
    done = vllm_caption.caption(**flags(tmp_path, output=entry))
    assert done.output == tmp_path / "out"
    assert done.table.num_rows == vllm_caption.read(entry).num_rows == 1


@pytest.mark.usefixtures("fakes")
def test_run_that_cannot_continue_raises_the_reason_and_keeps_its_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_input(tmp_path, 3)
    vllm_caption.caption(**flags(tmp_path, limit=1))
    monkeypatch.setenv("FAKE_START", "start_broken")
    with pytest.raises(vllm_caption.RunStopped, match="no kernel image is available"):
        vllm_caption.caption(**flags(tmp_path))
    assert vllm_caption.read(tmp_path / "out").num_rows == 1


@pytest.mark.usefixtures("fakes")
def test_run_whose_process_is_killed_says_so_and_the_next_call_resumes(tmp_path: Path) -> None:
    files = make_input(tmp_path, 5) + make_gated(tmp_path)

    def kill() -> None:
        wait_until(lambda: len(captions(tmp_path / "out")) == 5)
        os.kill(wait_until(lambda: status(tmp_path / "out").get("pid")), signal.SIGKILL)

    with ThreadPoolExecutor(1) as beside:
        killing = beside.submit(kill)
        with pytest.raises(RunStopped, match=r"was killed \(SIGKILL\); run again"):
            vllm_caption.caption(**flags(tmp_path))
        killing.result()
    (tmp_path / "raw/gate").touch()
    assert vllm_caption.caption(**flags(tmp_path)).captioned == len(files)


@pytest.mark.usefixtures("fakes")
def test_bug_prints_a_traceback_and_raises_run_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_run, "CHILD", "support.no_such_module")
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(RunStopped, match="internal error"):
        vllm_caption.caption(**flags(tmp_path))
    assert "ModuleNotFoundError" in err.getvalue()


def test_example_of_the_readme_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fakes: None,
) -> None:
    make_input(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(import vllm_caption\n.*?)```", page, re.DOTALL)
    (tmp_path / "raw").rename(tmp_path / "images")
    names: dict[str, Any] = {}
    exec(example.replace("Qwen/Qwen2.5-VL-7B-Instruct", "demo"), names)
    assert capsys.readouterr().out.endswith("\n3 0\n")
    assert names["table"].num_rows == 3


# --- where it is called --------------------------------------------------------------------------


def state_of_process() -> dict[str, object]:
    """The state of this process that a call must not change."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
    return {
        "handlers": [signal.getsignal(number) for number in names],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": psutil.Process().children(),
        "loop": asyncio.get_event_loop_policy(),
    }


@pytest.mark.usefixtures("fakes")
def test_call_leaves_no_trace_in_its_process(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    before = state_of_process()
    vllm_caption.caption(**flags(tmp_path))
    assert state_of_process() == before


@pytest.mark.usefixtures("fakes")
def test_call_works_beside_a_running_event_loop(tmp_path: Path) -> None:
    make_input(tmp_path, 3)

    async def cell() -> vllm_caption.RunResult:
        return vllm_caption.caption(**flags(tmp_path))

    assert asyncio.run(cell()).captioned == 3


@pytest.mark.usefixtures("fakes")
def test_concurrent_calls_in_threads_work(tmp_path: Path) -> None:
    for name in "ab":
        make_input(tmp_path / name, 3)
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(vllm_caption.caption, **flags(tmp_path / name)) for name in "ab"]
    assert [done.result().captioned for done in runs] == [3, 3]


@pytest.mark.usefixtures("fakes")
def test_stream_in_place_of_a_standard_one_needs_only_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_input(tmp_path, 3)
    written: list[str] = []
    stream = SimpleNamespace(write=written.append)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    assert vllm_caption.caption(**flags(tmp_path, quiet=False)).captioned == 3
    assert "Checking the model demo and vLLM's flags." in "".join(written)
    assert "Items: 3, captioned 3 (3 in this run), failed 0" in "".join(written)


@pytest.mark.parametrize("workers", ["forked", "spawned"])
def test_script_without_a_main_guard_runs_once_and_prints_as_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    make_input(tmp_path, 3)
    if workers == "spawned":
        monkeypatch.setitem(ENVIRONMENT, "FAKE_SPAWN", "1")
    with script(tmp_path, f"print('begin')\n{call(tmp_path, quiet=False)}") as process:
        code, out, err = ended(process)
    assert (code, out.count("begin")) == (0, 1), err
    assert out.index("begin") < out.index("Items: 3, captioned 3 (3 in this run), failed 0")
    assert "Checking the model demo and vLLM's flags." in err


def test_modules_of_the_current_folder_do_not_stand_in_for_those_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_input(tmp_path, 1)
    here = tmp_path / "here"
    here.mkdir()
    (here / "signal.py").write_text("raise SystemExit('the wrong signal')")
    monkeypatch.chdir(here)
    with script(tmp_path, f"assert {call(tmp_path)}.captioned == 1") as process:
        code, _, err = ended(process)
    assert code == 0, err


def test_script_with_closed_streams_gets_its_captions(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    closing = "import os\nfor number in range(3): os.close(number)\n"
    with script(tmp_path, f"{closing}assert {call(tmp_path)}.captioned == 3") as process:
        assert ended(process)[0] == 0
    assert len(captions(tmp_path / "out")) == 3


@pytest.mark.parametrize("number", [1, 2])
def test_ctrl_c_drains_the_run_and_is_raised_after_its_end(tmp_path: Path, number: int) -> None:
    make_input(tmp_path, 5)
    make_gated(tmp_path)
    text = f"try: {call(tmp_path, drain_timeout=1000)}\nexcept KeyboardInterrupt: print('caught')"
    with script(tmp_path, text) as process:
        wait_until(lambda: len(captions(tmp_path / "out")) == 5, process)
        process.send_signal(signal.SIGINT)
        await_line(process, "Interrupted: finishing 1 item in flight")
        if number == 1:
            (tmp_path / "raw/gate").touch()  # so the item in flight can be finished
        else:
            process.send_signal(signal.SIGINT)
        code, out, _ = ended(process)
    assert (code, "caught" in out) == (0, True)
    assert len(captions(tmp_path / "out")) == (6 if number == 1 else 5)
    assert status(tmp_path / "out")["state"] == "interrupted"


def test_ctrl_c_while_the_run_starts_leaves_only_the_callers_traceback(tmp_path: Path) -> None:
    make_input(tmp_path, 1)
    with script(tmp_path, call(tmp_path)) as process:
        wait_until(lambda: psutil.Process(process.pid).children(), process)
        process.send_signal(signal.SIGINT)
        code, _, err = ended(process)
    assert (code, err.count("Traceback")) == (-signal.SIGINT, 1), err


def test_run_ends_when_its_caller_dies(tmp_path: Path) -> None:
    make_input(tmp_path, 5)
    make_gated(tmp_path)
    with script(tmp_path, call(tmp_path)) as process:
        wait_until(lambda: len(captions(tmp_path / "out")) == 5, process)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 1
    assert psutil.wait_procs(family, timeout=30)[1] == []


def test_interrupting_only_the_run_sets_its_exit_code(tmp_path: Path) -> None:
    make_input(tmp_path, 5)
    make_gated(tmp_path)
    text = f"run = {call(tmp_path)}\nprint('run:', run.exit_code, run.captioned, run.not_tried)"
    with script(tmp_path, text) as process:
        wait_until(lambda: len(captions(tmp_path / "out")) == 5, process)
        os.kill(status(tmp_path / "out")["pid"], signal.SIGTERM)
        await_line(process, "Interrupted: finishing 1 item in flight")
        (tmp_path / "raw/gate").touch()
        code, out, err = ended(process)
    assert (code, out.splitlines()[-1]) == (0, "run: 130 6 0"), err


# --- read ----------------------------------------------------------------------------------------


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[Path]:
    """A folder with a run that has captioned 25 items and waits for its last one."""
    make_input(tmp_path, 25)
    make_gated(tmp_path)
    more = ("--checkpoint-interval=10", *QUICK, "-dp=1")
    process = start(*input_flags(tmp_path), f"--output={tmp_path / 'out'}", *more, command=FAKE)
    try:
        wait_until(lambda: len(captions(tmp_path / "out")) == 25, process)
        yield tmp_path
    finally:
        process.kill()
        process.communicate()


def test_read_during_a_run_returns_what_is_finished(gated: Path) -> None:
    assert wait_until(lambda: vllm_caption.read(gated / "out").num_rows == 25)
    assert (gated / "out/journal.jsonl").stat().st_size > 0
    table = vllm_caption.read(gated / "out")
    assert table.schema == SCHEMA
    found = zip(table["file"].to_pylist(), table["caption"].to_pylist(), strict=True)
    assert dict(found) == captions(gated / "out")


def test_read_returns_the_last_row_of_each_item_in_document_order(tmp_path: Path) -> None:
    files = make_input(tmp_path, 12)
    base = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}", *QUICK)
    (tmp_path / "raw" / files[4]).rename(tmp_path / "away.png")
    run(*base, command=FAKE)
    (tmp_path / "away.png").rename(tmp_path / "raw" / files[4])
    assert vllm_caption.read(tmp_path / "out")["status"].to_pylist().count("failed") == 1
    run(*base, command=FAKE)
    table = vllm_caption.read(str(tmp_path / "out"))
    assert isinstance(table, pa.Table)
    assert table["file"].to_pylist() == files
    assert set(table["status"].to_pylist()) == {"captioned"}


def test_read_includes_shards_that_are_not_merged(tmp_path: Path) -> None:
    files = make_input(tmp_path, 12)
    for index in (1, 2):
        base = (*input_flags(tmp_path), f"--output={tmp_path / 'out'}", *QUICK)
        run(*base, f"--shard={index}/2", command=FAKE)
    assert vllm_caption.read(tmp_path / "out")["file"].to_pylist() == files


def test_read_of_an_empty_folder_has_no_rows_and_of_a_missing_one_is_a_usage_error(
    tmp_path: Path,
) -> None:
    assert vllm_caption.read(tmp_path).num_rows == 0
    with pytest.raises(UsageError, match=r"does not exist .*; name the folder that a run"):
        vllm_caption.read(tmp_path / "nowhere")


def test_read_of_a_damaged_manifest_names_the_part_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").mkdir()
    (tmp_path / "manifest.parquet/part-00000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunStopped, match=r"part-00000000.parquet is damaged .*verify --repair"):
        vllm_caption.read(tmp_path)


# --- the module ----------------------------------------------------------------------------------


def test_import_is_light_and_public_names_are_loaded_on_use() -> None:
    code = (
        "import sys, vllm_caption\n"
        "print([name for name in sys.modules if name.startswith('vllm_caption')])\n"
        "vllm_caption.caption, vllm_caption.UsageError, vllm_caption.RunStopped\n"
        "vllm_caption.RunResult, vllm_caption.read\n"
        "print({'vllm', 'torch', 'pyarrow', 'numpy', 'PIL'} & set(sys.modules))\n"
        "print(vllm_caption.load_prompt('shape-brief').max_words)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['vllm_caption']", "set()", "30"]


def test_every_public_name_exists_and_no_other() -> None:
    for name in vllm_caption.__all__:
        assert getattr(vllm_caption, name).__doc__, name
        assert name in dir(vllm_caption)
    with pytest.raises(AttributeError, match="no attribute 'captoin'"):
        vllm_caption.captoin  # noqa: B018


# --- on the real engine --------------------------------------------------------------------------


@pytest.mark.engine
def test_script_without_a_main_guard_captions_with_the_real_engine(tmp_path: Path) -> None:
    make_input(tmp_path, 4)
    text = f"print('begin')\nrun = {call(tmp_path)}\nprint(run.captioned, run.table['file'][0])"
    with script(tmp_path, text, fake=False) as process:
        code, out, err = ended(process)
    assert (code, out.count("begin")) == (0, 1), err
    assert out.splitlines()[-1] == "4 d0/shape_0.png"


@pytest.mark.engine
def test_notebook_captions_with_the_real_engine_and_shows_the_summary(tmp_path: Path) -> None:
    make_input(tmp_path, 4)
    sources = [
        "import asyncio, vllm_caption\nloop = asyncio.get_running_loop()",
        f"run = {call(tmp_path)}",
        "await asyncio.sleep(0)\nprint(run.captioned, vllm_caption.read(run.output).num_rows)",
    ]
    cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
    (tmp_path / "shapes.ipynb").write_text(json.dumps({"cells": cells}))
    done = subprocess.run(
        [sys.executable, "-m", "support.notebook", str(tmp_path / "shapes.ipynb")],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert "Items: 4, captioned 4 (4 in this run), failed 0" in done.stdout
    assert done.stdout.splitlines()[-1] == "4 4"
