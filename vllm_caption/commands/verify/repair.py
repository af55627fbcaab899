"""``--repair``: rows from .txt files, and .txt files from rows.

Invariants: the folder's lock is held; a .txt that holds a caption is neither changed nor deleted;
everything goes through `output`, so a row implies a file here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from vllm_caption.commands.verify.records import read_captions
from vllm_caption.commands.verify.verdict import ItemKind
from vllm_caption.driver.row_maker import adopted
from vllm_caption.errors import ItemError
from vllm_caption.items import Item
from vllm_caption.store.output import Output
from vllm_caption.store.rows import hash_of


class _Wanted(NamedTuple):
    kind: ItemKind
    caption_hash: int


class Repair:
    """Repairs one output folder, which ``output`` holds."""

    def __init__(self, output: Output, images_root: str) -> None:
        self._output = output
        self.files = output.files
        self._images_root = images_root
        self._run_id = f"verify-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        self._wanted: dict[str, _Wanted] = {}

    def adopt(self, item: Item, text: str) -> None:
        """The .txt counts: a new row with its text, of unknown recipe."""
        naming = self.files.naming
        self._output.save_row(adopted(item, text, self._images_root, self._run_id, naming))

    def restore_later(self, kind: ItemKind, file: str, caption_hash: int) -> None:
        """The row counts: `restore` writes its caption, known by its hash, to the .txt."""
        self._wanted[file] = _Wanted(kind, caption_hash)

    def restore(self) -> Iterator[ItemKind]:
        """One pass over the rows; yields the kind of each that is restored."""
        if not self._wanted:
            return
        for file, caption in read_captions(self._output.root):
            wanted = self._wanted.get(file)
            # An item that was captioned again has several rows; only the last one counts.
            if wanted is None or hash_of(caption) != wanted.caption_hash:
                continue
            del self._wanted[file]
            try:
                if not self._output.restore_caption(file, caption):
                    continue  # somebody was quicker
            except ItemError:
                continue  # its place is taken; it stays among what diverges
            yield wanted.kind

    def set_part_aside(self, path: Path) -> None:
        """Take a part that cannot be read out of the manifest."""
        self._output.set_part_aside(path)

    def remove_temporary(self, path: str) -> None:
        """Remove what a killed run was writing."""
        self._output.remove_leftover(path)
