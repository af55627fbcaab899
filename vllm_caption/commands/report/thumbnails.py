"""Small pictures of a sample of the items, as the model saw them: the same preparation, shrunk.

Invariants: items that failed or are flagged come first, and each kind, flag and type has its turn;
an image that cannot be shown gets a sentence instead; the same rows give the same sample.
"""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from PIL import Image

from vllm_caption.commands.report.items import Items, is_troubled
from vllm_caption.config import ImageConfig
from vllm_caption.errors import INPUT_KINDS, ItemError
from vllm_caption.images.decode import prepare_image
from vllm_caption.store.recipe import Recipe

SIDE: Final = 128
QUALITY: Final = 78
MAX_THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """By the item's number: a data URI, or why there is none. A picture that is no longer what the
    model saw has a note too."""

    pictures: dict[int, str] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)


def make_thumbnails(
    items: Items,
    chosen: list[int],
    recipes: dict[str, Recipe],
    images_root: Path | str | None = None,
) -> Thumbnails:
    """Pictures of these items. ``images_root``: instead of the one in the rows."""
    rows = items.shared.take(chosen).to_pylist() if chosen else []
    configs = _configs(items, chosen, recipes)

    def make(row: dict[str, Any], config: ImageConfig) -> tuple[str | None, str | None]:
        return _thumbnail(row, config, images_root)

    found = Thumbnails()
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        results = pool.map(make, rows, configs)
        for place, (uri, note) in zip(chosen, results, strict=True):
            if uri is not None:
                found.pictures[place] = uri
            if note is not None:
                found.notes[place] = note
    return found


def choose(items: Items, count: int) -> list[int]:
    """The numbers of the items that get a picture. Those that failed or are flagged get at most
    half of the room, unless the others leave more; each kind, flag and type has its turn."""
    is_bad, keys = is_troubled(items), _keys(items)
    taken: Counter[Any] = Counter()
    turns: dict[int, int] = {}
    for number in np.random.default_rng(0).permutation(len(items)).tolist():  # from everywhere
        if (key := keys[number]) is not None:
            turns[number] = taken[key]
            taken[key] += 1
    in_turn = sorted(turns, key=turns.__getitem__)
    bad = [number for number in in_turn if is_bad[number]]
    fine = [number for number in in_turn if not is_bad[number]]
    first = bad[: max((count + 1) // 2, count - len(fine))]
    return sorted([*first, *fine[: count - len(first)]])


def _keys(items: Items) -> list[Any]:
    """What similar items have in common; None for those whose image cannot be shown."""
    types = items.shared["element_type"].to_pylist()
    kinds = [side["error_kind"].to_pylist() for side in items.sides]
    flags = [side["flags"].to_pylist() for side in items.sides]
    keys: list[Any] = []
    for place, element_type in enumerate(types):
        failed = [kind[place] for kind in kinds]
        if any(k in INPUT_KINDS and k != "output_conflict" for k in failed):
            keys.append(None)
            continue
        broken = [tuple(flag[place] or ()) for flag in flags]
        keys.append((element_type, *failed, *broken))
    return keys


def _configs(items: Items, chosen: list[int], recipes: dict[str, Recipe]) -> list[ImageConfig]:
    """The image settings of each chosen item's caption."""
    known = {id_: _config(recipe) for id_, recipe in recipes.items()}
    ids = [side["recipe_id"].take(chosen).to_pylist() for side in items.sides] if chosen else []
    default = ImageConfig()
    return [
        next((known[id_] for id_ in of_item if id_ in known), default)
        for of_item in zip(*ids, strict=True)
    ]


def _config(recipe: Recipe) -> ImageConfig:
    try:
        return msgspec.convert(recipe.image, ImageConfig)
    except msgspec.ValidationError:
        return ImageConfig()


def _thumbnail(
    row: dict[str, Any], config: ImageConfig, images_root: Path | str | None
) -> tuple[str | None, str | None]:
    root = (
        str(images_root)
        if images_root
        else (row["image_path"] or "").removesuffix(f"/{row['file']}")
    )
    if not root:
        return None, "its images root is not recorded"
    try:
        prepared = prepare_image(root, row["file"], config)
    except ItemError as error:
        return None, f"cannot be shown now: {error}"
    except OSError as error:
        return None, f"cannot be shown now: {error.strerror or error}"
    changed = row["image_sha256"] not in (None, prepared.sha256)
    return _data_uri(prepared.image), "the file has changed since" if changed else None


def _data_uri(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
