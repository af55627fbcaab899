"""Manifests of other versions: an extra column is kept, a missing or different one is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.job import FAKE, QUICK, captions, input_flags, make_input, rows, run, run_here

from vllm_caption.config import Shard
from vllm_caption.store.layout import parts, shard_folder, shard_folders


def caption(folder: Path, *flags: str) -> str:
    """A run over ``folder`` into ``folder/out``; returns what it printed."""
    arguments = (*input_flags(folder), f"--output={folder / 'out'}", *QUICK, *flags)
    done = run(*arguments, command=FAKE)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def change_parts(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite the parts of a manifest as another version would have written them."""
    for path in parts(folder / "manifest.parquet"):
        pq.write_table(change(pq.read_table(path)), path)


def test_column_of_a_newer_version_is_kept_through_compaction(tmp_path: Path) -> None:
    old = make_input(tmp_path, 2)
    caption(tmp_path)
    mark = pa.array([1.5, 2.5])
    change_parts(tmp_path / "out", lambda table: table.append_column("aesthetic", mark))
    new = set(make_input(tmp_path, 5)) - set(old)
    caption(tmp_path)
    (part,) = parts(tmp_path / "out/manifest.parquet")
    kept = {row["file"]: row["aesthetic"] for row in pq.read_table(part).to_pylist()}
    assert sorted(kept[file] for file in old) == [1.5, 2.5]
    assert {kept[file] for file in new} == {None}
    assert captions(tmp_path / "out").keys() == rows(tmp_path / "out").keys()


def test_column_that_an_older_version_lacks_is_null(tmp_path: Path) -> None:
    make_input(tmp_path, 2)
    caption(tmp_path)
    change_parts(tmp_path / "out", lambda table: table.drop_columns(["twin_key", "queue_s"]))
    make_input(tmp_path, 4)
    caption(tmp_path)
    assert len(rows(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop_columns(["status"]), "it has no column status"),
        (
            lambda table: table.set_column(
                table.schema.get_field_index("flags"), "flags", pa.array([1, 2])
            ),
            "its column flags is int64, not list<",
        ),
        (
            lambda table: table.set_column(
                table.schema.get_field_index("attempts"), "attempts", pa.array(["a", "b"])
            ),
            "its column attempts is string, not int32",
        ),
    ],
)
def test_unreadable_column_is_named_with_its_part(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pa.Table], pa.Table],
    said: str,
) -> None:
    make_input(tmp_path, 2)
    caption(tmp_path)
    change_parts(tmp_path / "out", change)
    monkeypatch.chdir(tmp_path)  # a long path would push the reason off the line
    result = run_here("verify", *input_flags(tmp_path), "--output=out")
    (part,) = parts(tmp_path / "out/manifest.parquet")
    assert f"{part.name}" in result.stdout + result.stderr
    assert said in result.stdout + result.stderr


def test_run_over_a_part_of_another_version_names_it_and_its_column(tmp_path: Path) -> None:
    make_input(tmp_path, 2)
    caption(tmp_path)
    change_parts(tmp_path / "out", lambda table: table.drop_columns(["status"]))
    result = run(*input_flags(tmp_path), f"--output={tmp_path / 'out'}", *QUICK, command=FAKE)
    assert result.exit_code == 3
    said = "part-00000001.parquet is of another version (it has no column status); use the version"
    assert said in result.stderr


def test_newer_rows_of_a_shard_count_whatever_the_mtimes(tmp_path: Path) -> None:
    make_input(tmp_path, 40)
    caption(tmp_path, "--shard=2/2")
    caption(tmp_path, "--shard=1/2")
    older, newer = (shard_folder(tmp_path / "out", Shard(n, 2)) for n in (2, 1))
    for folder, seconds in ((older, 2_000_000_000), (newer, 1)):
        for part in parts(folder / "manifest.parquet"):
            os.utime(part, (seconds, seconds))
    assert list(shard_folders(tmp_path / "out").values()) == [older, newer]
