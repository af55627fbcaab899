"""Hostile `--input`: of every collection each row is captioned, failed with a kind or refused with
one sentence, exactly once; plan, run, rerun, verify and export agree on it."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.fake_engines import start_fake
from support.hostile_collections import Case, make_collections
from support.inline_executor import InlineExecutor
from support.job import Result, rows, run_here

from vllm_caption import job
from vllm_caption.engines import hardware
from vllm_caption.engines.executors import local
from vllm_caption.messages import FlagsChecked

ENGINES = ("--model=demo", "-dp=1", "--max-num-seqs=8", "--quiet")


class _Executor(InlineExecutor):
    """Fake engines in this process: a run takes a tenth of a second."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    async def check_flags(self, *_: Any) -> FlagsChecked:
        return FlagsChecked(b"", bounds_pixels=True)


@pytest.fixture
def fake_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LocalExecutor", _Executor)
    monkeypatch.setattr(job, "start_vllm", start_fake)
    monkeypatch.setattr(hardware, "runs_on_cpu", lambda: True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """pytest cannot remove folders that are nested a thousand deep."""
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path], check=True)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("fake_engines")
def test_every_row_of_hostile_collections_is_accounted_for_exactly_once(folder: Path) -> None:
    num_defects, problems = 0, []
    for number, case in enumerate(make_collections(folder / "in")):
        num_defects += case.defects
        output = folder / "out" / str(number)
        try:
            _check(case, output)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            problems.append(f"{case.name} ({case.path}): {error}")
    assert problems == [], "\n".join(problems)
    assert num_defects >= 300


def _check(case: Case, output: Path) -> None:
    flags = (f"--input={case.path}", f"--output={output}", *case.flags)
    plan_path = output.with_suffix(".plan")
    plan_path.parent.mkdir(parents=True, exist_ok=True)
    planned = _command("plan", *flags, "--quiet", f"--json={plan_path}")
    made = _command(*flags, *ENGINES)
    assert made.exit_code == case.exit_code, f"exit {made.exit_code}: {made.stderr}"
    if case.refused:
        assert case.refused in made.stderr, made.stderr
        assert (planned.exit_code, planned.stderr) == (2, made.stderr.splitlines()[-1] + "\n")
        return
    assert planned.exit_code == 0, planned.stderr
    found = rows(output)
    results = _results(found)
    assert results == {"captioned": case.captioned, **Counter(case.failed)}, results
    assert all(row["error"] for row in found.values() if row["status"] == "failed")
    plan = json.loads(plan_path.read_bytes())
    assert plan["items"]["total"] == len(found), plan["items"]
    assert plan["documents"]["skipped"] == len(case.skipped)
    again = _command(*flags, *ENGINES)
    assert again.exit_code == case.exit_code
    assert "(0 in this run)" in again.stdout or not case.captioned, again.stdout
    assert _without_run(rows(output)) == _without_run(found)
    _check_verify(case, output, flags)
    _check_export(case, output, flags)


def _check_verify(case: Case, output: Path, flags: tuple[str, ...]) -> None:
    path = output.with_suffix(".verify")
    _command("verify", *_of_input(flags), "--quiet", f"--json={path}")
    verdict = json.loads(path.read_bytes())
    kinds = {found["kind"]: found["count"] for found in verdict["divergences"]}
    assert kinds == ({"failed": len(case.failed)} if case.failed else {}), kinds
    assert verdict["items_agreeing"] == case.captioned
    assert sum(found["count"] for found in verdict["documents_skipped"]) == len(case.skipped)


def _check_export(case: Case, output: Path, flags: tuple[str, ...]) -> None:
    for suffix, read in READERS.items():
        path = output.with_suffix(suffix)
        made = _command("export", str(path), *_of_input(flags))
        if suffix == ".parquet" and made.exit_code == 2:
            assert "export to .jsonl" in made.stderr
            continue
        assert made.exit_code == 0, f"{suffix}: {made.stderr}"
        records = read(path)
        assert len(records) == case.records, f"{suffix}: {len(records)} records"
        assert f"{case.records:,} record" in made.stdout
        if suffix == ".jsonl":
            captions = sum(record["caption"] is not None for record in records)
            assert captions == case.captioned + case.again
            kinds = Counter(record["error_kind"] for record in records if record["error_kind"])
            assert kinds == Counter((*case.failed, *case.skipped)), kinds


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _csv(path: Path) -> list[dict[str, str]]:
    import csv

    csv.field_size_limit(2**31)
    with path.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _parquet(path: Path) -> list[dict[str, Any]]:
    return [{}] * pq.read_metadata(path).num_rows


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _lines,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _command(*arguments: str) -> Result:
    """Run one command, whose errors must be sentences."""
    result = run_here(*arguments)
    assert "Traceback" not in result.stderr, result.stderr
    assert "internal error" not in result.stderr + result.stdout, result.stderr
    assert result.exit_code in (0, 1, 2), result.stderr
    return result


def _of_input(flags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(flag for flag in flags if not flag.startswith("--prompt="))


def _results(found: dict[str, dict[str, Any]]) -> dict[str, int]:
    results = Counter(row["error_kind"] or "captioned" for row in found.values())
    return {"captioned": 0, **results}


def _without_run(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows without the columns that differ from run to run."""
    kept = (
        "file",
        "document",
        "element_index",
        "item_id",
        "status",
        "caption",
        "error_kind",
        "error",
    )
    return {file: {name: row[name] for name in kept} for file, row in found.items()}
