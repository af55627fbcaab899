"""Where a model is, and whether its files can be loaded at all; without importing vLLM."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vllm_caption.demo import MODEL_DIR, MODEL_NAME
from vllm_caption.engine_flags import CONFIG_FILE, given_flags, named_flags
from vllm_caption.engines.weights import FLOATS, Weights, check_config, check_pointer, read_weights
from vllm_caption.errors import UsageError
from vllm_caption.formatting import first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CONFIG_FILES: Final = ("config.json", "params.json")
TOKENIZER: Final = "tokenizer.json"
WITHOUT_CONFIG: Final = frozenset({"hf_config_path", "config_format", CONFIG_FILE})
"""Engine flags with which a folder may need no config.json."""
WITHOUT_TOKENIZER: Final = frozenset(
    {"tokenizer", "tokenizer_mode", "skip_tokenizer_init", CONFIG_FILE}
)
"""Engine flags with which a folder's tokenizer.json may not be read."""
WITHOUT_WEIGHTS: Final = frozenset({"load_format", CONFIG_FILE})
"""Engine flags with which a folder may need no weights (dummy, streamed, …)."""
OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""The first one that is set counts, as in the Hub's library."""
_HUB_TIMEOUT_S: Final = 5.0
_HUB_PATIENCE_S: Final = 12.0
"""Limits what a connection timeout does not: name lookup, redirects, slow answers."""


def resolve_model(name: str) -> str:
    """`demo` is the bundled model. A folder becomes an absolute path, since a worker may have
    another working directory; any other name stays as it is."""
    if name == MODEL_NAME:
        return str(MODEL_DIR)
    return str(Path(name).absolute()) if os.path.isdir(name) else name  # noqa: PTH112 (never raises)


def needs_weights(engine_args: tuple[str, ...]) -> bool:
    """Whether an engine loads the weight files in a model's folder."""
    return WITHOUT_WEIGHTS.isdisjoint(given_flags(engine_args))


def check_model_folder(model: str, engine_args: tuple[str, ...]) -> Weights | None:
    """The weights in a model's folder; None for a name on the Hub, and if none are needed.

    Raises UsageError for a folder that is missing, or holds no model or only a part of one.
    """
    folder, given = Path(model), given_flags(engine_args)
    is_path = model.startswith(("/", ".", "~"))
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            return None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        if not is_path:
            return None
        remedy = "there is no such folder; give a folder or a name on the Hub"
        raise UsageError("--model", model, remedy) from None
    except OSError as error:
        if not is_path:  # such as a path that is too long
            return None
        raise UsageError("--model", model, f"cannot be read ({error.strerror})") from error
    try:
        if WITHOUT_CONFIG.isdisjoint(given):
            _check_config(folder)
        tokenizer = folder / TOKENIZER
        if WITHOUT_TOKENIZER.isdisjoint(given) and tokenizer.is_file():
            check_pointer(tokenizer)
        if not needs_weights(engine_args):
            return None
        weights = read_weights(folder)
    except OSError as error:
        raise UsageError("--model", model, f"cannot be read ({error.strerror})") from error
    if weights is None:
        raise UsageError("--model", model, "holds no weights (*.safetensors); complete the folder")
    return weights


def _check_config(folder: Path) -> None:
    path = next((path for name in CONFIG_FILES if (path := folder / name).is_file()), None)
    if path is None:
        remedy = "holds no config.json, so it is not a model folder"
        raise UsageError("--model", folder, remedy)
    check_config(path)


def is_on_hub(model: str) -> bool:
    """Whether vLLM would look on the Hugging Face Hub for a name that is not a folder. It would not
    for an address, or for what a plugin of vLLM may read (`REPOSITORY:QUANTISATION`, GGUF)."""
    elsewhere = os.environ.get("VLLM_USE_MODELSCOPE", "").strip().lower() in ("1", "true")
    return ":" not in model and not model.endswith(".gguf") and not elsewhere


def is_offline() -> bool:
    """Whether the user has forbidden access to the Hub."""
    said = next(filter(None, map(os.environ.get, OFFLINE)), "")
    return said.lower() in ("1", "on", "yes", "true")


def cached_folder(model: str, engine_args: tuple[str, ...]) -> Path | None:
    """The folder in the Hub's cache with this model, complete or not; None if there is none.

    Uses no network. Respects vLLM's ``--revision`` and, unless offline, ``--download-dir``.
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
                cache_dir=None if is_offline() else flags.get("download_dir"),
                local_files_only=True,
            )
        )
    except (OSError, ValueError):  # not there, or not a possible name on the Hub
        return None


def ask_hub(model: str, engine_args: tuple[str, ...]) -> Weights:
    """What the Hub reports of a model's weights. Raises FileNotFoundError if it has no such model,
    ConnectionError if it cannot be reached, and another OSError if it does not respond."""
    from huggingface_hub import HfApi

    told: list[Weights | OSError] = []

    def ask() -> None:
        try:
            flags = named_flags(engine_args)
            hub = HfApi(token=flags.get("hf_token") or None)
            told.append(_ask_hub(hub, model, flags.get("revision")))
        except OSError as error:
            told.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_PATIENCE_S)
    answer = told[0] if told else TimeoutError("the Hub does not answer")
    if isinstance(answer, OSError):
        raise answer
    return answer


def _ask_hub(hub: HfApi, model: str, revision: str | None) -> Weights:
    try:
        found = hub.model_info(model, revision=revision, timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # the HTTP client of the Hub's library has its own errors
        raise _kind_of(error)(first_line(error)) from error
    config: dict[str, Any] = found.config or {}
    if found.safetensors is None or any("Omni" in name for name in config.get("architectures", ())):
        return Weights({})  # unknown, or including parts that an engine for images leaves out
    counts = found.safetensors.parameters.items()
    by_dtype = {dtype: int(count * _bits_of(dtype)) // 8 for dtype, count in counts}
    return Weights(by_dtype, "quantization_config" in config and by_dtype.keys() <= FLOATS)


def _kind_of(error: Exception) -> type[OSError]:
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError | ValueError):  # the latter: an impossible name
        return FileNotFoundError
    names = {kind.__name__ for kind in type(error).__mro__}
    return OSError if names.isdisjoint(("ConnectError", "ConnectionError")) else ConnectionError


def _bits_of(dtype: str) -> int:
    """Bits per number of a safetensors type, such as `BF16`, `I32`, `F8_E4M3` or `F4`."""
    digits = dtype.partition("_")[0].lstrip("BFIU")
    return int(digits) if digits.isdecimal() else 8
