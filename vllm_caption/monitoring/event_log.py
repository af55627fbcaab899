"""The log of a run: one line per event, with the time, as text or as a JSON object.

Invariant: a log that cannot be written loses lines, but never stops the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO

import msgspec

from vllm_caption.errors import UsageError

Level = Literal["info", "warning", "error"]
_UNWRITABLE = (OSError, ValueError)


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event. ``fields``: its figures, by name."""

    event: str
    text: str
    level: Level = "info"
    fields: Mapping[str, object] = {}


class EventLog:
    """Appends events to a file, or to none."""

    def __init__(self, path: Path | None, *, as_json: bool = False) -> None:
        """``as_json``: JSON here, and wherever else events are shown. Raises UsageError if the file
        cannot be opened."""
        self.as_json = as_json
        self._file: TextIO | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        except OSError as error:
            remedy = f"cannot be written ({error.strerror}); name a file in a writable folder"
            raise UsageError("--log-file", path, remedy) from error

    def write(self, event: Event) -> None:
        """Append one event."""
        if self._file is not None:
            with contextlib.suppress(*_UNWRITABLE):
                print(as_line(event, as_json=self.as_json), file=self._file, flush=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(*_UNWRITABLE):
                self._file.close()


def as_line(event: Event, *, as_json: bool) -> str:
    """One event with the current time; as JSON always on one line."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    if not as_json:
        mark = "" if event.level == "info" else f"{event.level.upper()} "
        return f"{at} {mark}{event.text}"
    content = {
        "time": at,
        "level": event.level,
        "event": event.event,
        "text": event.text.encode("utf-8", "backslashreplace").decode(),
        "fields": event.fields,
    }
    return msgspec.json.encode(content).decode()
