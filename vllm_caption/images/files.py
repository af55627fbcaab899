"""From the name of an image to its bytes; `decode` judges the content.

Invariants
- A name is taken literally and never leaves the images root, not even through a link.
- Only regular files are opened for reading, so nothing here can block forever.
- A file is read once, and no more than its start unless that is the start of an image.

Not supported: PPM (Pillow decodes unusual ones pixel by pixel in Python, which would hold up the
engine), TGA (it has no magic number), EPS, PDF and SVG (programs rather than pixels).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import Final

from vllm_caption.config import check_folder, is_remote
from vllm_caption.errors import ItemError, ItemKind
from vllm_caption.images.containers import (
    Inside,
    check_size,
    is_tar,
    read_inside,
    size_inside,
    split_name,
)
from vllm_caption.images.near_misses import URL_HINT, is_url, near_miss
from vllm_caption.images.object_store import check_remote, remote_bytes, remote_size

MAX_FILE_BYTES: Final = 512 * 2**20

_HEAD_BYTES: Final = 512
_START_BYTES: Final = 128 * 2**10
"""Read before the format is known: all of most design elements, in a single call."""
_MAGIC: Final = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<GIF>GIF8[79]a)|(?P<BMP>BM)"
    rb"|(?P<WEBP>RIFF....WEBP)|(?P<TIFF>II[*+]\0|MM\0[*+])"
    rb"|(?P<ICO>\0\0(?:\x01\0|\x02\0(?!\0\0)))"
    rb"|(?P<AVIF>....ftyp(?:avif|avis|(?=mif1|msf1).{8,80}?avi[fs]))",
    re.DOTALL,
)
_FORMATS: Final = ", ".join(_MAGIC.groupindex)
_NOT_IMAGES: Final = {
    "an SVG drawing": rb".*<svg[\s>]",
    "a web page": rb"\s*<(?:!doctype html|html)",
    "a PDF document": rb"%PDF",
    "a PostScript drawing": rb"%!PS|\xc5\xd0\xd3\xc6",
    "a HEIC photo": rb"....ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)",
    "a ZIP archive": rb"PK\x03\x04",
}
_OS_REFUSALS: Final[dict[int, tuple[ItemKind, str]]] = {
    errno.ENOENT: ("missing_file", "there is no such file below the images root"),
    errno.ENOTDIR: ("missing_file", "there is no such file: a part of its path is not a folder"),
    errno.ENAMETOOLONG: ("bad_name", "the name is longer than the file system allows"),
    errno.ELOOP: ("unreadable", "its links lead in a circle"),
    errno.EACCES: ("unreadable", "permission to read it is denied"),
    errno.ENXIO: ("not_a_file", "it is a socket or a device, not a regular file"),
}


def check_images_root(images_root: Path | str) -> None:
    """Raise UsageError, before anything starts, if nothing can be read below a root."""
    if isinstance(images_root, str):
        check_remote(images_root)
    else:
        check_folder("--images-root", images_root, "the folder that `file` paths start from")


def resolve_image(images_root: str, file: str) -> str:
    """Absolute path, free of links, of the regular file that ``file`` literally names.

    ``images_root`` may itself be a link; a link below it must stay below it.
    """
    check_name(file)
    try:  # not pathlib, which would double the time of this function
        absolute = images_root.startswith("/")
        root = _real_root(images_root) if absolute else os.path.realpath(images_root)
        path = os.path.join(root, file)  # noqa: PTH118
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode) or _leads_through_link(root, file):
            # The kernel limits chains of links; realpath alone would follow them endlessly.
            mode = os.stat(path).st_mode  # noqa: PTH116
            path = os.path.realpath(path, strict=True)
    except OSError as error:
        refusal = _os_refusal(error)
        if refusal.kind == "missing_file" and (hint := near_miss(images_root, file)):
            raise ItemError(refusal.kind, f"{refusal.reason}; {hint}") from error
        raise refusal from error
    if not path.startswith(os.path.join(root, "")):  # noqa: PTH118
        raise ItemError("path_escape", "it is a link that leaves the images root")
    if not stat.S_ISREG(mode):
        raise ItemError("not_a_file", "it is a folder, pipe or device, not a regular file")
    return path


@lru_cache(maxsize=8)
def _real_root(images_root: str) -> str:
    """The real path of an absolute root; a relative one changes with the working directory."""
    return os.path.realpath(images_root)


def _leads_through_link(root: str, file: str) -> bool:
    """Whether a folder of its path is a link. Checked first, because for most files realpath would
    take longer than all other checks."""
    path = root
    for folder in file.split("/")[:-1]:
        path = os.path.join(path, folder)  # noqa: PTH118
        if stat.S_ISLNK(os.lstat(path).st_mode):
            return True
    return False


def check_name(file: str) -> None:
    """Accept only one plain spelling of a name below the root. Raises ItemError."""
    if not file or "\0" in file:
        raise ItemError("bad_name", "the name is empty or holds a NUL character")
    try:
        file.encode()
    except UnicodeEncodeError as error:
        raise ItemError("bad_name", "the name cannot be written as UTF-8") from error
    if is_url(file) and "//" in file:
        raise ItemError("path_escape", URL_HINT)
    if file.startswith("/"):
        raise ItemError("path_escape", "the path is absolute; give it relative to the images root")
    if file.endswith("/"):
        raise ItemError("not_a_file", "the path ends in a slash, so it names a folder")
    if not {"", ".", ".."}.isdisjoint(file.split("/")):
        raise ItemError("path_escape", "the path has a part that is empty, '.' or '..'")


def _os_refusal(error: OSError) -> ItemError:
    if error.errno in _OS_REFUSALS:
        return ItemError(*_OS_REFUSALS[error.errno])
    return ItemError("unreadable", f"it cannot be read: {error.strerror}", transient=True)


def read_image(images_root: str, file: str) -> tuple[bytes, str]:
    """The bytes and the format of the image that ``file`` names. Raises ItemError."""
    if not is_remote(images_root):
        if (inside := _find_inside(images_root, file)) is None:
            return read_image_file(resolve_image(images_root, file))
        data = read_inside(inside, MAX_FILE_BYTES)
        return data, _sniff(data[:_HEAD_BYTES])
    check_name(file)
    data, size = remote_bytes(images_root, file, MAX_FILE_BYTES)
    image_format = _sniff(data[:_HEAD_BYTES])
    check_size(size, MAX_FILE_BYTES)
    return data, image_format


def _find_inside(images_root: str, file: str) -> Inside | None:
    """Where a name leads into a tar or a table, which must be below the root like any image; None
    for the name of a plain file."""
    if (parts := split_name(file)) is None:
        return None
    container, member = parts
    if not os.path.isfile(f"{images_root}/{container}"):  # noqa: PTH113
        return None
    check_name(file)
    return Inside(resolve_image(images_root, container), member, is_tar(container))


def num_bytes(images_root: str, file: str) -> int:
    """The size of an item's image, without reading it. Raises ItemError."""
    check_name(file)
    if is_remote(images_root):
        return remote_size(images_root, file)
    if (inside := _find_inside(images_root, file)) is not None:
        return size_inside(inside)
    try:
        found = os.stat(f"{images_root}/{file}")  # noqa: PTH116 (for every item)
        if stat.S_ISREG(found.st_mode):
            return found.st_size
    except OSError:
        pass
    resolve_image(images_root, file)  # raises the error that a run would record
    raise ItemError("unreadable", "it changed while it was being checked")


def read_image_file(path: str) -> tuple[bytes, str]:
    """The bytes and the format of a regular file whose first bytes are those of an image."""
    # O_NONBLOCK and fstat after open: a file that was replaced by a pipe cannot hang us.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ItemError("not_a_file", "it is not a regular file")
            start = os.pread(descriptor, min(status.st_size, _START_BYTES), 0)
            image_format = _sniff(start[:_HEAD_BYTES])
            check_size(status.st_size, MAX_FILE_BYTES)
            if len(start) == status.st_size:
                return start, image_format
            with os.fdopen(descriptor, "rb", closefd=False) as opened:
                return opened.read(status.st_size), image_format
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _os_refusal(error) from error


def _sniff(head: bytes) -> str:
    """Pillow's name of the format, by content alone: suffixes lie."""
    if found := _MAGIC.match(head):
        assert found.lastgroup is not None
        return found.lastgroup
    if not head:
        raise ItemError("not_an_image", "the file is empty")
    looks = (what for what, start in _NOT_IMAGES.items() if re.match(start, head, re.S | re.I))
    what = next(looks, "not in a format that is read")
    raise ItemError("not_an_image", f"its content is {what}; convert it to one of {_FORMATS}")
