"""The file that `--json` names."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vllm_caption.errors import UsageError


def check_json_file(path: Path | None) -> None:
    """Raise UsageError before the work where the file could not be written after it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError("--json", path, "is in a folder that does not exist; create it first")


def write_json_file(path: Path | None, content: msgspec.Struct) -> None:
    """Write ``content`` there, indented; nothing without a path. Raises UsageError."""
    if path is None:
        return
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    except OSError as error:
        raise UsageError("--json", path, f"cannot be written ({error.strerror})") from error
