"""The bundled sample and the bundled tiny model, for demonstration and tests only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MODEL_NAME: Final = "demo"
MODEL_DIR: Final = Path(__file__).parent / "model"
"""A Qwen2.5-VL of a few million parameters, in the form that vLLM and transformers load."""
SAMPLE_DIR: Final = Path(__file__).parent / "sample"


def resolve_model(name: str) -> str:
    """`demo` is the bundled model's folder; a folder is named by its whole path, since a worker may
    have another working directory; every other name is itself."""
    if name == MODEL_NAME:
        return str(MODEL_DIR)
    return str(Path(name).absolute()) if Path(name).is_dir() else name
