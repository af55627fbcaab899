"""The plan of a run as one structure: ``plan --json`` writes it, and its text is made from it.

Sizes are in bytes or pixels, times in the unit of their name. None (null in the JSON) is not known,
unless a field says otherwise.
Invariant: ``items.total`` = ``items.done`` + ``items.to_caption`` + the counts of
``items.problems``.
"""

from __future__ import annotations

from typing import Final

import msgspec

from vllm_caption.cost import Costs
from vllm_caption.inputs.source import Nouns

VERSION: Final = 1
"""Changes when a field changes its name or its meaning, not when a field is added."""


class Problem(msgspec.Struct, frozen=True):
    """One kind of problem: its ``kind`` as in the manifest or in documents.parquet, the ``count``
    of its cases, and the first three ``examples`` as sentences. Lists begin with the most
    frequent."""

    kind: str
    count: int
    examples: list[str]


class Documents(msgspec.Struct, frozen=True):
    """Documents that are ``read`` and, of these, ``skipped``, by their ``problems``;
    ``without_items``: without an element to caption. ``left_out``: files that are not named like
    an image, by ending. ``complete`` is false if ``--limit`` ended the reading."""

    read: int
    skipped: int
    without_items: int
    left_out: dict[str, int]
    complete: bool
    problems: list[Problem]


class ElementType(msgspec.Struct, frozen=True):
    """One element type by its ``name`` as spelled: its ``elements``, those ``skipped`` by
    ``--skip-types``, and ``items``, the distinct files that such an element named first."""

    name: str
    elements: int
    skipped: int
    items: int


class Items(msgspec.Struct, frozen=True):
    """The items, as a run counts them. ``references`` are the elements that name an image,
    ``duplicates`` those of them that name one that came before, and ``total`` the others.

    ``done`` includes ``adopted`` (a .txt that has no row yet), ``adopted_before`` (one that has a
    row), ``edited`` (a .txt that differs from its row), ``stale`` (made with another recipe;
    ``stale_made_with``: how many by what is different) and
    ``restored`` (the .txt is missing or blank, and is written again from its row). ``spared``:
    edited and adopted captions that only ``--overwrite-edited`` replaces.

    ``to_caption`` includes ``gone`` (the .txt is missing or blank, and its row is of another
    recipe), ``redone`` (has a caption that ``--redo`` replaces), and earlier failures, which
    ``failed_before`` counts by kind. ``problems``: what will fail."""

    references: int
    duplicates: int
    total: int
    done: int
    adopted: int
    adopted_before: int
    edited: int
    stale: int
    stale_made_with: dict[str, int]
    restored: int
    spared: int
    to_caption: int
    gone: int
    redone: int
    failed_before: dict[str, int]
    problems: list[Problem]


class Size(msgspec.Struct, frozen=True):
    """``width`` × ``height`` of one image."""

    width: int
    height: int


class Sizes(msgspec.Struct, frozen=True):
    """The ``smallest``, ``median`` and ``largest`` of all images, by area."""

    smallest: Size
    median: Size
    largest: Size


class VisionTokens(msgspec.Struct, frozen=True):
    """Tokens of the images in the prompt, by Qwen2.5-VL's rule: ``min``, ``median``, ``mean`` and
    ``max`` of one image, and the ``total``."""

    min: int
    median: int
    mean: float
    max: int
    total: int


class TwinFiles(msgspec.Struct, frozen=True):
    """Byte-identical ``files`` form ``groups``; ``saved`` of them copy the caption of another,
    because they have the same prompt too."""

    groups: int
    files: int
    saved: int


class Images(msgspec.Struct, frozen=True):
    """The files of the items to caption: how many are ``found``, and their ``bytes``.
    ``equal_size`` have the same number of bytes as another one: no others can be twins. Without
    ``dedup``, twins are captioned separately.

    The rest is known only where they were ``opened`` (``--images``): their ``sizes``,
    ``vision_tokens``, ``backdrops`` (images by backdrop) and ``twins``."""

    opened: bool
    found: int
    bytes: int
    equal_size: int
    dedup: bool = True
    sizes: Sizes | None = None
    vision_tokens: VisionTokens | None = None
    backdrops: dict[str, int] = {}
    twins: TwinFiles | None = None


class Time(msgspec.Struct, frozen=True):
    """``images`` reach an engine: the items to caption without the saved twins. ``engines`` of
    ``gpus_per_engine`` GPUs each caption ``images_per_s`` apiece, which ``source`` explains; that
    takes ``wall_hours``, and ``gpu_hours`` of all GPUs together; ``costs``: with
    --gpu-hour-price, of these and of earlier runs; what needs the speed is null without one."""

    images: int
    engines: int
    gpus_per_engine: int
    images_per_s: float | None
    source: str | None
    wall_hours: float | None
    gpu_hours: float | None
    costs: Costs | None = None


class Disk(msgspec.Struct, frozen=True):
    """``caption_bytes`` and ``manifest_bytes`` make the ``bytes_needed``; ``inodes_needed`` are
    files and folders. ``bytes_free`` and ``inodes_free`` are those at ``path``, the nearest folder
    of the output that exists: None where the file system does not say, or has no such limit. It
    ``fits`` unless a number says otherwise; ``writable``: a run may create files there."""

    path: str
    caption_bytes: int
    manifest_bytes: int
    bytes_needed: int
    bytes_free: int | None
    inodes_needed: int
    inodes_free: int | None
    fits: bool
    writable: bool


class Plan(msgspec.Struct, frozen=True):
    """What a run with the same flags would do now: the ``version`` of these fields, the ``command``
    that starts it, the ``output``, ``model``, ``prompt`` and ``recipe_id`` that it would use, and
    its ``documents``, ``element_types``, ``items``, ``images``, ``time`` and ``disk``.

    ``holder``: the run that is at work in the output, in words. ``nouns``: what a
    ``document`` and an ``element`` are called in this kind of input. ``images_root``: below which
    the names of images are looked for. ``unmatched_files``: names of ``--redo-file`` that no item
    has.

    ``no_type_was_skipped``: no element has a type of ``--skip-types``, so the names may differ.
    ``seconds``: that the plan took."""

    version: int
    command: str
    output: str
    images_root: str
    unmatched_files: list[str]
    holder: str | None
    model: str
    prompt: str
    recipe_id: str
    no_type_was_skipped: bool
    nouns: Nouns
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
