"""The files of a model's weights: how much memory they take, and whether they are complete.

Only headers are read, a few kilobytes of each file. The format is that of safetensors (eight bytes
of length, a JSON header, the data); files of other formats are counted by their size. The files are
those that vLLM's loader chooses (`--load-format auto`): Mistral's format before others, safetensors
before PyTorch's; files that an index does not list are left out.

Invariants: when in doubt, too little is counted rather than too much; only files that vLLM reads
are reported.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from vllm_caption.errors import UsageError

MISTRAL: Final = "consolidated*.safetensors"
SAFETENSORS: Final = "*.safetensors"
INDEX: Final = "model.safetensors.index.json"
MISTRAL_INDEX: Final = "consolidated.safetensors.index.json"
OTHER_FORMATS: Final = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.tensors")
NO_WEIGHTS: Final = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
)
"""A trainer's files, which vLLM skips."""
UNLOADED: Final = frozenset({"mtp", "talker", "token2wav", "code2wav", "audio_tower"})
"""Parts of models, as a weight's name begins, that an engine for images may leave out."""
LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"
MAX_HEADER_BYTES: Final = 100_000_000
"""The same limit as in safetensors."""
FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that an engine converts to its own precision."""
_DOWNLOAD: Final = "download the model again (hf download)"


class Weights(msgspec.Struct, frozen=True):
    """Bytes of the weights by type, as safetensors names it (`BF16`, `I32`, ...). Files of other
    formats count as `F32`, since too little is better than too much. ``packed_on_load``: whether
    config.json makes the engine quantise floats."""

    by_dtype: Mapping[str, int]
    packed_on_load: bool = False

    @property
    def stored_bytes(self) -> int:
        """The size on disk."""
        return sum(self.by_dtype.values())

    @property
    def are_floats(self) -> bool:
        """Whether most of them are floating-point numbers of 16 bits or more."""
        return 2 * sum(self.by_dtype.get(dtype, 0) for dtype in FLOATS) > self.stored_bytes

    def loaded_bytes(self, bytes_per_weight: float) -> int:
        """The size in memory, if each floating-point weight of 16 bits or more takes
        ``bytes_per_weight`` and everything else stays as it is stored."""
        return int(
            sum(
                num_bytes / width * bytes_per_weight if (width := _width(dtype)) else num_bytes
                for dtype, num_bytes in self.by_dtype.items()
            )
        )


def _width(dtype: str) -> int:
    """Bytes of a floating-point type that an engine converts; 0 for one that it keeps."""
    return int(dtype.lstrip("BF")) // 8 if dtype in FLOATS else 0


def read_weights(folder: Path) -> Weights | None:
    """The weights of a model folder; None if it holds none.

    Raises UsageError for a file that is missing, cut short, or only a pointer to the real one.
    """
    config = _read_config(folder)
    if files := _chosen_files(folder):
        tensors: dict[str, tuple[str, int]] = {}
        for path in files:
            tensors.update(_read_header(path))
        found: Counter[str] = Counter()
        for name, (dtype, num_bytes) in tensors.items():
            if _is_loaded(name, config):
                found[dtype] += num_bytes
        packed = "quantization_config" in config and found.keys() <= FLOATS
        return Weights(dict(found), packed)
    for pattern in OTHER_FORMATS:
        if others := _of_other_format(folder, pattern):
            for path in others:
                check_pointer(path)
            return Weights({"F32": sum(path.stat().st_size for path in others)})
    return None


def check_pointer(path: Path) -> None:
    """Raise UsageError if a Git LFS pointer is in place of the file."""
    try:
        if not path.is_file():  # opening a pipe would block
            raise UsageError("--model", path, f"is not a file, or is a broken link; {_DOWNLOAD}")
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError as error:
        raise UsageError("--model", path, f"cannot be read ({error.strerror})") from error
    if is_pointer:
        remedy = f"is a Git LFS pointer, not the file itself: run `git lfs pull`, or {_DOWNLOAD}"
        raise UsageError("--model", path, remedy)


def _chosen_files(folder: Path) -> list[Path]:
    """The safetensors files that vLLM loads; empty if it loads another format."""
    for pattern, index in ((MISTRAL, MISTRAL_INDEX), (SAFETENSORS, INDEX)):
        if files := sorted(folder.glob(pattern)):
            return _named_by_index(folder / index) or files
    if _of_other_format(folder, "*.bin") or _of_other_format(folder, "*.pt"):
        return []
    return _named_by_index(folder / INDEX)  # to report what is missing


def _of_other_format(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.glob(pattern) if not path.name.endswith(NO_WEIGHTS)]


def _named_by_index(path: Path) -> list[Path]:
    """The files that the index lists; empty without one."""
    folder = path.parent
    if not path.is_file():
        return []
    check_pointer(path)
    try:
        names = set(_decode(path.read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UsageError("--model", path, f"is damaged; {_DOWNLOAD}") from None
    files = [folder / str(name) for name in sorted(map(str, names))]
    if absent := [file.name for file in files if not file.exists()]:
        listed = f"{absent[0]}, one of {len(files)} files that its index lists"
        raise UsageError("--model", folder, f"lacks {listed}; {_DOWNLOAD}")
    return files


def _read_header(path: Path) -> dict[str, tuple[str, int]]:
    """Type and bytes of each tensor. Raises UsageError for an incomplete file."""
    check_pointer(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = _decode(file.read(length)) if length <= MAX_HEADER_BYTES else None
        spans = list(_spans(header.items() if header else ()))
    except OSError as error:
        raise UsageError("--model", path, f"cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, AttributeError):
        spans = []
    if not spans:
        remedy = f"is not a safetensors file, or its beginning is damaged; {_DOWNLOAD}"
        raise UsageError("--model", path, remedy)
    whole = 8 + length + max(end for _, _, _, end in spans)
    if size < whole:
        remedy = f"is cut short: {size:,} of {whole:,} bytes; {_DOWNLOAD}"
        raise UsageError("--model", path, remedy)
    return {name: (dtype, end - begin) for name, dtype, begin, end in spans}


def _spans(tensors: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str, int, int]]:
    for name, tensor in tensors:
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            yield name, str(tensor["dtype"]), int(begin), int(end)


def _is_loaded(name: str, config: Mapping[str, Any]) -> bool:
    """False for a weight that an engine may skip: of a part for other tasks, or of an output layer
    that shares the weights of the input layer."""
    if not UNLOADED.isdisjoint(name.split(".")[:3]):
        return False
    return not name.endswith("lm_head.weight") or _says_untied(config)


def _says_untied(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    parts = (config, text if isinstance(text, dict) else {})
    said = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
    return bool(said) and not any(said)


def check_config(path: Path) -> None:
    """Raise UsageError for a config.json that cannot be read."""
    check_pointer(path)
    try:
        json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise UsageError("--model", path, f"is damaged; {_DOWNLOAD}") from None


def num_attention_heads(folder: Path) -> int | None:
    """The attention heads of the language model in a folder; None if config.json does not say."""
    config = _read_config(folder)
    text = config.get("text_config", config)
    heads = text.get("num_attention_heads") if isinstance(text, dict) else None
    return heads if isinstance(heads, int) and heads > 0 else None


def _read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json; empty if it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))  # it may contain Infinity
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _decode(text: bytes) -> Any:
    return msgspec.json.decode(text)
