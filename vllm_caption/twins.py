"""Byte-identical images that are asked the same: one is captioned, the others get its caption.

A worker reports a key (content and prompt text) once an image is read, before it is generated, so
no file is read twice. Pure state: no disk, no clock. Invariant: whoever waits for a leader is
handed out by `end` when the leader's own end is known, exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from vllm_caption.manifest import Item


@dataclass(frozen=True, slots=True)
class Standing:
    """What an image is among its twins: the one to caption, one that waits, or one that can have
    the caption of ``of``, which is on disk."""

    place: Literal["leads", "waits", "done"]
    of: str = ""


@dataclass(slots=True)
class Twins:
    """The twins of one run."""

    _made: dict[bytes, str] = field(default_factory=dict)
    _waiting: dict[bytes, list[Item]] = field(default_factory=dict)
    _led: dict[str, list[bytes]] = field(default_factory=dict)

    def claim(self, key: bytes, item: Item) -> Standing:
        """An image was read. Asking again for a leader (a retry) leaves it the leader."""
        if key in self._made:
            return Standing("done", self._made[key])
        if key not in self._waiting:
            self._waiting[key] = []
            self._led.setdefault(item.file, []).append(key)
        elif key not in self._led.get(item.file, ()):
            self._waiting[key].append(item)
            return Standing("waits")
        return Standing("leads")

    def end(self, item: Item, *, captioned: bool) -> list[Item]:
        """A leader's caption is on disk, or it failed; returns who waited for it."""
        waited: list[Item] = []
        for key in self._led.pop(item.file, ()):
            waited += self._waiting.pop(key)
            if captioned:
                self._made[key] = item.file
        return waited

    def forget(self, key: bytes) -> None:
        """The caption that twins were to get is not there any more."""
        self._made.pop(key, None)


def twin_key(sha256: str, system: str | None, user: str) -> bytes:
    """16 bytes that are equal for the same file content and the same prompt text."""
    text = "\0".join((sha256, system or "", user))
    return blake2b(text.encode(), digest_size=16).digest()
