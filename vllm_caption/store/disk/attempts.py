"""Operations on the output's disk, retried as the verdict on their errors allows.

Invariants: retries of an error that may pass take at most 21 s per operation, in the thread that
writes, so the order of writes is kept and nothing is written twice; each missing feature, and each
error that was retried, is noted once, whichever thread met it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from vllm_caption.store.disk.verdicts import DENIALS, OUTAGES, Operation, judge

T = TypeVar("T")
WAITS_S: Final = (1.0, 4.0, 16.0)
"""The wait before each retry, as for reading images."""


class Disk:
    """The disk of one output folder."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._notes: deque[str] = deque()
        self._noted: set[str] = set()
        self._noting = threading.Lock()
        self._lasting: set[int] = set()
        """Denials that outlasted all retries: if a folder of a million items is not writable, only
        the first item waits."""

    def attempt(self, operation: Operation, action: Callable[[], T]) -> T:
        """Call ``action``, retrying errors that may pass, and return its result. It must be safe to
        call again from the start.

        Raises OSError if the item or the disk is at fault, or the error did not pass.
        """
        for wait_s in WAITS_S:
            try:
                return action()
            except OSError as error:
                if judge(error.errno, operation) != "passing" or error.errno in self._lasting:
                    raise
                where = f" at {os.fsdecode(error.filename)}" if error.filename else ""
                text = f"The disk of the output failed for a moment ({error.strerror}{where})"
                self.note(
                    f"{text}; the operation is retried after 1, 4 and 16 s.", str(error.errno)
                )
                self._sleep(wait_s)
        try:
            return action()
        except OSError as error:
            if error.errno in DENIALS:
                self._lasting.add(error.errno)
            raise

    def try_once(self, operation: Operation, action: Callable[[], object], without: str) -> bool:
        """Call ``action``, with one retry after an outage; returns whether it succeeded. If the run
        can continue without it, ``without`` is noted: what failed, or the consequence. Raises
        OSError if it cannot."""
        try:
            try:
                action()
            except OSError as error:
                # Never retry a sync: after a failed one, the next may succeed without the content.
                if error.errno not in OUTAGES or operation == "sync":
                    raise
                action()
        except OSError as error:
            if judge(error.errno, operation) != "optional":
                raise
            self.note(f"{without} ({error.strerror or error}).", without)
            return False
        return True

    def note(self, text: str, subject: str) -> None:
        """Keep a sentence for the user, the first time that its subject comes up."""
        with self._noting:
            if subject not in self._noted:
                self._noted.add(subject)
                self._notes.append(text)

    def take_notes(self) -> Iterator[str]:
        """The sentences for the user, once each."""
        while self._notes:
            yield self._notes.popleft()
