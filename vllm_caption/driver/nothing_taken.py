"""The likeliest cause if nothing in an input can be captioned, as a UsageError.

A million items that fail one by one, and a run over nothing that succeeds, have the same cause: a
wrong folder.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from vllm_caption.config import MAX_ENTRIES, InputConfig, held_in, is_folder, is_remote
from vllm_caption.errors import UsageError
from vllm_caption.formatting import counted, printable, tally
from vllm_caption.images.object_store import public_root
from vllm_caption.inputs.choice import open_source
from vllm_caption.inputs.designs import document_names
from vllm_caption.inputs.documents import SUFFIX
from vllm_caption.inputs.reader import InputCounts
from vllm_caption.items import BadEntry, SkippedDocument

MAX_PARENTS: Final = 4


# --- no item at all ------------------------------------------------------------------------------


class Unusable:
    """What a pass over the input could not take: counts, and the first of each."""

    def __init__(self) -> None:
        self.documents: Counter[str] = Counter()
        self.first_document: SkippedDocument | None = None
        self.first_entry: BadEntry | None = None

    def add(self, entry: SkippedDocument | BadEntry) -> None:
        """Count one more."""
        if isinstance(entry, BadEntry):
            self.first_entry = self.first_entry or entry
            return
        self.documents[entry.kind] += 1
        self.first_document = self.first_document or entry

    def check(self, config: InputConfig, counts: InputCounts) -> None:
        """Raise UsageError if the whole input was read and has no item. For a shard, the items of
        other shards count, too. Elements that name no file are failed items, unless the folders are
        mixed up."""
        if counts.references == counts.bad_entries:
            cause = _mixed_up_folders(config) or self._cause(config, counts)
            if cause is not None:
                raise cause

    def _cause(self, config: InputConfig, counts: InputCounts) -> UsageError | None:
        if self.first_entry is not None:
            return None
        is_empty = counts.skipped == counts.documents or (config.input and not counts.elements)
        if self.first_document is not None and is_empty:
            return self._no_document(config, self.first_document)
        if config.patterns:
            remedy = "no item has such a name; give the `file` of its row, or a pattern"
            return UsageError("--redo-file", " ".join(map(printable, config.patterns)), remedy)
        if counts.elements:
            types = tally(Counter({name or "(empty)": n for name, n in _types(counts)}))
            remedy = f"leaves nothing to caption: the elements are {types}"
            return UsageError("--skip-types", ",".join(config.skip_types), remedy)
        return open_source(config).empty_error()

    def _no_document(self, config: InputConfig, first: SkippedDocument) -> UsageError:
        if config.input is not None:
            return UsageError("--input", config.input, f"{first.document}: {first.reason}")
        number = counted(self.documents.total(), "design")
        if set(self.documents) == {"missing_detail"}:
            wanted = printable(f"{first.document}{SUFFIX}")
            remedy = f"has no file for any of the {number} of --jsons, such as {wanted}"
            held = held_in(config.json_detail)
            return UsageError("--json-detail", config.json_detail, f"{remedy}; it holds {held}")
        reasons = f"{tally(self.documents)}, e.g. {printable(first.document)}: {first.reason}"
        remedy = f"none of its {number} can be taken: {reasons}"
        return UsageError("--jsons", config.jsons, remedy)


def _types(counts: InputCounts) -> list[tuple[str, int]]:
    return [(printable(name), number) for name, number in counts.elements_by_type.most_common(5)]


def _mixed_up_folders(config: InputConfig) -> UsageError | None:
    """Equal or swapped folders, as seen in the first document."""
    if config.input is not None:
        return None
    if config.jsons.samefile(config.json_detail):
        remedy = "is the folder of --jsons; name the one with the details (`types`) of each NAME"
        return UsageError("--json-detail", config.json_detail, remedy)
    name = document_names(config.jsons)[0] + SUFFIX
    design, detail = _object(config.jsons / name), _object(config.json_detail / name)
    if "types" in design and detail and "types" not in detail:
        remedy = f"holds the details (`types`), and --json-detail {config.json_detail} the"
        return UsageError("--jsons", config.jsons, f"{remedy} designs: swap the two")
    return None


def _object(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            return {}
        content = msgspec.json.decode(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


# --- no image ------------------------------------------------------------------------------------


def no_image(images_root: Path | str, files: Sequence[str]) -> UsageError:
    """None of the first items has an image: report one path that was tried, and similar ones."""
    root, file = public_root(images_root), files[0]
    tried = f"{counted(len(files), 'path')} tried, the first is {root}/{printable(file)}"
    what = f"none of the first images is there ({tried})"
    if is_remote(images_root):
        return UsageError("--images-root", root, f"{what}; name the prefix that `file` starts from")
    for other in _other_roots(Path(images_root), file):
        if os.path.exists(other / file):  # noqa: PTH110 (never raises)
            remedy = f"{other}/{printable(file)} is there: use --images-root {other}"
            return UsageError("--images-root", root, f"{what}; {remedy}")
    near = next(filter(is_folder, Path(images_root, file).parents))
    return UsageError("--images-root", root, f"{what}; {near} is there and holds {held_in(near)}")


def _other_roots(root: Path, file: str) -> Iterator[Path]:
    """Roots that the user may have meant: above this one, in it, or without a part of the names."""
    absolute = root.absolute()
    yield from list(absolute.parents)[:MAX_PARENTS]
    try:
        with os.scandir(absolute) as entries:
            for entry, _ in zip(entries, range(MAX_ENTRIES), strict=False):
                if entry.is_dir():
                    yield Path(entry.path)
    except OSError:
        return
