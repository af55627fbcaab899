"""The bundled sample and the bundled tiny model, for demonstration and tests only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MODEL_NAME: Final = "demo"
MODEL_DIR: Final = Path(__file__).parent / "model"
"""A Qwen2.5-VL of a few million parameters, in the form that vLLM and transformers load."""


def resolve_model(name: str) -> str:
    """`demo` is the bundled model's folder; every other name is itself."""
    return str(MODEL_DIR) if name == MODEL_NAME else name
