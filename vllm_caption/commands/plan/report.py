"""The plan of a run as one structure: ``plan --json`` writes it, and its text is made from it.

docs/plan.md explains every field. Sizes are in bytes or pixels, times in hours; None: not known.
Invariant: ``items.total`` = ``items.done`` + ``items.to_caption`` + the counts of
``items.problems``.
"""

from __future__ import annotations

from typing import Final

import msgspec

VERSION: Final = 1
"""Changes when a field changes its name or its meaning, not when a field is added."""


class Problem(msgspec.Struct, frozen=True):
    """One kind of problem: how often it occurs, and the first few as sentences."""

    kind: str
    count: int
    examples: list[str]


class Documents(msgspec.Struct, frozen=True):
    """The manifests. ``complete``: False when ``--limit`` stopped the reading."""

    read: int
    skipped: int
    without_shapes: int
    complete: bool
    problems: list[Problem]


class ElementType(msgspec.Struct, frozen=True):
    """One element type, as spelled; ``items``: distinct files that such an element named first."""

    name: str
    elements: int
    skipped: int
    items: int


class Items(msgspec.Struct, frozen=True):
    """The items, as a run counts them. ``done`` includes ``adopted`` (a .txt without a record),
    ``adopted_before``, ``edited`` (a .txt that somebody changed), ``stale`` (made with another
    recipe) and ``restored`` (the .txt is gone, and is written again from its row). Of those to
    caption, ``gone`` have lost their .txt too, ``redone`` have a caption that ``--redo`` replaces,
    and ``failed_before`` counts earlier failures by kind. ``spared``: captions that people wrote
    and that only ``--overwrite-edited`` replaces."""

    references: int
    duplicates: int
    total: int
    done: int
    adopted: int
    adopted_before: int
    edited: int
    stale: int
    restored: int
    spared: int
    to_caption: int
    gone: int
    redone: int
    failed_before: dict[str, int]
    problems: list[Problem]


class Size(msgspec.Struct, frozen=True):
    """Width × height of one image."""

    width: int
    height: int


class Sizes(msgspec.Struct, frozen=True):
    """Of all images, sorted by width × height."""

    smallest: Size
    median: Size
    largest: Size


class VisionTokens(msgspec.Struct, frozen=True):
    """Tokens of images in the prompt, by Qwen2.5-VL's rule."""

    min: int
    median: int
    mean: float
    max: int
    total: int


class TwinFiles(msgspec.Struct, frozen=True):
    """Byte-identical ``files`` form ``groups``; ``saved`` of them take the caption of a twin,
    because they have the same prompt too."""

    groups: int
    files: int
    saved: int


class Images(msgspec.Struct, frozen=True):
    """The files of the items to caption. ``equal_size`` files have the same number of bytes as
    another one: no others can be twins. The fields after it need ``--images``."""

    opened: bool
    found: int
    bytes: int
    equal_size: int
    sizes: Sizes | None = None
    vision_tokens: VisionTokens | None = None
    backdrops: dict[str, int] = {}
    twins: TwinFiles | None = None


class Time(msgspec.Struct, frozen=True):
    """``images`` reach an engine: the items to caption without the saved twins. ``images_per_s``
    is of one engine; ``source`` says where it comes from."""

    images: int
    engines: int
    gpus_per_engine: int
    images_per_s: float | None
    source: str | None
    wall_hours: float | None
    gpu_hours: float | None


class Disk(msgspec.Struct, frozen=True):
    """What the run will write, and what is free at ``path``, the nearest existing folder of the
    output. ``bytes_free`` is None where the file system does not say, ``inodes_free`` also where it
    has no such limit; what is not known fits."""

    path: str
    caption_bytes: int
    manifest_bytes: int
    bytes_needed: int
    bytes_free: int | None
    inodes_needed: int
    inodes_free: int | None
    fits: bool


class Plan(msgspec.Struct, frozen=True):
    """What a run with the same flags would do now."""

    version: int
    output: str
    model: str
    prompt: str
    recipe_id: str
    no_type_was_skipped: bool
    documents: Documents
    element_types: list[ElementType]
    items: Items
    images: Images
    time: Time
    disk: Disk
    seconds: float


class Problems:
    """Counts problems by kind as they are found; keeps the first ``EXAMPLES`` of each."""

    EXAMPLES: Final = 3

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    @property
    def count(self) -> int:
        """Problems of all kinds."""
        return sum(self._counts.values())

    def add(self, kind: str, example: str) -> None:
        """One more."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        shown = self._examples.setdefault(kind, [])
        if len(shown) < self.EXAMPLES:
            shown.append(example)

    def listed(self) -> list[Problem]:
        """The most frequent kind first."""
        kinds = sorted(self._counts, key=lambda kind: (-self._counts[kind], kind))
        return [Problem(kind, self._counts[kind], self._examples[kind]) for kind in kinds]
