"""The source that is a tar, or a folder of them, as WebDataset's shards: each image is an item.

Members of one stem belong together: `0001.json` gives the columns that the prompt may use, and
`0001.txt` the column `txt`. A tar is read from header to header and never unpacked.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from vllm_caption.config import InputConfig, files_in
from vllm_caption.errors import UsageError
from vllm_caption.formatting import encodable_name, first_line
from vllm_caption.images.containers import regular_members
from vllm_caption.inputs.image_folders import is_image_name
from vllm_caption.inputs.source import Element, Group, row_of
from vllm_caption.items import Document, SkippedDocument

MAX_TEXT_BYTES: Final = 2**20
"""A larger .json or .txt is passed over."""
_FAULTS: Final = (OSError, tarfile.TarError, EOFError)


class Archives:
    """Each tar, in the order of their names; an image is named `TAR/MEMBER`."""

    def __init__(self, config: InputConfig, path: Path) -> None:
        self._config = config
        self._path = path

    def check(self) -> None:
        """Each can be opened."""
        if not self._path.exists():
            raise UsageError("--input", self._path, "does not exist; name a tar of images")
        for path in self._paths():
            try:
                tarfile.open(path, "r:").close()
            except _FAULTS as error:
                remedy = f"it cannot be read as a tar: {first_line(error)}; unpack a compressed one"
                raise UsageError("--input", path, remedy) from None

    def num_documents(self) -> int | None:
        """The tars."""
        return len(self._paths())

    def documents(self) -> Iterator[Group | SkippedDocument]:
        """Each tar is one."""
        for path in self._paths():
            yield Group(Document(encodable_name(path.name)), self._elements(path))

    def nothing(self) -> UsageError:
        """No member is an image by its name."""
        return UsageError("--input", self._path, "no member has the ending of an image")

    def _paths(self) -> list[Path]:
        return files_in(self._path, ".tar") if self._path.is_dir() else [self._path]

    def _elements(self, path: Path) -> Iterator[Element]:
        try:
            with tarfile.open(path, "r:") as opened:
                for members in _samples(opened):
                    yield from self._sample(path, opened, members)
        except _FAULTS as error:
            yield Element("", "", f"the tar ends here: {first_line(error)}")

    def _sample(
        self, path: Path, opened: tarfile.TarFile, members: list[tarfile.TarInfo]
    ) -> Iterator[Element]:
        images = [member for member in members if is_image_name(member.name)]
        values = _values(opened, members) if images and self._config.columns else {}
        row = row_of(values, self._config)
        for member in images:
            yield Element({"file": f"{path.name}/{member.name}"}, "", row=row)


def _values(opened: tarfile.TarFile, members: Iterable[tarfile.TarInfo]) -> dict[str, Any]:
    """What the .json and the .txt among these say."""
    values: dict[str, Any] = {}
    for member in members:
        ending = member.name.rpartition(".")[2].lower()
        if ending not in ("json", "txt") or member.size > MAX_TEXT_BYTES:
            continue
        held = opened.extractfile(member)
        text = held.read() if held is not None else b""
        if ending == "txt":
            values["txt"] = text.decode("utf-8", "replace")
            continue
        try:
            found = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            continue  # the image is there all the same, and the prompt may do without
        values |= found if isinstance(found, dict) else {}
    return values


def _samples(opened: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """Regular members that follow each other and have one stem: the name up to the first dot after
    the last slash. Hidden ones are passed over."""
    members: list[tarfile.TarInfo] = []
    stem = ""
    for member in regular_members(opened):
        folder, _, name = member.name.rpartition("/")
        if name.startswith("."):
            continue
        if (found := f"{folder}/{name.partition('.')[0]}") != stem:
            if members:
                yield members
            members, stem = [], found
        members.append(member)
    if members:
        yield members
