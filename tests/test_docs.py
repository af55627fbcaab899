"""The commands in README.md and docs/*.md do what is shown.

A fenced block of the kind `console` is run: lines that begin with `$ ` (and go on after a `\\`, or
up to END after `<<'END'`) are commands, the lines below them their output. Numbers may differ; a
line `…` stands for any lines. The blocks of a page run in one shell, in a folder of their own that
has the repository's `prompts` and `vllm_caption`, and on the pages of docs/ the folder of images
that the README makes. Runs of the job get fake engines, and the bundled model where they
name none; all other commands are the real ones.

What cannot run here is marked: `console gpu`, `console cluster`. The flags of the job in it are
checked all the same. No other block may hold a command, so none goes untested.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.job import ENVIRONMENT
from support.ray_cluster import only_ray

from vllm_caption.commands.run import parse_run
from vllm_caption.demo import SAMPLE_DIR
from vllm_caption.flags import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
RUN_HERE = "console"
RUN_ELSEWHERE = ("console gpu", "console cluster", "bash cluster")
"""Blocks that need a GPU or a cluster: here only their flags are checked."""
NO_COMMANDS = ("text", "markdown", "python")
"""Output, prompts, and Python code, which test_use.py and test_api.py run."""
COMMAND = re.compile(r"^(\$|python3?|pip|make|vllm-caption|nohup|srun|sbatch|ray) ", re.MULTILINE)
NUMBER = re.compile(r"\d[\d.,:TZ+-]*")
END = "=== end of command, exit code "
SHIM = """\
#!/bin/sh
if [ "$1 $2" = "-m vllm_caption" ]; then
    case "$3" in
        {commands}) ;;
        *) shift 2; exec "{python}" -m support.fake_job "$@" ;;
    esac
elif [ "$1" = "-" ]; then
    exec "{python}" -m support.fake_script
fi
exec "{python}" "$@"
"""


@dataclass
class Command:
    """One command of a page and the output that the page shows."""

    text: str
    shown: list[str] = field(default_factory=list)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The kind and text of each fenced block."""
    return BLOCK.findall(page.read_text("utf-8"))


def commands(page: Path) -> Iterator[Command]:
    for kind, block in blocks(page):
        command: Command | None = None
        if kind != RUN_HERE:
            continue
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command
                command = Command(line[2:])
            elif command and is_open(command.text):
                command.text += f"\n{line}"
            else:
                assert command, f"{page.name}: output before the first command: {line}"
                command.shown.append(line)
        if command:
            yield command


def is_open(command: str) -> bool:
    """Whether the command continues on the next line."""
    return command.endswith("\\") or ("<<'END'" in command and not command.endswith("\nEND"))


def run_all(page: Path, folder: Path) -> Iterator[tuple[Command, list[str], int]]:
    """Each command on a page, its output, and its exit code."""
    (folder / "bin").mkdir()
    shim = folder / "bin/python"
    others = "|".join(name for name in COMMANDS if name not in ("run", "tune"))
    shim.write_text(SHIM.format(python=sys.executable, commands=others))
    shim.chmod(0o755)
    work = folder / "work"
    work.mkdir()
    for name in ("vllm_caption", "prompts"):
        (work / name).symlink_to(ROOT / name)
    if page.parent == ROOT / "docs":
        shutil.copytree(SAMPLE_DIR / "raw", work / "images")
    listed = list(commands(page))
    script = "".join(f"{{ {c.text}\n}} 2>&1; echo; echo '{END}'$?\n" for c in listed)
    # As in an activated environment, which also has `ray`.
    path = f"{shim.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = ENVIRONMENT | {"PATH": path, "COLUMNS": "100"}
    done = subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=work,
        env=environment,
        timeout=400,
        check=True,
    )
    ran = re.split(rf"\n{END}(\d+)\n", done.stdout)
    for command, said, exit_code in zip(listed, ran[:-1:2], ran[1::2], strict=True):
        # The fake job sets its own model.
        yield command, said.replace("--model=demo ", "").splitlines(), int(exit_code)


def matches(shown: list[str], said: list[str]) -> bool:
    """Whether the output is the one shown, except for numbers and lines hidden by `…`."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "…" else re.escape(masked(line)) + r"\n" for line in shown
    )
    return re.fullmatch(pattern, "".join(f"{masked(line)}\n" for line in said)) is not None


def masked(line: str) -> str:
    return re.sub(r"\s+", " ", NUMBER.sub("0", line)).rstrip()


PAGES_WITH_COMMANDS = [page for page in PAGES if any(commands(page))]
Ran = list[tuple[Command, list[str], int]] | None
"""What the commands of a page said; None where they were not run."""


@pytest.fixture(scope="module")
def ran(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Path, Future[Ran]]]:
    """Run every requested page, four at a time: most of the time is waiting."""

    def run(page: Path, folder: Path) -> Ran:
        if page.name != "machines.md":
            return list(run_all(page, folder))
        with only_ray() as is_alone:  # its `ray stop` ends every Ray on this machine
            return list(run_all(page, folder)) if is_alone else None

    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asked = {item.callspec.params["page"] for item in tests if "ran" in item.fixturenames}
    # The page that needs to be alone first: later, other tests have a Ray cluster.
    pages = sorted(asked, key=lambda page: (page.name != "machines.md", page))
    folders = [tmp_path_factory.mktemp(page.stem) for page in pages]  # not thread-safe
    with ThreadPoolExecutor(4) as threads:
        yield {
            page: threads.submit(run, page, folder)
            for page, folder in zip(pages, folders, strict=True)
        }


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_on_a_page_do_what_it_shows(page: Path, ran: dict[Path, Future[Ran]]) -> None:
    results = ran[page].result()
    if results is None:
        pytest.skip("another Ray runs on this machine")
    for command, said, exit_code in results:
        assert exit_code == 0, f"$ {command.text}\n" + "\n".join(said)
        if command.shown:
            assert matches(command.shown, said), f"$ {command.text}\n" + "\n".join(said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_block_that_is_not_run_has_no_command_or_says_what_it_needs(page: Path) -> None:
    for kind, text in blocks(page):
        assert kind in (RUN_HERE, *RUN_ELSEWHERE, *NO_COMMANDS), f"unknown kind {kind!r}:\n{text}"
        assert kind not in NO_COMMANDS or not COMMAND.search(text), f"mark as console:\n{text}"


def test_run_that_needs_a_gpu_or_a_cluster_has_flags_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    texts = [text for page in PAGES for kind, text in blocks(page) if kind in RUN_ELSEWHERE]
    lines = "".join(texts).replace("\\\n", " ").splitlines()
    runs = [line.partition("python -m vllm_caption ")[2] for line in lines]
    given = [shlex.split(re.sub(r"\$\w+", "1", run)) for run in runs if run]
    assert given
    for arguments in given:
        assert parse_run([*arguments, "--data-parallel-size=1"]).engine.engine_args == ()


def test_output_is_compared_without_its_numbers_and_left_out_lines() -> None:
    said = ["Documents: 15 read", "a", "b", "Time: 3.5 s"]
    assert matches(["Documents: 9 read", "…", "Time: 12 s"], said)
    assert matches(said, said)
    assert not matches(["Documents: 9 read", "Time: 12 s"], said)
    assert not matches(["…", "Time: 12 minutes"], said)


def test_links_in_the_documentation_are_valid() -> None:
    for page in [*PAGES, ROOT / "ARCHITECTURE.md"]:
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text("utf-8")):
            if "://" not in target:
                found = page.parent / target if target else page
                assert found.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in anchors(found), f"{page.name}: {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_start_page_has_a_line_for_every_document() -> None:
    start = ROOT / "docs/README.md"
    linked = set(re.findall(r"^\| \[(.+?)\]", start.read_text("utf-8"), re.MULTILINE))
    others = {page.name for page in PAGES if page.parent == start.parent and page != start}
    assert linked == {"../README.md", *others}
