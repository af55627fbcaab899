"""Operations on the output's disk, tried as often as the verdict on their errors allows.

Invariants: an error that may pass is waited for at most 21 s per operation, by the thread that
writes, so that order stays as it is and nothing is written twice; what is done without, and what
had to be tried again, is noted once each.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from vllm_caption.store.disk.verdicts import DENIALS, OUTAGES, Operation, judge

T = TypeVar("T")
WAITS_S: Final = (1.0, 4.0, 16.0)
"""Seconds before each new attempt, as for the reading of images."""


class Disk:
    """The disk of one output folder."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._notes: deque[str] = deque()
        self._noted: set[str] = set()
        self._lasting: set[int] = set()
        """Denials that outlasted all waits: a folder of a million items that may not be written
        must not be waited for a million times."""

    def attempt(self, operation: Operation, action: Callable[[], T]) -> T:
        """What ``action`` returns, after as many attempts as its errors are worth. It must be one
        that can be done again from its beginning.

        Raises OSError where that is the item's or the disk's fault, or did not pass.
        """
        for wait_s in WAITS_S:
            try:
                return action()
            except OSError as error:
                if judge(error.errno, operation) != "passing" or error.errno in self._lasting:
                    raise
                where = f" at {os.fsdecode(error.filename)}" if error.filename else ""
                text = f"The disk of --output failed for a moment ({error.strerror}{where})"
                self.note(f"{text}; it is asked again after 1, 4 and 16 s.", str(error.errno))
                self._sleep(wait_s)
        try:
            return action()
        except OSError as error:
            if error.errno in DENIALS:
                self._lasting.add(error.errno)
            raise

    def try_once(self, operation: Operation, action: Callable[[], object], without: str) -> bool:
        """Whether ``action`` could be done, at once or, after an error that may pass, with a second
        try; where the run does without, ``without`` is noted: what fails, or what follows. Raises
        OSError where it is no optional operation."""
        try:
            try:
                action()
            except OSError as error:
                # Never a sync: after one that failed, the next may succeed without the content.
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
        """One sentence for the user, the first time that its subject comes up."""
        if subject not in self._noted:
            self._noted.add(subject)
            self._notes.append(text)

    def take_notes(self) -> Iterator[str]:
        """What the user is to read, once each."""
        while self._notes:
            yield self._notes.popleft()
