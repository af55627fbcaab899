"""A file is seen whole or not at all, whoever writes it and however it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from vllm_caption.store.atomic import write_file


def calls(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """Records fsyncs and renames as they happen."""
    seen: list[str] = []

    def sync(descriptor: int) -> None:
        seen.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")

    def replace(source: str, target: str, **options: int) -> None:
        seen.append("rename")
        os.rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    return seen


def test_old_content_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fill(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_file(path, fill)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def fill(file: BinaryIO) -> None:
        file.write(b"half")
        raise ValueError("no more")

    write_file(tmp_path / "a", b"old")
    with pytest.raises(ValueError, match="no more"):
        write_file(tmp_path / "a", fill)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_failed_rename_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "a", b"content")
    assert os.listdir(tmp_path) == ["a"]


def test_file_goes_to_the_opened_folder_even_if_its_path_leads_elsewhere_now(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder").mkdir()
    descriptor = os.open(tmp_path / "folder", os.O_RDONLY)
    (tmp_path / "folder").rename(tmp_path / "moved")
    (tmp_path / "folder").mkdir()
    write_file("a", b"content", dir_fd=descriptor, sync_content=True, sync_name=True)
    os.close(descriptor)
    assert (tmp_path / "moved/a").read_bytes() == b"content"
    assert os.listdir(tmp_path / "folder") == []


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (False, False, ["rename"]),
        (True, False, ["sync .a.tmp", "rename"]),
        (True, True, ["sync .a.tmp", "rename", "sync folder"]),
    ],
)
def test_fsync_happens_only_if_requested_and_in_this_order(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    streamed: bool,
    content: bool,
    name: bool,
    expected: list[str],
) -> None:
    (tmp_path / "folder").mkdir()
    seen = calls(monkeypatch, tmp_path)
    fill = (lambda file: file.write(b"x")) if streamed else b"x"
    write_file(tmp_path / "folder/a", fill, sync_content=content, sync_name=name)
    assert seen == expected
