"""Where a model is, and whether a local one can be loaded at all; without importing vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vllm_caption.demo import MODEL_DIR, MODEL_NAME
from vllm_caption.engine_flags import given_flags
from vllm_caption.errors import UsageError

CONFIG_FILES: Final = ("config.json", "params.json")
WEIGHT_PATTERNS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.tensors")
WITHOUT_WEIGHTS: Final = "load_format"
"""The engine flag with which a folder may need no weights (dummy, streamed, …)."""


def resolve_model(name: str) -> str:
    """`demo` is the bundled model. A folder becomes an absolute path, since a worker may have
    another working directory; any other name stays as it is."""
    if name == MODEL_NAME:
        return str(MODEL_DIR)
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def check_model_folder(model: str, engine_args: tuple[str, ...]) -> None:
    """Raise UsageError for a folder that is missing or holds no model; names on the Hub pass."""
    folder = Path(model)
    if not folder.exists():
        if model.startswith(("/", ".", "~")):
            raise UsageError(
                "--model", model, "there is no such folder; give a folder or a name on the Hub"
            )
        return
    if not folder.is_dir():
        return
    if not any((folder / name).is_file() for name in CONFIG_FILES):
        raise UsageError("--model", model, "holds no config.json, so it is not a model folder")
    if WITHOUT_WEIGHTS in given_flags(engine_args):
        return
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_PATTERNS):
        raise UsageError("--model", model, "holds no weights (*.safetensors); complete the folder")
