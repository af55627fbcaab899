"""Files and folders of an output that belong to another user, or that nobody may use."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from support.job import FAKE, make_input, run, run_here
from support.locked import locked

from vllm_caption.store.layout import (
    DOCUMENTS,
    JOURNAL,
    LOCK,
    LOGS,
    MANIFEST,
    NAMING,
    RECIPES,
    STATUS,
    part_name,
)


def captioned(tmp_path: Path, **options: Any) -> list[str]:
    """The flags of a run that has finished."""
    make_input(tmp_path, 2)
    flags = [f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}"]
    assert run(*flags, command=FAKE, **options).exit_code == 0
    return flags


@pytest.mark.parametrize(
    "name",
    [
        *("", MANIFEST, LOGS, LOCK, JOURNAL, NAMING, RECIPES),
        f"{MANIFEST}/{part_name(1)}",
    ],
)
def test_run_is_refused_before_its_start_and_doctor_and_plan_foresee_it(
    tmp_path: Path, name: str
) -> None:
    flags = captioned(tmp_path)
    path = tmp_path / "out" / name
    with locked(path):
        result = run_here(*flags, "--model=demo")
        doctor = run_here("doctor", *flags, "--model=demo")
        plan = run_here("plan", *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert os.fspath(path) in result.stderr
    assert "(Permission denied); choose another folder or fix its permissions" in result.stderr
    assert doctor.exit_code == 2
    assert f"PROBLEM  --output {tmp_path / 'out'}: " in doctor.stdout
    is_foreseen = "CANNOT BE WRITTEN" in plan.stdout or "Permission denied" in plan.stderr
    assert is_foreseen and "stopped" not in plan.stderr


@pytest.mark.parametrize("name", [MANIFEST, JOURNAL, f"{MANIFEST}/{part_name(1)}"])
@pytest.mark.parametrize("command", ["plan", "verify", "report", "export"])
def test_rows_that_this_user_may_not_read_are_a_mistake_that_names_them(
    tmp_path: Path, command: str, name: str
) -> None:
    flags = captioned(tmp_path)
    words = [command, *([os.fspath(tmp_path / "x.jsonl")] if command == "export" else []), flags[1]]
    if command != "report":
        words.append(flags[0])
    with locked(tmp_path / "out" / name):
        result = run_here(*words)
    assert result.exit_code == 2
    assert f"{tmp_path / 'out' / name}" in result.stderr
    assert "Permission denied" in result.stderr
    assert "damaged" not in result.stderr


@pytest.mark.parametrize(("command", "name"), [("report", DOCUMENTS), ("status", STATUS)])
def test_file_that_this_user_may_not_read_is_neither_damaged_nor_missing(
    tmp_path: Path, command: str, name: str
) -> None:
    flags = captioned(tmp_path)
    with locked(tmp_path / "out" / name):
        result = run_here(command, flags[1])
    assert result.exit_code == 2
    assert name in result.stderr
    assert "permission" in result.stderr.lower()
    assert "damaged" not in result.stderr
    assert "no run" not in result.stderr


def test_whole_output_is_open_to_the_group_if_the_umask_says_so(tmp_path: Path) -> None:
    captioned(tmp_path, umask=0o002)
    found = list((tmp_path / "out").rglob("*"))
    assert any(path.suffix == ".log" for path in found)
    assert [path for path in found if not path.stat().st_mode & stat.S_IWGRP] == []
