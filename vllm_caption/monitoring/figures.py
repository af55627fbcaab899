"""The figures of a run: the only list of their names, order, types and units.

`status.json`, `monitor.parquet`, the log, the `status` command and the charts of the report are all
made from these structs: a figure added here appears in all of them. Only the code that measures or
counts a figure is elsewhere.

Invariant: None means that a value is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Annotated, Final, Literal, TypeVar, get_type_hints

import msgspec

from vllm_caption.formatting import duration, moment

NOT_STARTED: Final = "not started"
EngineState = Literal["waiting", "starting", "up", "retired", "stopped"]
_FAR_S: Final = 1e9
"""A longer ETA is cut to this, since no date can hold it."""
AnyFigures = TypeVar("AnyFigures", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Figure:
    """How a figure is stored over time, and how it is shown.

    ``column``: the name of its Arrow type in `monitor.parquet`. ``label``: comes before the value
    in a line of text; figures without one are worded where they are shown. ``chart``: the title of
    its chart in the report; figures with the same title share a chart, figures without have none.
    """

    column: str
    label: str = ""
    unit: str = ""
    chart: str = ""
    decimals: int = 0

    def shown(self, value: float) -> str:
        """The value with its unit: 91%, 64 °C or 9,120 MiB."""
        space = "" if self.unit == "%" else " "
        return f"{value:,.{self.decimals}f}{space}{self.unit}"


class EngineFigures(msgspec.Struct):
    """One engine slot. ``captioned`` and ``output_tokens`` count this run so far."""

    engine: Annotated[int, Figure("int32")]
    state: Annotated[str, Figure("string")] = "waiting"
    """An `EngineState`, or whatever another version of this package wrote."""
    pid: int | None = None
    captioned: Annotated[int, Figure("int64")] = 0
    output_tokens: Annotated[int, Figure("int64")] = 0
    images_per_s: float | None = None
    """Over the last minute."""
    restarts: Annotated[int, Figure("int32")] = 0
    in_flight: Annotated[int, Figure("int32")] = 0
    rss_mib: Annotated[float | None, Figure("float32", "memory", "MiB", "Engine memory")] = None
    gpu_percent: Annotated[float | None, Figure("float32", "GPU", "%", "GPU use")] = None
    gpu_memory_percent: Annotated[
        float | None, Figure("float32", "GPU memory", "%", "GPU memory")
    ] = None
    gpu_temperature_c: Annotated[
        float | None, Figure("float32", "GPU at", "°C", "GPU temperature")
    ] = None

    @property
    def state_in_words(self) -> str:
        """The state as a person reads it."""
        if self.state == "waiting":
            return "restarting" if self.restarts else NOT_STARTED
        return "taken out" if self.state == "retired" else self.state


class HostFigures(msgspec.Struct, frozen=True):
    """The machine around the engines."""

    cpu_percent: Annotated[float, Figure("float32", "CPU", "%", "Machine")]
    ram_percent: Annotated[float, Figure("float32", "RAM", "%", "Machine")]
    driver_rss_mib: Annotated[float, Figure("float32", "driver", "MiB", "Driver memory")]
    disk_free_gib: Annotated[
        float | None, Figure("float32", "free disk", "GiB", "Free disk", decimals=1)
    ] = None
    disk_percent: float | None = None


class RunFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The run as a whole. Rates are over the last 30 s; ``done_before``: captions of earlier runs,
    and captions found without a row; ``total`` grows while ``scanning``."""

    total: int
    scanning: bool
    done_before: int
    captioned: Annotated[int, Figure("int64")]
    failed: Annotated[int, Figure("int64")]
    images_per_s: Annotated[float | None, Figure("float32", "images", "images/s", "Speed")]
    tokens_per_s: Annotated[
        float | None, Figure("float32", "tokens", "tokens/s", "Speed in tokens")
    ]
    eta_s: float | None
    limited_by: str | None = None
    phase: str | None = None
    """What the run does while it is not captioning."""

    @property
    def finished(self) -> int:
        """Items that are done, in this run or before."""
        return self.done_before + self.captioned + self.failed


class LastItem(msgspec.Struct, frozen=True):
    """An item that just finished: its file and its caption, or why it failed."""

    at: str
    text: str
    kind: str = ""


IN_FLIGHT: Final = Figure("int32", "in flight", "items", "Items with the engines")
"""The sum over all engines, in `monitor.parquet` only."""


@cache
def listed(figures: type[msgspec.Struct]) -> dict[str, Figure]:
    """The figures of a struct that are stored over time, by name and in order."""
    hints = get_type_hints(figures, include_extras=True).items()
    return {
        name: note
        for name, hint in hints
        for note in getattr(hint, "__metadata__", ())
        if isinstance(note, Figure)
    }


def rounded_rate(rate: float | None) -> float | None:
    """To four digits."""
    return None if rate is None else float(f"{rate:.4g}")


def rounded(figures: AnyFigures) -> AnyFigures:
    """A copy with floats rounded for reading."""
    values = msgspec.structs.asdict(figures)
    short = {name: round(value, 1) for name, value in values.items() if isinstance(value, float)}
    return msgspec.structs.replace(figures, **short)


def num_up(engines: Sequence[EngineFigures]) -> int:
    """Engines that can take requests."""
    return sum(engine.state == "up" for engine in engines)


# --- as text ---------------------------------------------------------------------------------


def time_to_go(eta_s: float, now: datetime | None = None) -> str:
    """Such as "ETA 1 d 3 h (Tue 14:05)"; without the time of the end if ``now`` is None."""
    text = f"ETA {duration(round(eta_s))}"
    if now is None:
        return text
    return f"{text} ({moment(now + timedelta(seconds=min(eta_s, _FAR_S)), now)})"


def measured(figures: msgspec.Struct) -> Iterator[str]:
    """The figures with a label, such as "GPU memory 91%", except unknown ones."""
    for name, figure in listed(type(figures)).items():
        value = getattr(figures, name)
        if figure.label and value is not None:
            yield f"{figure.label} {figure.shown(value)}"
