"""The states of a run as a person reads them, and as the exit code that a script reads. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from vllm_caption.monitoring.status import State, View
from vllm_caption.store.layout import STATUS

EXIT_CODES: Final[Mapping[State, int]] = {
    "died": 1,
    "stopped": 3,
    "interrupted": 4,
    "running": 0,
    "finished": 0,
}
"""Worst first. 2 is a folder without a run, 130 the Ctrl+C that ends `status` itself."""
EXIT_CODES_IN_WORDS: Final = (
    "exit codes: 0 the run is running, or has finished; 1 it died; 2 there is no run; 3 it stopped;"
    " 4 it was interrupted; 130 Ctrl+C ended this command. With shards, the first of 1, 3 and 4"
    " that is true of any. With --watch, 0 means finished."
)


def exit_code(states: Iterable[State]) -> int:
    """Of one run, or of the shards of one."""
    seen = set(states)
    return next((code for state, code in EXIT_CODES.items() if state in seen), 0)


def in_words(view: View) -> str:
    """The state with its reason, and what to do about it."""
    if view.state == "running":
        return f"running, {view.holder}"
    if view.state == "died":
        return f"died: {STATUS} says running, but no process holds the folder; run again to resume"
    text: str = view.state
    if view.state == "stopped":
        text += f": {view.status.reason or 'an older version did not record why'}"
    if view.state == "interrupted":
        text += "; run again to resume"
    return text if view.holder is None else f"{text}; the folder is held by {view.holder}"
