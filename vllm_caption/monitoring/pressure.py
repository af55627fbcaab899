"""Warns when the machine runs out of a resource. Pure: from figures to sentences.

Invariant: a resource causes one warning when it exceeds its limit, and another only after it has
fallen well below the limit in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from vllm_caption.engine_flags import GPU_MEMORY_UTILIZATION, named_flags
from vllm_caption.monitoring.figures import HostFigures

LIMIT_PERCENT: Final = 90.0
CALM_BELOW: Final = 10.0
"""A resource may cause another warning once it is this many points below its limit."""
GPU_MEMORY_MARGIN: Final = 4.0


class Pressure:
    """The warnings so far. ``active``: resource → its warning, while it lasts."""

    def __init__(
        self, folder: str, *, on_cpu: bool, gpu_memory_limit: float = LIMIT_PERCENT
    ) -> None:
        """``on_cpu``: engines run on the CPU, so a busy CPU causes no warning."""
        self._folder = folder
        self._on_cpu = on_cpu
        self._gpu_memory_limit = gpu_memory_limit
        self.active: dict[str, str] = {}

    def check(self, host: HostFigures, gpu_memory: Sequence[float | None]) -> list[str]:
        """Check the current figures (GPU memory in percent, by engine); returns new warnings."""
        return [text for text in self._checked(host, gpu_memory) if text]

    def _checked(
        self, host: HostFigures, gpu_memory: Sequence[float | None]
    ) -> Iterable[str | None]:
        if not self._on_cpu:
            remedy = "engines may wait for images; end other work, or see queue_s in the manifest"
            yield self._check("CPU", host.cpu_percent, f"the CPU is busy: {remedy}")
        remedy = "the kernel may kill an engine; end other work, or lower --prepare-threads"
        yield self._check("RAM", host.ram_percent, f"memory is nearly used up: {remedy}")
        room = f"{host.disk_free_gib or 0:.1f} GiB are free; make room"
        what = f"the disk of {self._folder} is nearly full: {room}; a full disk stops the run"
        yield self._check("disk", host.disk_percent, what)
        for index, percent in enumerate(gpu_memory):
            remedy = "if the engine runs out, lower --gpu-memory-utilization or --max-num-seqs"
            what = f"the GPU memory of engine {index} is nearly used up: {remedy}"
            resource = f"GPU memory of engine {index}"
            yield self._check(resource, percent, what, self._gpu_memory_limit)

    def _check(
        self, resource: str, percent: float | None, what: str, limit: float = LIMIT_PERCENT
    ) -> str | None:
        if percent is None:
            return None
        if percent < limit - CALM_BELOW:
            self.active.pop(resource, None)
        elif percent >= limit and resource not in self.active:
            self.active[resource] = f"{resource} at {percent:.0f}%: {what}."
            return self.active[resource]
        return None


def gpu_memory_limit(engine_args: Sequence[str]) -> float:
    """Percent above which GPU memory is worth a warning: vLLM allocates its share at the start, so
    only use clearly above that share matters."""
    try:
        share = float(named_flags(engine_args)["gpu_memory_utilization"])
    except (KeyError, ValueError):  # vLLM refuses a bad value
        share = GPU_MEMORY_UTILIZATION
    return min(max(LIMIT_PERCENT, 100 * share + GPU_MEMORY_MARGIN), 99.0)
