"""What made a caption: everything that changes the words, under one short id.

Speed settings (engines, sequences, memory) are left out on purpose: they do not change a recipe.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from vllm_caption.captions.prompt import Prompt
from vllm_caption.config import RunConfig
from vllm_caption.engine_flags import named_flags
from vllm_caption.errors import RunStopped
from vllm_caption.store.atomic import write_file
from vllm_caption.store.layout import DAMAGED_RECIPES, RECIPES

WORDING_FLAGS = (
    *("dtype", "hf_overrides", "kv_cache_dtype", "mm_processor_kwargs", "quantization", "revision"),
    *("tokenizer", "tokenizer_revision"),
)
"""vLLM engine flags that change what the model says."""


class Recipe(msgspec.Struct, frozen=True):
    """One way of making captions."""

    model: str
    prompt_name: str
    prompt: str
    sampling: dict[str, object]
    image: dict[str, object]
    engine: dict[str, str]

    @property
    def id(self) -> str:
        """12 hexadecimal digits of the content's SHA-256."""
        content = msgspec.json.encode(self, order="deterministic")
        return hashlib.sha256(content).hexdigest()[:12]


def make_recipe(config: RunConfig, prompt: Prompt) -> Recipe:
    """The recipe of a run."""
    return Recipe(
        model=config.engine.model,
        prompt_name=prompt.name,
        prompt=prompt.source,
        sampling=msgspec.to_builtins(config.sampling),
        image=msgspec.to_builtins(config.image),
        engine=_wording_flags(config.engine.engine_args),
    )


def record_recipe(root: Path, recipe: Recipe) -> str | None:
    """Add a recipe to the file of recipes.

    A damaged file is moved aside; returns a sentence about it.
    """
    path, note = root / RECIPES, None
    try:
        recipes = read_recipes(root)
    except RunStopped:
        path.replace(root / DAMAGED_RECIPES)
        note = f"{path} is damaged; it is now {DAMAGED_RECIPES}, and a new one replaces it"
        recipes = {}
    recipes[recipe.id] = recipe
    # The recipes of earlier runs could not be made again.
    content = msgspec.json.format(msgspec.json.encode(recipes), indent=2)
    write_file(path, content, sync_content=True)
    return note


def read_recipes(root: Path) -> dict[str, Recipe]:
    """Recipes by id; empty where there is no file of them. Raises RunStopped where it is damaged,
    OSError."""
    path = root / RECIPES
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Recipe])
    except FileNotFoundError:
        return {}
    except ValueError as error:  # msgspec's, or bytes that are not UTF-8
        raise RunStopped(f"{path} is damaged ({error}); move it away") from error


def _wording_flags(engine_args: tuple[str, ...]) -> dict[str, str]:
    flags = named_flags(engine_args).items()
    return {name: value for name, value in flags if name.partition(".")[0] in WORDING_FLAGS}
