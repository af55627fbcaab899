"""Where a model is, and whether its files can be loaded at all; without importing vLLM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vllm_caption.demo import MODEL_DIR, MODEL_NAME
from vllm_caption.engine_flags import named_flags
from vllm_caption.engines.weights import Weights, read_weights
from vllm_caption.errors import UsageError
from vllm_caption.formatting import first_line

CONFIG_FILES: Final = ("config.json", "params.json")
WITHOUT_WEIGHTS: Final = "load_format"
"""The engine flag with which a folder may need no weights (dummy, streamed, …)."""
OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_HUB_TIMEOUT_S: Final = 5.0


def resolve_model(name: str) -> str:
    """`demo` is the bundled model. A folder becomes an absolute path, since a worker may have
    another working directory; any other name stays as it is."""
    if name == MODEL_NAME:
        return str(MODEL_DIR)
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def check_model_folder(model: str, engine_args: tuple[str, ...]) -> Weights | None:
    """The weights in a model's folder. None for a name on the Hub, and where none are needed.

    Raises UsageError for a folder that is missing, holds no model or only a part of one.
    """
    folder = Path(model)
    if not folder.exists():
        if model.startswith(("/", ".", "~")):
            raise UsageError(
                "--model", model, "there is no such folder; give a folder or a name on the Hub"
            )
        return None
    if not folder.is_dir():
        return None
    try:
        if not any((folder / name).is_file() for name in CONFIG_FILES):
            raise UsageError("--model", model, "holds no config.json, so it is not a model folder")
        if WITHOUT_WEIGHTS in named_flags(engine_args):
            return None
        weights = read_weights(folder)
    except OSError as error:
        raise UsageError("--model", model, f"cannot be read ({error.strerror})") from error
    if weights is None:
        raise UsageError("--model", model, "holds no weights (*.safetensors); complete the folder")
    return weights


def is_on_hub(model: str) -> bool:
    """Whether a name that is no folder would be looked for on the Hub of Hugging Face."""
    elsewhere = os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true")
    return "://" not in model and not elsewhere


def is_offline() -> bool:
    """Whether the user has forbidden to ask the Hub."""
    return any(os.environ.get(name, "").lower() in ("1", "on", "yes", "true") for name in OFFLINE)


def cached_folder(model: str, engine_args: tuple[str, ...]) -> Path | None:
    """Where the Hub's cache holds a model by this name, whole or in part; None where it does not.

    Without a network; vLLM's ``--revision`` and ``--download-dir`` count.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:  # it comes with vLLM
        return None
    flags = named_flags(engine_args)
    try:
        return Path(
            snapshot_download(
                model,
                revision=flags.get("revision"),
                cache_dir=flags.get("download_dir"),
                local_files_only=True,
            )
        )
    except (OSError, ValueError):  # not there, or no name that the Hub could have
        return None


def ask_hub(model: str, engine_args: tuple[str, ...]) -> Weights:
    """What the Hub says of a model's weights. Raises OSError where it does not answer."""
    from huggingface_hub import HfApi

    revision = named_flags(engine_args).get("revision")
    try:
        told = HfApi().model_info(model, revision=revision, timeout=_HUB_TIMEOUT_S).safetensors
    except Exception as error:  # whatever client the Hub's library uses, it has errors of its own
        raise OSError(first_line(error)) from error
    numbers = told.parameters if told else {}
    return Weights({dtype: count * _bytes_of(dtype) for dtype, count in numbers.items()})


def _bytes_of(dtype: str) -> int:
    """Bytes of one number of a safetensors type, as `BF16`, `I32` or `F8_E4M3`."""
    digits = dtype.partition("_")[0].lstrip("BFIU")
    return max(int(digits) // 8, 1) if digits.isdecimal() else 1
