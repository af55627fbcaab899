"""What a missing name may have meant: the end of a `missing_file` sentence.

A name is taken literally, so a near miss is only named, never opened. All checks are cheap, since a
million names may be missing: a folder is listed once, and not if it is large.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Final
from urllib.parse import unquote

from vllm_caption.formatting import printable

MAX_LISTED: Final = 5_000
"""How many names of a folder are compared; if it has more, only likely spellings are tried."""
URL_HINT: Final = (
    "it is a URL, and nothing is fetched from the network: download it below the images root"
)
_URL: Final = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://|data:[\w/+.-]+[;,])")


def is_url(file: str) -> bool:
    """Whether a name is a URL."""
    return _URL.match(file) is not None


def near_miss(images_root: str, file: str) -> str:
    """A clause that names the similar file that exists; "" if there is none."""
    if is_url(file):
        return URL_HINT
    for meant, how in spellings(file):
        if not _is_plain(meant):
            continue
        if _is_there(images_root, meant):
            return _clause(meant, how)
        if (found := _in_other_case(images_root, meant)) is not None:
            return _clause(found, f"{how}, and the letter case differs")
    if _is_plain(file) and (found := _in_other_case(images_root, file)) is not None:
        return _clause(found, "the letter case differs")
    return ""


def near_spelling(file: str, is_there: Callable[[str], bool]) -> str:
    """Like `near_miss`, for a store where nothing can be listed and each check is a request."""
    for meant, how in spellings(file):
        if _is_plain(meant) and is_there(meant):
            return _clause(meant, how)
    return ""


def spellings(file: str) -> Iterator[tuple[str, str]]:
    """Other names that a name may mean, and how they differ from it."""
    for form in ("NFC", "NFD"):
        if (meant := unicodedata.normalize(form, file)) != file:
            yield meant, f"its letters are encoded in another Unicode form ({form})"
    if "\\" in file:
        yield re.sub(r"^[A-Za-z]:", "", file).replace("\\", "/").lstrip("/"), "write / for \\"
    if "%" in file and (meant := unquote(file)) != file:
        yield meant, "its name is not percent-encoded"
    if (meant := file.strip()) != file:
        yield meant, "the name has white space around it"


def _clause(found: str, how: str) -> str:
    return f"{printable(found)} is there: {how}"


def _is_there(*parts: str) -> bool:
    return os.path.lexists(os.path.join(*parts))  # noqa: PTH118 (parts may be anything)


def _is_plain(file: str) -> bool:
    """Whether a name stays below the root."""
    return {"", ".", ".."}.isdisjoint(file.split("/"))


def _in_other_case(images_root: str, file: str) -> str | None:
    """The name of a file that differs only in letter case or Unicode form, in any part."""
    found: list[str] = []
    for part in file.split("/"):
        folder = "/".join((images_root, *found))
        similar = part if _is_there(folder, part) else _similar(folder, part)
        if similar is None:
            return None
        found.append(similar)
    name = "/".join(found)
    return name if name != file else None


def _similar(folder: str, part: str) -> str | None:
    names = names_in(folder)
    stem, dot, ending = part.rpartition(".")
    tries: Iterable[str] = (names[_folded(part)],) if names and _folded(part) in names else ()
    if names is None:
        endings = (f"{stem}{dot}{changed}" for changed in (ending.lower(), ending.upper()))
        tries = (part.lower(), *endings, part.upper())
    return next((name for name in tries if _is_there(folder, name)), None)


@lru_cache(maxsize=32)
def names_in(folder: str) -> Mapping[str, str] | None:
    """The names in a folder, by their folded form; None if there are too many."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, MAX_LISTED + 1)]
    except (OSError, ValueError):
        return {}
    return {_folded(name): name for name in names} if len(names) <= MAX_LISTED else None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
