"""Checks that a model's folder has not changed since the run started: otherwise a restarted engine
would have different weights from the others.

Invariant: a file that no engine loads, such as a log or a README, may change.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from vllm_caption.errors import RunStopped

_LOADED: Final = (
    *(".safetensors", ".bin", ".pt", ".pth", ".gguf", ".tensors"),
    *(".json", ".jinja", ".model", ".py", "merges.txt", "vocab.txt"),
)


class ModelFiles(msgspec.Struct, frozen=True):
    """The size and mtime of each file in a model's folder, by name."""

    folder: str
    facts: dict[str, tuple[int, int]]

    def check(self) -> None:
        """Raise RunStopped if one of them has changed."""
        present = _facts(self.folder)
        changed = [name for name, known in self.facts.items() if present.get(name) != known]
        if changed:
            problem = "is gone" if changed[0] not in present else "has changed"
            raise RunStopped(
                f"--model {self.folder}: {changed[0]} {problem} since the run began, and the other"
                " engines use the model as it was; put it back, or start the run again for the new"
                " one"
            )


def model_files(model: str) -> ModelFiles | None:
    """The files of a folder; None for a name on the Hub, whose cached files never change."""
    folder = Path(model)
    return ModelFiles(model, _facts(model)) if folder.is_absolute() else None


def _facts(folder: str) -> dict[str, tuple[int, int]]:
    try:
        with os.scandir(folder) as entries:
            found = {e.name: e.stat() for e in entries if e.name.endswith(_LOADED) and e.is_file()}
    except OSError:  # the engine that loads it reports what is wrong
        return {}
    return {name: (facts.st_size, facts.st_mtime_ns) for name, facts in found.items()}
