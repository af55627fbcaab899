"""What is seen of a folder at one moment, as one: the run of the whole folder, or all its shards.
Pure: from views to the figures that a screen shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from operator import attrgetter
from typing import Final

import msgspec

from vllm_caption.commands.status.states import EXIT_CODES, in_words
from vllm_caption.config import Shard
from vllm_caption.cost import Billing, Costs
from vllm_caption.formatting import counted
from vllm_caption.monitoring.figures import EngineFigures, HostFigures, LastItem, RunFigures
from vllm_caption.monitoring.status import RunStatus, Speed, State, View, steady_speed

MAX_ABSENT: Final = 20
Views = Mapping[Shard | None, View]
"""None is the run of the whole folder, which stands alone."""


class Overview(RunFigures, frozen=True, kw_only=True):
    """The sums over all runs that are looked at; rates, ``eta_s``, ``limited_by``, ``phases`` and
    ``warnings`` are of those that are running. ``engines``: each with what it is called."""

    state: State
    """The worst of all."""
    is_running: bool
    """Any of them."""
    state_in_words: str
    images_per_s_5_min: float | None
    images_per_s_of_run: float | None
    started_at: str
    updated_at: str
    age_s: float
    """Seconds since the last status of those that are running, the longest; of all, if none is."""
    phases: str
    engines: list[tuple[str, EngineFigures]]
    host: HostFigures | None
    failures: Counter[str]
    last_failures: list[LastItem]
    last_captions: list[LastItem]
    warnings: list[str]
    costs: Costs | None
    """None where no price is known."""
    before: Speed | None
    """Of earlier runs, if these have ended without a caption."""
    shards: list[tuple[Shard, View]]
    absent: list[str]
    """Shards that have not run here, in words."""


def overview(views: Views, gpu_hour_price: float | None = None) -> Overview:
    """All of them as one. ``views`` is not empty; ``gpu_hour_price``: in place of the runs' own."""
    seen = list(views.values())
    statuses = [view.status for view in seen]
    running = [view.status for view in seen if view.state == "running"]
    states = {view.state for view in seen}
    etas = [status.eta_s for status in running]
    known = [eta_s for eta_s in etas if eta_s is not None]
    phases = _listed(status.phase for status in running)
    return Overview(
        state=next(state for state in EXIT_CODES if state in states),
        is_running=bool(running),
        state_in_words=_in_words(views),
        total=sum(status.total for status in statuses),
        scanning=any(status.scanning for status in running),
        captioned=sum(status.captioned for status in statuses),
        done_before=sum(status.done_before for status in statuses),
        failed=sum(status.failed for status in statuses),
        images_per_s=_sum(status.images_per_s for status in running),
        images_per_s_5_min=_sum(status.images_per_s_5_min for status in running),
        images_per_s_of_run=_sum(status.images_per_s_of_run for status in running),
        tokens_per_s=_sum(status.tokens_per_s for status in running),
        eta_s=max(known) if known and len(known) == len(etas) else None,
        started_at=min(status.started_at for status in statuses),
        updated_at=max(status.updated_at for status in statuses),
        age_s=max(
            (v.age_s for v in seen if v.state == "running"), default=min(v.age_s for v in seen)
        ),
        limited_by=_counted(s.limited_by for s in running if s.phase is None) or None,
        phase=(phases or None) if all(status.phase for status in running) else None,
        phases=phases,
        engines=list(_engines(views)),
        host=running[0].host if len(running) == len(seen) == 1 else None,
        failures=sum((Counter(status.failures) for status in statuses), Counter()),
        last_failures=_last(statuses, "last_failures"),
        last_captions=_last(statuses, "last_captions"),
        warnings=[warning for status in running for warning in status.warnings],
        costs=_costs(seen, gpu_hour_price),
        before=None if running else _before(statuses),
        shards=[(shard, view) for shard, view in views.items() if shard is not None],
        absent=list(_absent(views)),
    )


def _sum(rates: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None


def _before(statuses: Sequence[RunStatus]) -> Speed | None:
    known = [status.speed for status in statuses if status.speed is not None]
    if not known or any(status.captioned for status in statuses):
        return None
    return Speed(
        images_per_s=sum(speed.images_per_s for speed in known),
        captions=sum(speed.captions for speed in known),
        num_engines=sum(speed.num_engines for speed in known),
        num_gpus=sum(speed.num_gpus for speed in known),
        at=max(speed.at for speed in known),
    )


def _absent(views: Views) -> Iterable[str]:
    for count in sorted({shard.count for shard in views if shard is not None}):
        others = (n for n in range(1, count + 1) if Shard(n, count) not in views)
        absent = list(islice(others, MAX_ABSENT + 1))  # somebody may name any count
        if absent:
            more = ", …" if len(absent) > MAX_ABSENT else ""
            shown = ", ".join(map(str, absent[:MAX_ABSENT]))
            yield f"No run yet here: shard {shown}{more} of {count}"


def _costs(views: Sequence[View], price: float | None) -> Costs | None:
    statuses = [view.status for view in views]
    price = price or next((s.gpu_hour_price for s in statuses if s.gpu_hour_price), None)
    if price is None:
        return None
    running = [view.status for view in views if view.state == "running"]
    scanning = any(status.scanning for status in running)
    speed = steady_speed(running or statuses)
    return Billing(price, speed.num_gpus).costs(
        gpu_s=sum(status.num_gpus * _seconds(status) for status in statuses),
        spent_on="so far" if running else "for this run",
        num_left=0 if scanning else sum(max(s.total - s.finished, 0) for s in running),
        images_per_s=speed.images_per_s,
    )


def _seconds(status: RunStatus) -> float:
    """From the start of a run to its last status."""
    try:
        began, at = map(datetime.fromisoformat, (status.started_at, status.updated_at))
        return max((at - began).total_seconds(), 0.0)
    except (ValueError, TypeError):  # a file that was edited
        return 0.0


def _in_words(views: Views) -> str:
    if None in views:
        return in_words(views[None])
    counts = Counter(view.state for view in views.values())
    named = (f"{counts[state]} {state}" for state in list(EXIT_CODES)[::-1] if counts[state])
    known = {shard.count for shard in views if shard is not None}
    number = counted(len(views), "shard")
    if len(known) == 1 and (count := known.pop()) > len(views):
        number = f"{len(views)} of {counted(count, 'shard')}"
    return f"{number}: {', '.join(named)}"


def _counted(names: Iterable[str | None]) -> str:
    """The only name, or each with its number of shards; empty if there is none."""
    counts = Counter(name for name in names if name is not None)
    if len(counts) < 2:
        return "".join(counts)
    return ", ".join(f"{name} in {counted(n, 'shard')}" for name, n in counts.most_common())


def _listed(phases: Iterable[str | None]) -> str:
    """Each once, the most frequent first."""
    counts = Counter(phase for phase in phases if phase is not None)
    named = (f"{n} × {phase}" if n > 1 else phase for phase, n in counts.most_common())
    return "; ".join(named)


def _engines(views: Views) -> Iterable[tuple[str, EngineFigures]]:
    for shard, view in sorted(views.items(), key=lambda entry: entry[0] or Shard(1, 1)):
        for engine in view.status.engines:
            if view.state != "running":
                engine = msgspec.structs.replace(engine, state=view.state, images_per_s=None)
            yield (f"{engine.engine}" if shard is None else f"{shard}:{engine.engine}"), engine


def _last(statuses: Iterable[RunStatus], name: str) -> list[LastItem]:
    """The newest of all, the newest first."""
    found = [item for status in statuses for item in getattr(status, name)]
    newest_last = sorted(found, key=attrgetter("at"))
    return newest_last[:-4:-1]
