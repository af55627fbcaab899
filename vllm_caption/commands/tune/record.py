"""tune.json: what `tune` has measured, replaced as a whole after each setting.

It lies in a folder of its own beside the output folder, where `report` looks for it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from vllm_caption import __version__
from vllm_caption.commands.json_file import encode_json
from vllm_caption.monitoring.bottleneck import Limit
from vllm_caption.store.atomic import write_file

TUNING: Final = "tune.json"
INTERRUPTED: Final = "interrupted"
VERSION: Final = 1
"""Changes when a field changes its name or its meaning, not when a field is added."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One engine in its steady state. ``engine_s_p50``, ``engine_s_p95``: seconds that an image
    spends in the engine; ``limited_by``: as in the summary of a run; ``start_s``: from the start of
    the run to the first image that reached the engine. None: not known, as a GPU's use on CPU."""

    images: int
    steady_s: float
    images_per_s: float
    tokens_per_s: float
    engine_s_p50: float
    engine_s_p95: float
    limited_by: Limit | None
    gpu_percent: float | None
    gpu_memory_percent: float | None
    start_s: float
    gpus_per_engine: int = 1

    @property
    def speed(self) -> float:
        """What settings are compared by: images per second of one GPU."""
        return self.images_per_s / self.gpus_per_engine


class Setting(msgspec.Struct, frozen=True):
    """One value of the flag: its figures, or the problem why there are none. ``output``: the folder
    of its run, with captions and logs."""

    value: str
    output: str
    figures: Figures | None = None
    problem: str | None = None

    @property
    def speed(self) -> float | None:
        """None where it could not be measured."""
        return None if self.figures is None else self.figures.speed


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """One call of `tune`. ``flag``: without its dashes; ``command``: the line to run, once a
    setting is measured; ``ended``: why no further setting was measured, "" while one still is, and
    where `tune` was killed. ``call``: its command line, the machine and the version."""

    version: int = VERSION
    flag: str
    started_at: str
    num_sampled: int
    settings: list[Setting] = []
    fastest: str | None = None
    command: str | None = None
    ended: str = ""
    call: list[str] = []

    def resumes(self, before: Tuning | None) -> bool:
        """Whether this is the same call as one that did not end by itself."""
        return (
            before is not None
            and before.ended in ("", INTERRUPTED)
            and bool(before.settings)
            and (before.version, before.call) == (self.version, self.call)
            and before.num_sampled == self.num_sampled
        )


def describe_call(arguments: Sequence[str]) -> list[str]:
    """What must be the same for figures to be of the same kind."""
    return [socket.gethostname(), __version__, *arguments]


def tune_folder(output: Path) -> Path:
    """Where `tune` writes without --tune-output: beside the output folder, which stays as it is."""
    if output.name in ("", ".."):
        output = Path(os.path.abspath(output))  # noqa: PTH100 (`..` has no name of its own)
    return output.with_name(f"{output.name}.tune")


def write_tuning(folder: Path, tuning: Tuning) -> None:
    """Replace the file. Raises OSError."""
    write_file(folder / TUNING, encode_json(tuning) + b"\n")


def read_tuning(folder: Path) -> Tuning | None:
    """What the file holds; None where there is none that can be understood."""
    try:
        return msgspec.json.decode((folder / TUNING).read_bytes(), type=Tuning)
    except (OSError, ValueError, RecursionError):
        return None
