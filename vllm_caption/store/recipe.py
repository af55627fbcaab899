"""What made a caption: every setting that changes its words, under one short id.

The id covers the model, the text of the prompt file (with its rules: they cause retries with other
sampling), and the settings listed here. It does not cover the name of the prompt, or what only
changes the speed or which items are captioned.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from vllm_caption.captions.prompt import Prompt
from vllm_caption.config import EngineConfig, ImageConfig, SamplingConfig
from vllm_caption.engine_flags import named_flags
from vllm_caption.errors import RunStopped
from vllm_caption.formatting import flag_of
from vllm_caption.store.atomic import write_file
from vllm_caption.store.layout import DAMAGED_RECIPES, RECIPES, state_folders

IMAGE_SETTINGS: Final = ("max_side", "min_pixels", "max_pixels")
SAMPLING_SETTINGS: Final = (
    *("max_tokens", "temperature", "top_p", "top_k", "seed", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "min_tokens", "stop", "ignore_eos"),
)
ENGINE_FLAGS: Final = (
    *("dtype", "hf_overrides", "kv_cache_dtype", "mm_processor_kwargs", "quantization", "revision"),
    *("reasoning_parser", "structured_outputs_config", "tokenizer", "tokenizer_revision"),
)
"""vLLM's flags that change what the model says, or which part of it is the caption."""

NOT_RECORDED: Final = "with settings that are not recorded"


class Recipe(msgspec.Struct, frozen=True):
    """One way of making captions. ``sampling`` and ``image`` hold all settings, as of the last run
    with this recipe."""

    model: str
    prompt_name: str
    prompt: str
    sampling: dict[str, object]
    image: dict[str, object]
    engine: dict[str, str]

    @property
    def id(self) -> str:
        """12 hexadecimal digits of the SHA-256 of what the id covers."""
        counted = (
            self.model,
            self.prompt,
            {name: self.sampling.get(name) for name in SAMPLING_SETTINGS},
            {name: self.image.get(name) for name in IMAGE_SETTINGS},
            self.engine,
        )
        content = msgspec.json.encode(counted, order="deterministic")
        return hashlib.sha256(content).hexdigest()[:12]


def make_recipe(
    engine: EngineConfig, prompt: Prompt, sampling: SamplingConfig, image: ImageConfig
) -> Recipe:
    """The recipe of a run."""
    flags = named_flags(engine.engine_args).items()
    return Recipe(
        model=engine.model,
        prompt_name=prompt.name,
        prompt=prompt.source,
        sampling=msgspec.to_builtins(sampling),
        image=msgspec.to_builtins(image),
        engine={name: value for name, value in flags if name.partition(".")[0] in ENGINE_FLAGS},
    )


def ids_of(recipe: Recipe, root: Path) -> frozenset[str]:
    """The ids that a recipe has in an output folder: an earlier version, which also counted
    settings that change no caption, may have given it another one."""
    ids = {recipe.id}
    for folder in state_folders(root):
        with contextlib.suppress(RunStopped):  # a damaged file adds no ids
            ids |= {id_ for id_, known in read_recipes(folder).items() if known.id == recipe.id}
    return frozenset(ids)


def made_with(captions: Mapping[str, int], ours: Recipe, root: Path) -> dict[str, int]:
    """Captions of other recipes, counted by id → the same by what their settings are where ours
    differ, most frequent first."""
    known: dict[str, Recipe] = {}
    with contextlib.suppress(OSError):
        for folder in state_folders(root):
            with contextlib.suppress(RunStopped):
                known |= read_recipes(folder)
    found: Counter[str] = Counter()
    for id_, number in captions.items():
        found[_settings(known[id_], ours) if id_ in known else NOT_RECORDED] += number
    return dict(found.most_common())


def _settings(theirs: Recipe, ours: Recipe) -> str:
    """Those of ``theirs`` that are not as in ``ours``, as flags."""
    has, lacks = [], []
    if theirs.model != ours.model:
        has.append(f"--model {theirs.model}")
    if theirs.prompt != ours.prompt:
        same_name = theirs.prompt_name == ours.prompt_name
        has.append(f"{'another text of ' if same_name else ''}--prompt {theirs.prompt_name}")
    for names, settings, others in (
        (IMAGE_SETTINGS, theirs.image, ours.image),
        (SAMPLING_SETTINGS, theirs.sampling, ours.sampling),
        (sorted(theirs.engine | ours.engine), theirs.engine, ours.engine),
    ):
        for name in names:
            value = settings.get(name)
            if _as_words(value) == _as_words(others.get(name)):
                continue
            if value is None or value is False or value in ([], ()):
                lacks.append(flag_of(name))
            else:
                has.append(f"{flag_of(name)} {_as_words(value)}".strip())
    parts = ("with", has), ("without", lacks)
    return " and ".join(f"{word} {', '.join(flags)}" for word, flags in parts if flags)


def _as_words(value: object) -> str:
    """The value of a flag; empty for a switch."""
    if isinstance(value, list | tuple):
        return shlex.join(map(str, value))
    return "" if value is True else str(value)


def record_recipe(root: Path, recipe: Recipe) -> str | None:
    """Add a recipe to the file of recipes.

    A damaged file is moved aside; then a sentence about it is returned.
    """
    path, note = root / RECIPES, None
    try:
        recipes = read_recipes(root)
    except RunStopped:
        path.replace(root / DAMAGED_RECIPES)
        note = f"{path} is damaged; it was renamed to {DAMAGED_RECIPES}, and a new one replaces it"
        recipes = {}
    recipes[recipe.id] = recipe
    # Synced: the recipes of earlier runs could not be recreated.
    content = msgspec.json.format(msgspec.json.encode(recipes), indent=2)
    write_file(path, content, sync_content=True)
    return note


def read_recipes(root: Path) -> dict[str, Recipe]:
    """Recipes by id; empty if there is no such file. Raises RunStopped if it is damaged, and
    OSError."""
    path = root / RECIPES
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Recipe])
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:  # msgspec's, or bytes that are not UTF-8
        raise RunStopped(f"{path} is damaged ({error}); move it away") from error
