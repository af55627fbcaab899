"""The journal: rows that no part of the manifest holds yet, one JSON object per line.

Invariant: a row is appended completely or not at all, and then survives the death of this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from vllm_caption.store.disk.attempts import Disk
from vllm_caption.store.layout import JOURNAL
from vllm_caption.store.rows import Row, fits_table


class JournalRows(NamedTuple):
    """The content of a journal. ``torn``: how many lines are not rows, because a kill cut them
    short, they are still being written, or they are damaged; a rerun finds the .txt without them.
    """

    rows: list[Row]
    torn: int


def read_journal(folder: Path, name: str = JOURNAL) -> JournalRows:
    """The journal of an output folder or a shard; empty if there is none."""
    decoder = msgspec.json.Decoder(Row)
    rows, torn = [], 0
    try:
        lines = (folder / name).read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        lines = []
    for line in filter(None, lines):
        try:
            rows.append(decoder.decode(line))
        except (ValueError, RecursionError):  # msgspec's DecodeError, or bytes that are not UTF-8
            torn += 1
    if rows and not fits_table(rows):
        whole = [row for row in rows if fits_table([row])]
        rows, torn = whole, torn + len(rows) - len(whole)
    return JournalRows(rows, torn)


class Journal:
    """The journal of one folder, opened for appending."""

    def __init__(self, folder: Path, disk: Disk, name: str = JOURNAL) -> None:
        self._disk = disk
        self._path = folder / name
        self._descriptor = self._open()
        self._encoder = msgspec.json.Encoder()
        self._torn = True
        """Whether the file may end in an incomplete line, from a killed run or from a failed write
        that could not be undone."""

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return self._disk.attempt("file", lambda: os.open(self._path, flags, 0o666))

    def was_removed(self) -> bool:
        """Whether somebody has removed the file, and with it the rows on disk."""
        try:
            ours = os.fstat(self._descriptor)
            if ours.st_nlink:
                return False
            there = self._path.stat()
        except FileNotFoundError:
            return True
        except OSError:  # the next write reports it
            return False
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def open_again(self) -> None:
        """Begin a new file."""
        self.close()
        self._descriptor = self._open()

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows: all of them, or none."""
        lines = b"".join(self._encoder.encode(row) + b"\n" for row in rows)
        self._disk.attempt("file", lambda: self._append(lines))

    def _append(self, lines: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        if self._torn and size:
            lines = b"\n" + lines
        try:
            self._torn = True
            while lines:  # a full disk may accept part of a write without an error
                lines = lines[os.write(self._descriptor, lines) :]
            self._torn = False
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise

    def sync_file_system(self) -> None:
        """Flush everything written to this file system so far, captions included: once per part,
        since an fsync per caption would halve the speed."""
        without = "The file system of the output has no syncfs: a power loss may cost captions"
        self._disk.attempt(
            "sync", lambda: self._disk.try_once("sync", self._sync_file_system, without)
        )

    def _sync_file_system(self) -> None:
        try:
            failed = ctypes.CDLL(None, use_errno=True).syncfs(self._descriptor) != 0
        except AttributeError:  # a C library without it
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
        if failed:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "syncfs")

    def clear(self) -> None:
        """Remove every row."""
        self._disk.attempt("file", lambda: os.ftruncate(self._descriptor, 0))

    def close(self) -> None:
        """Close the file; no more rows can be appended."""
        with contextlib.suppress(OSError):  # a network drive's, about rows that are in a part
            os.close(self._descriptor)
