"""Byte-identical images with the same prompt: one is captioned, the others get its caption.

A worker reports a key (of content and prompt text) once an image is read, before its caption is
generated, so no file is read twice. Pure state: no disk, no clock. Invariant: `end` returns every
twin that waits for a leader, exactly once, when the leader's own outcome is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, NamedTuple, Protocol

from vllm_caption.items import Item
from vllm_caption.messages import ImageFacts


class Twin(NamedTuple):
    """An item and the facts about its image."""

    item: Item
    image: ImageFacts


class Made(NamedTuple):
    """A finished caption: its file, and the hash of its text, which reveals edits. ``caption``: the
    text, if there is no .txt to read it from; ``structured``: the fields that it was made from, if
    any."""

    file: str
    text_hash: int
    caption: str | None = None
    structured: str | None = None


class Captions(Protocol):
    """Captions by key, as `store.earlier_captions` keeps them."""

    def get(self, key: bytes) -> Made | None:
        """The caption for this key; None if there is none."""


class Standing(NamedTuple):
    """The role of an image among its twins: to be captioned, waiting for another, or able to take
    the caption ``of`` another that is already on disk."""

    place: Literal["leads", "waits", "done"]
    of: Made | None = None


@dataclass(slots=True)
class Twins:
    """The twins of one run, including images that an earlier run captioned."""

    _earlier: Captions = field(default_factory=dict[bytes, Made])
    _made: dict[bytes, Made] = field(default_factory=dict)
    _waiting: dict[bytes, list[Twin]] = field(default_factory=dict)
    _led: dict[str, bytes] = field(default_factory=dict)

    def claim(self, twin: Twin) -> Standing:
        """An image was read; returns its role. A leader that is read again (a retry) remains the
        leader."""
        key, file = twin.image.twin_key, twin.item.file
        if self._led.get(file) == key:
            return Standing("leads")
        if key in self._waiting:
            self._waiting[key].append(twin)
            return Standing("waits")
        of = self._made.get(key) or self._earlier.get(key)
        if of is not None and of.file != file:  # a redo must not reuse its own old caption
            return Standing("done", of)
        self.lead(twin)
        return Standing("leads")

    def lead(self, twin: Twin) -> None:
        """This image is being captioned; later twins wait for it."""
        self._waiting[twin.image.twin_key] = []
        self._led[twin.item.file] = twin.image.twin_key

    def changed(self, twin: Twin) -> list[Twin]:
        """A leader was read again for a retry. If the content of its file has changed, it is no
        longer the leader; returns the twins that waited for it."""
        if self._led.get(twin.item.file, twin.image.twin_key) == twin.image.twin_key:
            return []
        return self.end(twin.item, None)

    def end(self, item: Item, made: Made | None) -> list[Twin]:
        """A leader's caption is on disk, or (None) it failed; returns the twins that waited."""
        key = self._led.pop(item.file, None)
        if key is None:
            return []
        if made is not None:
            self._made[key] = made
        return self._waiting.pop(key)


def twin_key(sha256: str, system: str | None, user: str) -> bytes:
    """A 16-byte hash of the file content and the prompt text."""
    text = "\0".join((sha256, system or "", user))
    return blake2b(text.encode(), digest_size=16).digest()
