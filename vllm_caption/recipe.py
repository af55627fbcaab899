"""What made a caption: everything that changes the words, under one short id.

Speed settings (engines, sequences, memory) are left out on purpose: they do not change a recipe.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from vllm_caption.config import RunConfig
from vllm_caption.prompts import Prompt

WORDING_FLAGS = ("dtype", "hf_overrides", "quantization", "revision", "tokenizer")
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


def record_recipe(root: Path, recipe: Recipe) -> None:
    """Add a recipe to recipes.json, which is replaced whole."""
    path = root / "recipes.json"
    recipes = read_recipes(root)
    recipes[recipe.id] = recipe
    temporary = root / ".recipes.json.tmp"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(recipes), indent=2))
    temporary.replace(path)


def read_recipes(root: Path) -> dict[str, Recipe]:
    """recipes.json; empty where there is none."""
    path = root / "recipes.json"
    if not path.exists():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Recipe])


def _wording_flags(engine_args: tuple[str, ...]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    following = (*engine_args, "")[1:]
    for flag, value in zip(engine_args, following, strict=True):
        name, _, inline = flag.partition("=")
        key = name.lstrip("-").replace("-", "_")
        if name.startswith("--") and key in WORDING_FLAGS:
            chosen[key] = inline or value
    return chosen
