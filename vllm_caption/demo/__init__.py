"""The bundled sample and the bundled tiny model, only for demonstrations and tests."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MODEL_NAME: Final = "demo"
MODEL_DIR: Final = Path(__file__).parent / "model"
"""A Qwen2.5-VL with a few million parameters, in the format that vLLM and transformers load."""
SAMPLE_DIR: Final = Path(__file__).parent / "sample"
