"""A model's weights as files: how many bytes they are in memory, and whether the files are whole.

Reads headers, never a weight: some kilobytes of each file. The format is safetensors' own (eight
bytes of length, a JSON header, the data); files of other formats are counted by their size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from vllm_caption.errors import UsageError

INDEX: Final = "model.safetensors.index.json"
SAFETENSORS: Final = "*.safetensors"
OTHER_FORMATS: Final = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.tensors")
LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"
MAX_POINTER_BYTES: Final = 1024
MAX_HEADER_BYTES: Final = 100_000_000
"""As in safetensors itself."""
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
_DOWNLOAD: Final = "download the model again (hf download)"


class Weights(msgspec.Struct, frozen=True):
    """Bytes of the weights by safetensors' name of their type (`BF16`, `I32`, ...). In files of
    other formats they are taken for `F32`, so that too little is counted rather than too much."""

    by_dtype: Mapping[str, int]

    @property
    def stored_bytes(self) -> int:
        """On disk."""
        return sum(self.by_dtype.values())

    def loaded_bytes(self, bytes_per_weight: float) -> int:
        """In memory, where floating-point weights of 16 bits or more are held in so many bytes each
        and everything else as it is stored."""
        return int(
            sum(
                num_bytes / width * bytes_per_weight if (width := _width(dtype)) else num_bytes
                for dtype, num_bytes in self.by_dtype.items()
            )
        )


def _width(dtype: str) -> int:
    """Bytes of a floating-point type that an engine converts; 0 for one that it keeps."""
    return int(dtype.lstrip("BF")) // 8 if dtype in _FLOATS else 0


def read_weights(folder: Path) -> Weights | None:
    """The weights of a model folder; None where it holds none.

    Raises UsageError for a file that is missing, cut short, or only a pointer to the real one.
    """
    for path in sorted(folder.iterdir()):
        _check_pointer(path)
    files = _named_by_index(folder) or _unlisted(folder)
    if files:
        found: Counter[str] = Counter()
        for path in files:
            found.update(_read_header(path))
        return Weights(dict(found))
    for pattern in OTHER_FORMATS:
        if others := list(folder.glob(pattern)):
            return Weights({"F32": sum(path.stat().st_size for path in others)})
    return None


def _unlisted(folder: Path) -> list[Path]:
    """The safetensors files of a folder without an index; as in vLLM, a second copy in Mistral's
    format does not count."""
    files = sorted(folder.glob(SAFETENSORS))
    return [path for path in files if not path.name.startswith("consolidated")] or files


def _check_pointer(path: Path) -> None:
    try:
        if not path.is_file() or path.stat().st_size > MAX_POINTER_BYTES:
            return
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError as error:
        raise UsageError("--model", path, f"cannot be read ({error.strerror})") from error
    if is_pointer:
        remedy = f"is a Git LFS pointer, not the file itself: run `git lfs pull`, or {_DOWNLOAD}"
        raise UsageError("--model", path, remedy)


def _named_by_index(folder: Path) -> list[Path]:
    """The files that the index lists; empty without one."""
    path = folder / INDEX
    if not path.is_file():
        return []
    try:
        names = set(_decode(path.read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UsageError("--model", path, f"is damaged; {_DOWNLOAD}") from None
    files = [folder / str(name) for name in sorted(names)]
    if absent := [file.name for file in files if not file.exists()]:
        listed = f"{absent[0]}, one of {len(files)} files that its index lists"
        raise UsageError("--model", folder, f"lacks {listed}; {_DOWNLOAD}")
    return files


def _read_header(path: Path) -> dict[str, int]:
    """Bytes by type. Raises UsageError for a file that is not whole."""
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
        remedy = f"is no safetensors file, or its beginning is damaged; {_DOWNLOAD}"
        raise UsageError("--model", path, remedy)
    whole = 8 + length + max(end for _, _, end in spans)
    if size < whole:
        remedy = f"is cut short: {size:,} of {whole:,} bytes; {_DOWNLOAD}"
        raise UsageError("--model", path, remedy)
    found: Counter[str] = Counter()
    for dtype, begin, end in spans:
        found[dtype] += end - begin
    return dict(found)


def _spans(tensors: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, int, int]]:
    for name, tensor in tensors:
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            yield str(tensor["dtype"]), int(begin), int(end)


def _decode(text: bytes) -> Any:
    return msgspec.json.decode(text)
