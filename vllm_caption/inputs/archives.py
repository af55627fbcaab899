"""The source for a tar or a folder of tars, such as WebDataset shards: each image is an item.

Members with one stem belong together: `0001.json` holds the columns that the prompt may use, and
`0001.txt` is the column `txt`. A tar is read from header to header and never unpacked. Invariant:
everything before damaged bytes is read, and the damage becomes an entry.
"""

from __future__ import annotations

import stat
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from vllm_caption.config import ALL_COLUMNS, InputConfig, files_in, is_folder
from vllm_caption.errors import UsageError
from vllm_caption.formatting import first_line, printable
from vllm_caption.images.containers import TAR_FAULTS, member_name, members_of
from vllm_caption.inputs.source import (
    Element,
    Group,
    Nouns,
    check_alone,
    check_column,
    id_of,
    is_image_name,
    name_of_container,
    refuse_columns,
    row_of,
)
from vllm_caption.items import Document, SkippedDocument

MAX_TEXT_BYTES: Final = 2**20
"""A larger .json or .txt is not read."""
NUM_LOOKED_AT: Final = 100
"""How many images are searched for the columns, so that a misspelt name is found at once."""


class _NoValues(ValueError):
    """Why a .json or .txt holds no columns."""


class Archives:
    """The tars, sorted by name; an image is named `TAR/MEMBER`."""

    def __init__(self, config: InputConfig, path: Path) -> None:
        self._config = config
        self.left_out: Counter[str] = Counter()
        self._path = path
        self.nouns = Nouns("tar", "image")

    def check(self) -> None:
        """Check that each tar can be opened and that the first images have the given columns."""
        refuse_columns(self._config, "--image-column", "--type-column")
        if is_folder(self._path):
            check_alone(self._path, ".tar")
        for path in self._paths():
            try:
                if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
                    raise UsageError("--input", path, "is not a regular file; name a tar of images")
                tarfile.open(path, "r:").close()
            except (FileNotFoundError, NotADirectoryError):
                problem = "does not exist; name a tar of images"
                raise UsageError("--input", path, problem) from None
            except OSError as error:
                problem = f"cannot be read ({error.strerror or first_line(error)})"
                raise UsageError("--input", path, f"{problem}; name a tar of images") from None
            except TAR_FAULTS as error:
                remedy = f"it cannot be read as a tar: {first_line(error)}; unpack a compressed one"
                raise UsageError("--input", path, remedy) from None
            name_of_container(path, self._config)
        self._check_columns()

    def num_documents(self) -> int | None:
        """The number of tars."""
        return len(self._paths())

    def documents(self) -> Iterator[Group | SkippedDocument]:
        """Each tar is a document."""
        for path in self._paths():
            try:
                name = name_of_container(path, self._config)
            except UsageError as error:  # a link changed meanwhile
                yield SkippedDocument(printable(path.name), "unreadable", error.remedy)
                continue
            yield Group(Document(path.name), self._elements(path, name))

    def empty_error(self) -> UsageError:
        """The error if no member is an image by name."""
        return UsageError("--input", self._path, "no member is named like an image")

    def _paths(self) -> list[Path]:
        return files_in(self._path, ".tar") if is_folder(self._path) else [self._path]

    def _check_columns(self) -> None:
        config = self._config
        wanted = [("--prompt", name) for name in config.columns if name != ALL_COLUMNS]
        wanted += [("--id-column", config.id_column)] if config.id_column else []
        if not wanted:
            return
        found: dict[str, None] = {}
        for values in self._first_values():
            found |= dict.fromkeys(values)
            if all(name in found for _, name in wanted):
                return
        for flag, name in wanted:
            check_column(flag, name, self._path, found)

    def _first_values(self) -> Iterator[dict[str, Any]]:
        left = NUM_LOOKED_AT
        for path in self._paths():
            try:
                with tarfile.open(path, "r:") as opened:
                    for members in _samples(opened):
                        if any(is_image_name(member.name) for member in members):
                            left -= 1
                            with suppress(_NoValues):  # its item fails
                                yield _values(opened, members)
                        if not left:
                            return
            except TAR_FAULTS:  # a run reports where
                continue

    def _elements(self, path: Path, name: str) -> Iterator[Element]:
        try:
            with tarfile.open(path, "r:") as opened:
                for members in _samples(opened):
                    yield from self._sample(name, opened, members)
        except TAR_FAULTS as error:
            yield Element("", "", f"the tar ends here: {first_line(error)}")

    def _sample(
        self, name: str, opened: tarfile.TarFile, members: list[tarfile.TarInfo]
    ) -> Iterator[Element]:
        config = self._config
        images = [member for member in members if is_image_name(member.name)]
        values, fault = {}, None
        if images and (config.columns or config.id_column):
            try:
                values = _values(opened, members)
            except _NoValues as error:
                fault = str(error)
        row, row_id = row_of(values, config), id_of(values, config)
        for member in images:
            entry = {"file": f"{name}/{member_name(member.name)}"}
            yield Element(entry, "", fault, row, row_id)


def _values(opened: tarfile.TarFile, members: Iterable[tarfile.TarInfo]) -> dict[str, Any]:
    """The columns from the .json and .txt among these members. Raises _NoValues."""
    values: dict[str, Any] = {}
    for member in members:
        ending = member.name.rpartition(".")[2].lower()
        if ending not in ("json", "txt") or not member.isreg():
            continue
        try:
            found = _value(opened, member, ending)
        except (*TAR_FAULTS, RecursionError) as error:
            reason = error if isinstance(error, _NoValues) else first_line(error)
            what = printable(member.name)
            raise _NoValues(f"its {what} cannot be read: {reason}") from None
        values |= {"txt": found} if ending == "txt" else found if isinstance(found, dict) else {}
    return values


def _value(opened: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> Any:
    if member.size > MAX_TEXT_BYTES:
        raise _NoValues(f"it has more than {MAX_TEXT_BYTES >> 20} MiB")
    held = opened.extractfile(member)
    text = held.read() if held is not None else b""
    return text.decode("utf-8-sig") if ending == "txt" else msgspec.json.decode(text)


def _samples(opened: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """Consecutive members with the same stem, which is the name up to the first dot after the last
    slash. Hidden members are skipped."""
    members: list[tarfile.TarInfo] = []
    stem = ""
    try:
        for member in members_of(opened):
            folder, _, name = member_name(member.name).rpartition("/")
            if name.startswith("."):
                continue
            if (found := f"{folder}/{name.partition('.')[0]}") != stem:
                if members:
                    yield members
                members, stem = [], found
            members.append(member)
    except TAR_FAULTS:
        if members:
            yield members
        raise
    if members:
        yield members
