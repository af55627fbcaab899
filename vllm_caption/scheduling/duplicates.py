"""Byte-identical images with the same prompt: one is captioned, the others get its caption.

A worker reports a key (content and prompt text) once an image is read, before it is generated, so
no file is read twice. Pure state: no disk, no clock. Invariant: whoever waits for a leader is
handed out by `end` when the leader's own end is known, exactly once.
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
    """A caption that was made: its file, and the hash of its text, by which an edit is seen;
    ``caption``: the text, where there is no .txt to read it from; ``structured``: the fields that
    it was made of, if any."""

    file: str
    text_hash: int
    caption: str | None = None
    structured: str | None = None


class Captions(Protocol):
    """Captions by key, as `store.earlier_captions` keeps them."""

    def get(self, key: bytes) -> Made | None:
        """The caption that answers this key; None when there is none."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What an image is among its twins: the one to caption, one that waits, or one that can have
    the caption ``of`` another, which is on disk."""

    place: Literal["leads", "waits", "done"]
    of: Made | None = None


@dataclass(slots=True)
class Twins:
    """The twins of one run, including those that an earlier run captioned."""

    _earlier: Captions = field(default_factory=dict[bytes, Made])
    _made: dict[bytes, Made] = field(default_factory=dict)
    _waiting: dict[bytes, list[Twin]] = field(default_factory=dict)
    _led: dict[str, bytes] = field(default_factory=dict)

    def claim(self, twin: Twin) -> Standing:
        """An image was read. A leader that is read again (a retry) stays the leader."""
        key, file = twin.image.twin_key, twin.item.file
        if self._led.get(file) == key:
            return Standing("leads")
        if key in self._waiting:
            self._waiting[key].append(twin)
            return Standing("waits")
        of = self._made.get(key) or self._earlier.get(key)
        if of is not None and of.file != file:  # its own caption is not a new one
            return Standing("done", of)
        self.lead(twin)
        return Standing("leads")

    def lead(self, twin: Twin) -> None:
        """This image is captioned; later twins wait for it."""
        self._waiting[twin.image.twin_key] = []
        self._led[twin.item.file] = twin.image.twin_key

    def changed(self, twin: Twin) -> list[Twin]:
        """A leader was read again, for a further try: if its file has another content now, it
        leads nobody any more; returns who waited for it."""
        if self._led.get(twin.item.file, twin.image.twin_key) == twin.image.twin_key:
            return []
        return self.end(twin.item, None)

    def end(self, item: Item, made: Made | None) -> list[Twin]:
        """A leader's caption is on disk, or (None) it failed; returns who waited for it."""
        key = self._led.pop(item.file, None)
        if key is None:
            return []
        if made is not None:
            self._made[key] = made
        return self._waiting.pop(key)


def twin_key(sha256: str, system: str | None, user: str) -> bytes:
    """16 bytes that are equal for the same file content and the same prompt text."""
    text = "\0".join((sha256, system or "", user))
    return blake2b(text.encode(), digest_size=16).digest()
