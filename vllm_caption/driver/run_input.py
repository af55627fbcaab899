"""The input of an output folder's last run, recorded there so that `verify` and `export` need only
``--output``.

Invariant: the command line wins; a command that names another input takes nothing from the last
run.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from vllm_caption.config import InputConfig, is_remote
from vllm_caption.formatting import encodable_name, flag_of, printable
from vllm_caption.images.object_store import recorded_root
from vllm_caption.store.layout import INPUT, state_folders

NAME_AN_INPUT: Final = ("input", "jsons", "json_detail")
_PATHS: Final = (*NAME_AN_INPUT, "images_root")
_COLUMNS: Final = ("image_column", "id_column", "type_column")


def encode_input(config: InputConfig) -> bytes:
    """The content of the file: the flags that name the input, by their names, with absolute paths;
    not those that select a part of it."""
    folders = ("jsons", "json_detail") if config.input is None else ("input",)
    paths = {name: os.path.abspath(getattr(config, name)) for name in folders}  # noqa: PTH100
    columns = {name: value for name in _COLUMNS if (value := getattr(config, name)) is not None}
    root = {"images_root": recorded_root(config.images_root)}
    values = paths | root | columns | {"skip_types": config.skip_types}
    return json.dumps(values, indent=2).encode()  # as \udcff, what is not UTF-8 in a name


def as_in_last_run(
    values: Mapping[str, Any], named: Collection[str], root: Path
) -> tuple[dict[str, Any], str]:
    """The values of a command line, with those that it does not name taken from the last run of
    ``root``; and a line about the paths that were taken, empty if there are none."""
    kept = {} if not set(NAME_AN_INPUT).isdisjoint(named) else _decode(_recorded(root))
    taken = {name: value for name, value in kept.items() if name not in named}
    flags = [f"{flag_of(name)}={shlex.quote(str(taken[name]))}" for name in _PATHS if name in taken]
    return {**values, **taken}, f"As in the last run: {' '.join(flags)}" if flags else ""


def other_input(config: InputConfig, folder: Path) -> str:
    """The path that the last run of a folder captioned, if it is not that of this run; else
    empty."""
    try:
        kept = _decode((folder / INPUT).read_bytes())
    except FileNotFoundError:
        return ""
    name = "input" if "input" in kept else "jsons"
    path, ours = kept.get(name), getattr(config, "jsons" if config.input is None else "input")
    if path is None or os.path.realpath(path) == os.path.realpath(ours):
        return ""
    near = os.path.relpath(path)
    return printable(encodable_name(os.fspath(path) if near.startswith("..") else near))


def common_input(root: Path, folders: Iterable[Path]) -> bytes | None:
    """The content of the file for a folder that has none yet, and into which others are merged, if
    the last runs of all of these had the same input."""
    found = [_recorded(folder) for folder in folders]
    inputs = [_decode(content) for content in found]
    is_one = bool(inputs) and all(one == inputs[0] != {} for one in inputs)
    return found[0] if is_one and not _recorded(root) else None


def _recorded(root: Path) -> bytes:
    """What the last run of the folder, or of one of its shards, recorded; empty if nothing."""
    try:
        files = [folder / INPUT for folder in state_folders(root)]
        newest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_mtime)
        return newest.read_bytes()
    except (OSError, ValueError):
        return b""


def _decode(content: bytes) -> dict[str, Any]:
    """The values; empty if a run did not write them."""
    try:
        kept = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(kept, dict):
        return {}
    texts = {name: kept[name] for name in (*_PATHS, *_COLUMNS) if isinstance(kept.get(name), str)}
    paths = {k: v if is_remote(v) else Path(v) for k, v in texts.items() if k in _PATHS}
    types = kept.get("skip_types")
    return texts | paths | ({"skip_types": tuple(types)} if isinstance(types, list) else {})
