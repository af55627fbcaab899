"""A path on the command line means the same to every part of the job, or is refused in a line."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from support.faulty_disk import Fault, faulty_disk, needs_compiler
from support.job import FAKE, QUICK, Result, captions, input_flags, make_input, run, run_here
from support.locked import locked


def refused(*arguments: str) -> str:
    """The one line with which a command line is refused."""
    result = run_here(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        *[("run", f"--{name}=") for name in ("output", "jsons", "json-detail", "images-root")],
        *[("run", f"--{name}=") for name in ("log-file", "prompt", "model")],
        ("plan", "--output="),
        ("plan", "--json="),
        ("verify", "--output="),
        ("verify", "--json="),
        ("status", "--output="),
        ("report", "--output="),
        ("report", "--html="),
        ("report", ""),
        ("merge", "--output="),
        ("merge", ""),
    ],
)
def test_empty_path_is_refused_and_never_the_working_directory(arguments: tuple[str, ...]) -> None:
    remedy = "a file or folder (the current one is `.`)"
    remedy = {"--prompt=": "a prompt file", "--model=": "a folder"}.get(arguments[-1], remedy)
    assert f"it is empty; name {remedy}" in refused(*arguments)


@pytest.mark.parametrize("flag", ["--output", "--jsons", "--images-root", "--prompt", "--model"])
def test_home_folder_of_an_unknown_user_is_refused(flag: str) -> None:
    line = refused("run", f"{flag}=~nobody-of-this-name/x")
    assert "there is no such home folder; write ./~… for a name that begins with ~" in line


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("name", ["jsons", "json_detail"])
def test_output_that_is_a_folder_of_manifests_is_refused(
    tmp_path: Path, command: str, name: str
) -> None:
    make_input(tmp_path, 1)
    (tmp_path / "link").symlink_to(tmp_path / name)
    for output in (tmp_path / name, tmp_path / "link", tmp_path / "raw" / ".." / name):
        line = refused(command, "--model=demo", *input_flags(tmp_path), f"--output={output}")
        assert f"is also the folder of --{name.replace('_', '-')}; choose another" in line
    assert not list(tmp_path.rglob("status.json"))


def test_merge_into_a_link_to_itself_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("done/shards").mkdir(parents=True)
    result = run_here("merge", "done", "--output=loop")
    assert result.exit_code == 3
    assert result.stderr.endswith("stopped: loop/shards: Too many levels of symbolic links\n")


@pytest.mark.parametrize("name", ["jsons", "json_detail"])
def test_output_that_is_a_default_folder_of_designs_is_refused_unless_the_input_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make_input(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    line = ["--model=demo", "--images-root=raw", f"--output={name}"]
    assert f"is also the folder of --{name.replace('_', '-')}; choose" in refused("run", *line)
    assert not list(tmp_path.rglob("status.json"))
    planned = run_here("plan", "raw", *line)
    assert planned.exit_code == 0, planned.stderr


def at(folder: Path, command: str, *arguments: str) -> Result:
    """A command line in this folder, whose home is the folder `home`."""
    flags = [*arguments]
    if command in ("run", "plan", "verify"):
        flags += input_flags(folder)
    if command in ("run", "plan"):
        flags += QUICK
    environment = {"HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    (folder / "home").mkdir(exist_ok=True)
    if command == "run":
        return run(*flags, command=FAKE, environment=environment, cwd=folder)
    return run(command, *flags, environment=environment, cwd=folder)


@pytest.mark.parametrize(("given", "place"), [("~/out", "home/out"), ("./~/out", "~/out")])
def test_tilde_is_the_home_folder_for_every_command_and_a_plain_name_after_a_dot(
    tmp_path: Path, given: str, place: str
) -> None:
    files = make_input(tmp_path, 3)
    output = f"--output={given}"
    assert at(tmp_path, "run", output).exit_code == 0
    assert set(captions(tmp_path / place)) == set(files)
    rerun = at(tmp_path, "run", output)
    assert (rerun.exit_code, "(0 in this run)" in rerun.stdout) == (0, True)
    assert "nothing is left to caption" in at(tmp_path, "plan", output).stdout
    assert "everything agrees" in at(tmp_path, "verify", output).stdout
    for command in ("status", "report", "merge"):
        assert at(tmp_path, command, output).exit_code == 0, command
    assert (tmp_path / place / "report.html").exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"jsons", "json_detail", "raw", "home", place.partition("/")[0]}
    assert list((tmp_path / "home").iterdir()) == ([tmp_path / place] if "home" in place else [])


def test_captions_may_lie_beside_their_images(tmp_path: Path) -> None:
    files = make_input(tmp_path, 3)
    before = {file: (tmp_path / "raw" / file).read_bytes() for file in files}
    arguments = (*input_flags(tmp_path), f"--output={tmp_path / 'raw'}")
    for made in (3, 0):
        result = run(*arguments, *QUICK, command=FAKE)
        assert result.exit_code == 0
        assert f"captioned 3 ({made} in this run)" in result.stdout
    assert set(captions(tmp_path / "raw")) == set(files)
    assert {file: (tmp_path / "raw" / file).read_bytes() for file in files} == before
    assert "everything agrees" in run_here("verify", *arguments).stdout


@needs_compiler
def test_unknown_free_space_does_not_prevent_a_run(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    arguments = ("plan", *input_flags(tmp_path), f"--output={tmp_path / 'out'}")
    environment = faulty_disk(Fault("statvfs", errno.ENOSYS, part=os.fspath(tmp_path)))
    result = run(*arguments, environment=environment)
    assert result.exit_code == 0
    assert "an unknown amount free; " in result.stdout
    assert "DOES NOT FIT" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["icnos/flat"], "icnos/flat: does not exist (did you mean icons/flat?)"),
        (["icnos/flats"], "icnos/flats: does not exist (this folder holds icons, links, locked, "),
        (["locked/a/b"], "locked/a/b: cannot be found (locked cannot be read)"),
        (["run", "--input=locked/a"], "--input locked/a: cannot be read (Permission denied)"),
        (["run", "--input=locked/a.csv"], "--input locked/a.csv: it cannot be read (Permission "),
        (
            ["run", "--input=locked/a.tar"],
            "--input locked/a.tar: cannot be read (Permission denied)",
        ),
        (["run", "--jsons=locked/a"], "--jsons locked/a: cannot be read (Permission denied)"),
        (["run", "--input=parts"], "--input parts/t.parquet: it cannot be read (Permission"),
        (
            ["run", "--input=links"],
            "--input links/a.tar: cannot be read (Permission denied); name a tar of",
        ),
        (["plan", "--input=walled"], "--input walled: secret: the folder cannot be read: Per"),
        (["plan", "--input=tables"], "--input tables: holds no images, but t.csv; name that"),
        (["plan", "--input=icons", "--json=locked/a.json"], "--json locked/a.json: cannot be wri"),
        (["status", "locked/out"], "error: locked/out: cannot be read (Permission denied)"),
        (["status", "--output=locked/out"], "--output locked/out: cannot be read (Permission den"),
        (["verify", "--output=locked/out"], "--output locked/out: cannot be read (Permission den"),
        (["merge", "locked/a", "--output=o"], "merge locked/a: cannot be read (Permission denied)"),
        (["report", "--output=locked/out"], "--output locked/out: cannot be read (Permission den"),
        (["plan", "--input=icons", "--prompt=nope"], "--prompt nope: no such prompt; available: "),
    ],
)
def test_a_folder_that_this_user_may_not_enter_is_a_mistake_of_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], cause: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("icons/flat", "locked/a", "parts", "links", "tables", "prompts"):
        Path(name).mkdir(parents=True)
    Path("parts/t.parquet").symlink_to("../locked/t.parquet")
    for link in ("links/a.tar", "tables/a.csv", "prompts/mine.md"):
        Path(link).symlink_to("../locked/a")
    Path("tables/t.csv").write_text("file\n")
    Path("walled/secret").mkdir(parents=True)
    with locked(Path("locked"), Path("walled/secret")):
        assert cause in refused(*arguments)


@pytest.mark.parametrize(
    ("word", "cause"),
    [
        ("images", "nor an existing file or folder (the working folder cannot be entered)"),
        ("images/flat", "images/flat: cannot be found (the working folder cannot be entered)"),
        ("--input={root}/icons", "--output out: cannot be used by this user at out"),
    ],
)
def test_a_working_folder_that_this_user_may_not_enter_is_a_mistake_of_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, cause: str
) -> None:
    """As after `su` or `sudo -u` in the home folder of root."""
    (tmp_path / "icons").mkdir()
    (tmp_path / "icons/x.png").write_bytes(b"")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    with locked(tmp_path / "home"):
        assert cause in refused(word.format(root=tmp_path), "--model=demo", "--output=out")


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["{long}/a"], "a: does not exist (this folder holds "),
        (["run", "--input={long}"], "cannot be read (File name too long)"),
        (["plan", "--input=raw", "--json={long}"], "cannot be written (File name too long)"),
        (["status", "--output={long}"], "cannot be read (File name too long)"),
        (["status", "--output=loop"], "--output loop: cannot be read (Too many levels of symbol"),
    ],
)
def test_a_name_that_is_too_long_and_a_link_to_itself_are_mistakes_of_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], cause: str
) -> None:
    make_input(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert cause in refused(*(word.format(long="x" * 300) for word in arguments))
