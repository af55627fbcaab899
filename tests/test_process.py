"""Closed streams, odd locales and temporary folders, signals: the result is the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.job import (
    ENVIRONMENT,
    FAKE,
    QUICK,
    captions,
    draw_shape,
    input_flags,
    make_gated,
    make_input,
    rows,
    run,
    start,
    status,
    wait_until,
    write_document,
)
from support.locked import locked

from vllm_caption import flags as flags_module
from vllm_caption import process
from vllm_caption.errors import UsageError

REAL = ("-m", "vllm_caption")
STREAMS = ("<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full")


def in_shell(
    redirections: str, command: tuple[str, ...], *arguments: str, **environment: str
) -> int:
    """The exit code of a command whose streams a shell has closed or redirected."""
    script = f'exec "$@" {redirections}'
    line = ["sh", "-c", script, "sh", sys.executable, *command, *arguments]
    return subprocess.run(line, env=ENVIRONMENT | environment, timeout=120).returncode


def flags(folder: Path, *more: str) -> list[str]:
    """The flags of a run over ``folder`` into ``folder/out``."""
    return [*input_flags(folder), f"--output={folder / 'out'}", *more]


@pytest.mark.parametrize("streams", STREAMS)
def test_run_with_closed_or_full_streams_has_the_same_result(tmp_path: Path, streams: str) -> None:
    files = make_input(tmp_path, 12)
    assert in_shell(streams, FAKE, *flags(tmp_path, "-dp=2")) == 0
    assert captions(tmp_path / "out") == {file: f"caption of {file}" for file in files}
    assert rows(tmp_path / "out").keys() == set(files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input, a complete output, and a damaged copy of it."""
    folder = tmp_path_factory.mktemp("commands")
    make_input(folder, 4)
    assert run(*flags(folder), *QUICK, command=FAKE).exit_code == 0
    subprocess.run(["cp", "-r", folder / "out", folder / "damaged"], check=True)
    next((folder / "damaged").rglob("*.txt")).unlink()
    (folder / "damaged/status.json").write_bytes(
        (folder / "out/status.json").read_bytes().replace(b'"finished"', b'"running"')
    )
    (folder / "broken/manifest.parquet").mkdir(parents=True)
    (folder / "broken/manifest.parquet/part-00000001.parquet").write_bytes(b"PAR1 and no more")
    sharded = [*input_flags(folder), f"--output={folder / 'sharded'}", "--shard=1/2"]
    assert run(*sharded, *QUICK, command=FAKE).exit_code == 0
    (folder / "refused").mkdir()
    make_input(folder / "refused", 1)
    (folder / "refused/raw/d0/shape_0.png").write_text("no image")
    return folder


COMMANDS = [
    ("run --help", 0),
    ("run --version", 0),
    ("run --images-root={}/nowhere", 2),
    ("run --redo=nonsense", 2),
    ("plan --jsons={0}/jsons --json-detail={0}/json_detail --images-root={0}/raw", 0),
    ("plan --images-root={}/nowhere", 2),
    (
        "plan --jsons={0}/jsons --json-detail={0}/json_detail --images-root={0}/raw"
        " --output={0}/broken",
        3,
    ),
    ("doctor --model={}/nowhere", 2),
    ("status --output={}/out", 0),
    ("status --output={}/out --json", 0),
    ("status --output={}/damaged", 1),
    ("status --output={}/nowhere", 2),
    (
        "verify --jsons={0}/jsons --json-detail={0}/json_detail --images-root={0}/raw"
        " --output={0}/out",
        0,
    ),
    (
        "verify --jsons={0}/jsons --json-detail={0}/json_detail --images-root={0}/raw"
        " --output={0}/damaged",
        1,
    ),
    ("verify --output={}/nowhere", 2),
    ("report --output={0}/out --html={0}/page.html", 0),
    ("report {}/nowhere", 2),
    ("report {}/broken", 3),
    ("merge --output={}/out", 0),
    ("merge --output={}/sharded", 1),
    ("merge --output={}/nowhere", 2),
    ("merge --output={0}/merged {0}/broken", 3),
    (
        "export {0}/records.jsonl --jsons={0}/jsons --json-detail={0}/json_detail"
        " --images-root={0}/raw --output={0}/out",
        0,
    ),
    ("export {}/records.odd", 2),
    (
        "export {0}/records.jsonl --jsons={0}/jsons --json-detail={0}/json_detail"
        " --images-root={0}/raw --output={0}/broken",
        3,
    ),
    ("tune --help", 0),
    ("tune --redo=nonsense", 2),
    ("demo --help", 0),
    ("demo --redo=nonsense", 2),
    ("captionize", 2),
]


def test_every_command_is_tried_with_closed_streams() -> None:
    assert {line.split()[0] for line, _ in COMMANDS} - {"captionize"} == set(flags_module.COMMANDS)


@pytest.mark.parametrize(("line", "exit_code"), COMMANDS)
def test_exit_code_of_every_command_is_its_own_with_closed_streams(
    folder: Path, line: str, exit_code: int
) -> None:
    assert in_shell("<&- >&- 2>&-", REAL, *line.format(folder).split()) == exit_code


def test_exit_code_shows_failed_items_with_closed_streams(
    folder: Path,
) -> None:
    assert in_shell("<&- >&- 2>&-", FAKE, *flags(folder / "refused")) == 1


def test_exit_code_shows_a_stopped_run_with_closed_streams(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, 2)
    (tmp_path / "out/logs/engine-0.log").mkdir(parents=True)
    code = in_shell("<&- >&- 2>&-", FAKE, *flags(tmp_path, "-dp=1", "--max-engine-restarts=0"))
    assert code == 3


def test_exit_code_shows_an_interrupted_run_with_closed_streams(
    tmp_path: Path,
) -> None:
    make_input(tmp_path, 10)
    make_gated(tmp_path)
    line = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, *FAKE]
    job = subprocess.Popen([*line, *flags(tmp_path, "-dp=1")], env=ENVIRONMENT)
    wait_until(lambda: status(tmp_path / "out").get("captioned", 0) >= 10)
    job.send_signal(signal.SIGTERM)
    (tmp_path / "raw/gate").touch()
    assert job.wait(60) == 130


def test_exit_code_shows_an_interrupted_status_watch(folder: Path) -> None:
    line = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, *REAL]
    watching = [*line, "status", "--watch", f"--output={folder / 'running'}"]
    (folder / "running").mkdir()
    shown = folder / "running/status.json"
    os.mkfifo(shown)
    with (
        subprocess.Popen(watching, env=ENVIRONMENT) as job,
        shown.open("wb"),  # opening it for reading blocks until there is content
    ):
        job.send_signal(signal.SIGINT)
        assert job.wait(60) == 130


# --- signals ------------------------------------------------------------------------------------

INTERRUPT_DURING_IMPORT = """
import builtins, os, runpy, signal, sys
load = builtins.__import__

def interrupt(name, *rest, **named):
    if name == "vllm_caption.flags":
        os.kill(os.getpid(), signal.SIGINT)
    return load(name, *rest, **named)

builtins.__import__ = interrupt
runpy.run_module("vllm_caption.__main__", run_name="__main__")
"""


def test_ctrl_c_while_modules_are_loaded_ends_the_process_without_a_traceback() -> None:
    line = [sys.executable, "-c", INTERRUPT_DURING_IMPORT, "status"]
    ended = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_ctrl_c_after_a_command_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "leave", sys.exit)
    with pytest.raises(SystemExit) as left:
        process.print_bug(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert left.value.code == 130


def test_closing_the_terminal_ends_neither_the_run_nor_its_log(tmp_path: Path) -> None:
    files = make_input(tmp_path, 30) + make_gated(tmp_path)
    log = tmp_path / "run.log"
    process = start(*flags(tmp_path, "-dp=2", f"--log-file={log}"), command=FAKE)
    wait_until(lambda: status(tmp_path / "out").get("captioned", 0) >= 30, process)
    os.killpg(process.pid, signal.SIGHUP)  # as a terminal does: to the whole group
    (tmp_path / "raw/gate").touch()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "resource_tracker" not in stderr
    assert captions(tmp_path / "out").keys() == set(files)
    assert "Items: 31, captioned 31" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_warning_signal_of_a_batch_system_drains_however_often_it_comes(
    tmp_path: Path, number: signal.Signals
) -> None:
    make_input(tmp_path, 30)
    gated = make_gated(tmp_path)
    process = start(*flags(tmp_path, "-dp=2"), command=FAKE)
    wait_until(lambda: status(tmp_path / "out").get("captioned", 0) >= 30, process)
    os.killpg(process.pid, number)
    if number == signal.SIGUSR1:
        os.killpg(process.pid, number)
    wait_for_line(process, "Interrupted: finishing")
    (tmp_path / "raw/gate").touch()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert set(gated) < captions(tmp_path / "out").keys()


def wait_for_line(process: subprocess.Popen[str], words: str) -> None:
    """Read the output of a run up to a line with these words."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError("it ended without them")


def test_time_during_which_the_whole_job_stood_still_does_not_count(tmp_path: Path) -> None:
    make_input(tmp_path, 4)
    (gated,) = make_gated(tmp_path)
    job = start(*flags(tmp_path, "-dp=1", "--stall-timeout=3"), command=FAKE)

    def written_at() -> int:
        return (tmp_path / "out/status.json").stat().st_mtime_ns

    wait_until(lambda: status(tmp_path / "out").get("captioned", 0) >= 4, job)
    driver = psutil.Process(job.pid)
    others = driver.children(recursive=True)
    for stopped in (driver, *others):
        stopped.suspend()
    time.sleep(5)
    before = written_at()
    driver.resume()
    # It checks its engine, and then writes its status, before that can report anything.
    wait_until(lambda: written_at() != before, job)
    for stopped in others:
        stopped.resume()
    (tmp_path / "raw/gate").touch()
    _, stderr = job.communicate(timeout=60)
    assert job.returncode == 0, stderr
    assert "made no progress" not in stderr
    assert gated in captions(tmp_path / "out")


# --- locales --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gbk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Chinese terminal."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "zh_CN", "-f", "GBK", str(folder / "zh_CN.GBK")]
    if not shutil.which("localedef") or subprocess.run(command, check=False).returncode:
        pytest.skip("this machine cannot make a GBK locale")
    return {"LOCPATH": str(folder), "LC_ALL": "zh_CN.GBK", "PYTHONUTF8": ""}


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def run_in(folder: Path, environment: dict[str, str]) -> None:
    """A run and a verification over names that neither ASCII nor GBK can write."""
    (folder / "输入").mkdir()
    files = make_input(folder / "输入", 2)
    special = ["d0/星形_é_🌟.png", "d0/ひ.png"]
    for number, file in enumerate(special):
        draw_shape(100 + number).save(folder / "输入/raw" / file)
    write_document(folder / "输入", "设计", special, ["SvgElement"] * 2, title="夏季 🌞")
    for command in (FAKE, (*REAL, "verify")):
        done = run(*flags(folder / "输入"), command=command, environment=environment)
        assert done.exit_code == 0, done.stderr
    made = captions(folder / "输入/out")
    assert made == {file: f"caption of {file}" for file in (*files, *special)}


def test_names_and_captions_are_utf8_in_the_c_locale(tmp_path: Path) -> None:
    run_in(tmp_path, ASCII)


def test_names_and_captions_are_utf8_in_a_gbk_locale(tmp_path: Path, gbk: dict[str, str]) -> None:
    run_in(tmp_path, gbk)


def test_python_that_ignores_its_environment_is_refused_with_the_variable_to_set(
    gbk: dict[str, str],
) -> None:
    done = run("plan", command=("-E", *REAL), environment=gbk | {"PYTHONUTF8": "1"})
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("vllm-caption: error: LC_ALL zh_CN.GBK: file names must be UTF-8")


# --- temporary folders ----------------------------------------------------------------------------


def test_temporary_folder_with_a_long_name_works_and_nothing_is_left(tmp_path: Path) -> None:
    files = make_input(tmp_path, 4) + make_gated(tmp_path)
    long = tmp_path / ("t" * 120)
    long.mkdir()
    job = start(*flags(tmp_path, "-dp=1"), command=FAKE, environment={"TMPDIR": str(long)})
    wait_until(lambda: list(Path("/tmp").glob(f"vllm-caption-{job.pid}-*")), job)
    (tmp_path / "raw/gate").touch()
    _, stderr = job.communicate(timeout=60)
    assert job.returncode == 0, stderr
    assert captions(tmp_path / "out").keys() == set(files)
    assert not list(long.iterdir())
    assert not list(Path("/tmp").glob(f"vllm-caption-{job.pid}-*"))


def test_user_without_a_name_has_a_folder_for_compiled_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: {}["nobody"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    process.keep_temporary_files_in(str(tmp_path / "vllm-caption-1"))
    kernels = tmp_path / f"torchinductor_uid_{os.getuid()}"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(kernels)
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(tmp_path / "vllm-caption-1")


def test_unwritable_temporary_folder_is_skipped(tmp_path: Path) -> None:
    make_input(tmp_path, 4)
    done = run(*flags(tmp_path, "-dp=1"), command=FAKE, environment={"TMPDIR": "/proc/no/such"})
    assert done.exit_code == 0, done.stderr


def test_without_any_temporary_folder_the_error_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "_SHORT_FOLDERS", ("/proc",))
    monkeypatch.setattr(process, "_socket_folders", [])
    monkeypatch.setattr(process.tempfile, "gettempdir", lambda: "/proc/no/such")
    with pytest.raises(UsageError, match="TMPDIR /proc/no/such: no folder for sockets can be"):
        process.socket_folder()


def test_engine_restarts_after_the_temporary_folder_was_cleaned(tmp_path: Path) -> None:
    files = make_input(tmp_path, 10) + make_gated(tmp_path)
    temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    environment = {"TMPDIR": str(temporary)}
    job = start(*flags(tmp_path, "-dp=1"), command=FAKE, environment=environment)
    wait_until(lambda: status(tmp_path / "out").get("captioned", 0) >= 10, job)
    assert list(temporary.iterdir())
    shutil.rmtree(temporary)
    engine = status(tmp_path / "out")["engines"][0]
    os.kill(engine["pid"], signal.SIGKILL)
    wait_until(
        lambda: status(tmp_path / "out")["engines"][0]["pid"] not in (None, engine["pid"]), job
    )
    (tmp_path / "raw/gate").touch()
    _, stderr = job.communicate(timeout=60)
    assert job.returncode == 0, stderr
    assert captions(tmp_path / "out").keys() == set(files)
    assert not temporary.exists() or not list(temporary.iterdir())


def killed_owner(base: Path) -> Path:
    """The folder of a killed process."""
    code = "from vllm_caption.process import socket_folder; print(socket_folder(), flush=True)"
    line = [sys.executable, "-c", f"{code}; input()"]
    environment = ENVIRONMENT | {"TMPDIR": str(base)}
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        process.remove_abandoned(base)
        assert folder.is_dir()  # it is alive
        owner.kill()
    assert folder.parent == base
    assert folder.is_dir()
    return folder


@pytest.fixture
def base() -> Iterator[Path]:
    """A place for temporary files with a short name."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_next_process_removes_the_folder_of_a_killed_one_but_not_of_a_living_one(
    base: Path,
) -> None:
    killed = killed_owner(base)
    (killed / "home").mkdir()
    next_one = killed_owner(base)
    assert list(base.iterdir()) == [next_one]


def test_temporary_files_of_engines_disappear_after_their_job_but_not_before(
    base: Path, tmp_path: Path
) -> None:
    make_input(tmp_path, 4)
    make_gated(tmp_path)
    code = (
        "import sys\nfrom support.fake_engines import start_with_temporary_files\n"
        "from support.fake_job import fake_main\n"
        "if __name__ == '__main__':\n"
        "    fake_main(*sys.argv[1:], start_engine=start_with_temporary_files)"
    )
    arguments = flags(tmp_path, "-dp=1")
    job = start(*arguments, command=("-c", code), environment={"TMPDIR": str(base)})
    wait_until(lambda: status(tmp_path / "out").get("captioned", 0) >= 4, job)
    process.remove_abandoned(base)
    (folder,) = base.iterdir()
    assert folder.name.startswith(f"vllm-caption-{job.pid}-")
    assert {path.name.partition("-")[0].partition(".")[0] for path in folder.iterdir()} >= {
        *("left", "tmp")
    }
    job.kill()
    job.communicate(timeout=60)

    def is_gone() -> bool:  # once its engines have ended, too
        process.remove_abandoned(base)
        return not list(base.iterdir())

    wait_until(is_gone)


@pytest.mark.parametrize("content", [None, b"", b"another boot"])
def test_folder_with_an_unknown_owner_is_removed_after_ten_days(
    base: Path, content: bytes | None
) -> None:
    old, young = base / "vllm-caption-1-old", base / "vllm-caption-1-young"
    for folder, days in ((old, 11), (young, 9)):
        folder.mkdir()
        if content is not None:
            (folder / "owned").write_bytes(content)
        os.utime(folder, (time.time() - days * 86400,) * 2)
    process.remove_abandoned(base)
    assert list(base.iterdir()) == [young]


def test_folder_that_only_looks_like_a_temporary_one_stays(base: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    (base / "vllm-caption-1-link").symlink_to(tmp_path)
    (base / "vllm-caption-1-file").touch()
    fifo = base / "vllm-caption-1-fifo"
    fifo.mkdir()
    os.mkfifo(fifo / "owned")
    for path in base.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    process.remove_abandoned(base)
    assert (tmp_path / "kept").exists()
    assert (base / "vllm-caption-1-link").is_symlink()


# --- HOME -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["/proc/no/such", ""])
def test_missing_home_is_replaced_for_the_caches_of_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setattr(process, "_socket_folders", [tmp_path])
    monkeypatch.setenv("HOME", home)
    process.ensure_home()
    assert Path(os.environ["HOME"]) == tmp_path / "home"
    assert (tmp_path / "home").is_dir()


def test_home_that_this_user_may_not_reach_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root/work").mkdir(parents=True)
    monkeypatch.setattr(process, "_socket_folders", [tmp_path])
    monkeypatch.setenv("HOME", str(tmp_path / "root/work"))
    with locked(tmp_path / "root"):
        process.ensure_home()
    assert Path(os.environ["HOME"]) == tmp_path / "home"


def test_existing_home_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    process.ensure_home()
    assert os.environ["HOME"] == str(tmp_path)


@pytest.mark.engine
def test_real_engines_run_without_a_home_and_with_a_long_temporary_folder(tmp_path: Path) -> None:
    files = make_input(tmp_path, 2)
    long = tmp_path / ("t" * 120)
    long.mkdir()
    environment = {"HOME": "/proc/no/such", "TMPDIR": str(long)}
    done = run("--model=demo", *flags(tmp_path, "-dp=1", "--no-checks"), environment=environment)
    assert done.exit_code == 0, done.stderr
    assert captions(tmp_path / "out").keys() == set(files)
    # torch keeps its cache there, under the user's name, for the next run.
    left = [path.name for path in long.iterdir() if not path.name.startswith("torchinductor_")]
    assert not left
