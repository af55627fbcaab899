"""The numbers of the folders → one HTML page that needs no network.

Invariants: text reaches the page escaped by the template, or inside the base64 block; the only
script that runs is the one whose hash the page's own policy names; nothing is loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import msgspec
import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from vllm_caption import __version__
from vllm_caption.commands.report import facts, meanings
from vllm_caption.commands.report.charts import bar_chart, histogram, short
from vllm_caption.commands.report.compare import Comparison
from vllm_caption.commands.report.items import Items
from vllm_caption.commands.report.records import Records
from vllm_caption.commands.report.series import charts_over_time
from vllm_caption.commands.tune.record import read_tuning, tune_folder
from vllm_caption.cost import Billing, Costs, money
from vllm_caption.formatting import date_and_time, duration, percent
from vllm_caption.monitoring.samples import read_gpu_s
from vllm_caption.monitoring.status import read_status, steady_speed
from vllm_caption.store.layout import state_folders

FOLDER: Final = Path(__file__).parent / "page"
MAX_BARS: Final = 24


@dataclass(frozen=True, slots=True)
class Section:
    """The parts of the page about one output folder."""

    records: Records
    facts: facts.Facts
    over_time: list[str]
    notes: list[str]
    spread: list[str]
    recipes: list[dict[str, Any]]
    costs: Costs | None

    @property
    def charts(self) -> list[str]:
        """All of them."""
        return [*self.over_time, *self.spread]

    @property
    def prompts(self) -> list[str]:
        """Of its captions, the most frequent first."""
        found = [entry["recipe"] for entry in self.recipes if entry["recipe"]]
        return list(dict.fromkeys(recipe.prompt_name for recipe in found))

    @property
    def needs_attention(self) -> bool:
        """Whether anything failed, is flagged, was left out, or is the caption of several items."""
        f = self.facts
        return bool(f.kinds or f.flags or f.documents or f.repeated)


def make_section(records: Records, gpu_hour_price: float | None = None) -> Section:
    """Count and draw."""
    counted = facts.count(records)
    over_time, notes = charts_over_time(records)
    return Section(
        records=records,
        facts=counted,
        over_time=over_time,
        notes=notes,
        spread=[*_tuning(records), *_histograms(records, counted.words), *_bars(counted)],
        recipes=[_recipe(records, share) for share in counted.recipes],
        costs=_costs(records, gpu_hour_price) if gpu_hour_price else None,
    )


def render(
    sections: list[Section],
    comparisons: list[Comparison],
    items: Items,
    payload: str,
    num_pictures: int | None,
    *,
    more_pictures: bool,
) -> str:
    """The page. ``comparisons``: of the first folder with each of the others; ``num_pictures``:
    None if none were requested; ``more_pictures``: whether more can be made."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["date_and_time"] = date_and_time
    environment.globals["percent"] = percent
    environment.filters["money"] = money
    environment.filters["number"] = "{:,}".format
    environment.filters["brief"] = _brief
    environment.filters["marked"] = _with_code
    script, style = (FOLDER / name for name in ("gallery.js", "page.css"))
    code = script.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        sections=sections,
        comparisons=comparisons,
        items=items,
        num_pictures=num_pictures,
        more_pictures=more_pictures,
        payload=Markup(payload),  # base64 only
        script=Markup(code),
        script_hash=digest,
        style=Markup(style.read_text("utf-8")),
        meanings=meanings,
        version=__version__,
        made_at=date_and_time(datetime.now(UTC).isoformat()),
    )


def _brief(value: int) -> str:
    """All digits below a million."""
    return f"{value:,}" if value < 1_000_000 else short(value)


def _with_code(text: str) -> Markup:
    """Text between backticks as code."""
    pieces = text.split("`")
    forms = ("{}", "<code>{}</code>")
    return Markup("").join(Markup(forms[i % 2]).format(piece) for i, piece in enumerate(pieces))


def _histograms(records: Records, words: np.ndarray) -> list[str]:
    rows = records.rows
    done = rows.filter(pc.equal(rows["status"], "captioned"))
    charts: list[str] = []
    for title, unit, column in (
        ("Generation time", "s", "generate_s"),
        ("Preparation of the image", "s", "prepare_s"),
        ("Rendering of the request", "s", "render_s"),
        ("Wait for preparation", "s", "queue_s"),
        ("Wait for rendering", "s", "render_queue_s"),
    ):
        values = facts.measured(done[column])
        if len(values):
            charts.append(histogram(f"{title}, per item", unit, values, log=True))
    tokens = facts.measured(done["output_tokens"])
    if len(tokens):
        charts.append(histogram("Length of captions, in tokens", "tokens", tokens))
    if len(words):
        charts.append(histogram("Length of captions, in words", "words", words.astype(float)))
    return charts


def _tuning(records: Records) -> list[str]:
    """The speeds that `tune` has measured for this folder, if it has."""
    tuning = read_tuning(tune_folder(records.root))
    speeds = [] if tuning is None else [(s.value, s.speed) for s in tuning.settings]
    bars = [(value, speed) for value, speed in speeds if speed is not None][:MAX_BARS]
    if tuning is None or not bars:
        return []
    title = f"Speed of one engine by --{tuning.flag}, measured by tune"
    return [bar_chart(title, "images/s", bars, shares=False)]


def _costs(records: Records, gpu_hour_price: float) -> Costs | None:
    """By the samples of all runs, and the speed of the last one; None without samples."""
    if not (gpu_s := read_gpu_s(records.root)):
        return None
    status, rows = records.status, records.rows
    num_left = 0 if status is None or status.scanning else status.total - len(rows)
    speed = steady_speed(filter(None, map(read_status, state_folders(records.root))))
    return Billing(gpu_hour_price, speed.num_gpus).costs(
        gpu_s=gpu_s,
        spent_on="so far" if records.state == "running" else "for all runs",
        num_left=max(num_left, 0),
        images_per_s=speed.images_per_s,
    )


def _bars(counted: facts.Facts) -> list[str]:
    charts: list[str] = []
    if counted.engines:
        shares = [(f"engine {e.name}", e.captioned) for e in counted.engines[:MAX_BARS]]
        charts.append(bar_chart("Share of each engine", "captions", shares))
    if counted.backdrops:
        charts.append(bar_chart("Backdrop that the model saw", "items", counted.backdrops))
    return charts


def _recipe(records: Records, share: facts.Share) -> dict[str, Any]:
    recipe = records.recipes.get(share.name)
    settings = {} if recipe is None else msgspec.to_builtins(recipe)
    shown = {
        name: value if isinstance(value, str) else json.dumps(value)
        for group in ("sampling", "image", "engine")
        for name, value in settings.get(group, {}).items()
        if value not in (None, [])
    }
    return {"share": share, "recipe": recipe, "settings": shown}
