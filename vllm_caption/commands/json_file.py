"""The file that `--json` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vllm_caption.commands.target import check_target
from vllm_caption.errors import UsageError


def check_json_file(path: Path | None) -> None:
    """Raise UsageError before the work where the file could not be written after it."""
    if path is not None:
        check_target("--json", path)


def encode_json(content: msgspec.Struct) -> bytes:
    """``content``, indented; bytes of a file name that are not UTF-8 are escaped."""
    try:
        encoded = msgspec.json.encode(content)
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(_readable(msgspec.to_builtins(content)))
    return msgspec.json.format(encoded, indent=2)


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list) else value


def write_json_file(path: Path | None, content: msgspec.Struct) -> None:
    """Write ``content`` there, indented; nothing without a path. Raises UsageError."""
    if path is None:
        return
    try:
        path.write_bytes(encode_json(content) + b"\n")
    except OSError as error:
        raise UsageError("--json", path, f"cannot be written ({error.strerror})") from error
