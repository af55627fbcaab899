"""Images in an object store: `s3://`, `gs://`, `hdfs://` and whatever else pyarrow.fs reads.

Invariants: a key is the root followed by the item's literal name, and names with `..` never get
here, so nothing outside the root is requested; credentials come from where each service looks for
them (environment, profile, role), never from a command line, and appear in no message and no row.
"""

from __future__ import annotations

import math
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from vllm_caption.config import is_remote
from vllm_caption.errors import ItemError, UsageError
from vllm_caption.formatting import first_line
from vllm_caption.images.near_misses import near_spelling

PATIENCE_S: Final = 30
FETCH_THREADS: Final = 32
"""Concurrent requests of one process: their threads wait rather than compute."""
_FAULTS: Final = (OSError, ValueError, NotImplementedError)
"""What pyarrow.fs raises for a service, a key or a URI."""
_HEAD_BYTES: Final = 1 << 20
BELIEVED_S: Final = 5.0
"""How long a positive answer of the service is trusted."""
_FLAG: Final = "--images-root"


def absolute_root(images_root: str | Path) -> str:
    """A root for a worker, which may have another working directory."""
    return images_root if isinstance(images_root, str) else str(images_root.absolute())


def recorded_root(images_root: str | Path) -> str:
    """A root for rows, whose readers may be anywhere."""
    return public_root(absolute_root(images_root))


def public_root(images_root: str | Path) -> str:
    """A root for messages: without the options after its `?`."""
    shown = str(images_root)
    return shown.partition("?")[0].rstrip("/") if is_remote(images_root) else shown


@lru_cache(maxsize=4)
def _open_root(images_root: str) -> tuple[Any, str]:
    """File system and path; the threads of this process share its connections."""
    from pyarrow import fs  # here, so that its libraries are loaded only if needed

    if images_root.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in images_root:
        # By default its client retries for a quarter of an hour before it reports an error.
        images_root += ("&" if "?" in images_root else "?") + f"retry_limit_seconds={PATIENCE_S}"
    found, path = fs.FileSystem.from_uri(images_root)
    return found, path.rstrip("/")


def check_remote(images_root: str) -> None:
    """Raise UsageError if nothing can be listed at a root."""
    from pyarrow import fs

    shown = public_root(images_root)
    try:
        system, path = _open_root(images_root)
        info = system.get_file_info(path)
    except _FAULTS as error:
        raise UsageError(_FLAG, shown, f"cannot be read ({_reason(error)})") from None
    if info.type is not fs.FileType.Directory:
        raise UsageError(_FLAG, shown, "holds nothing; name the bucket and prefix of the images")


def still_answers(images_root: str) -> bool:
    """Whether the root can be read at this moment."""
    try:
        check_remote(images_root)
    except UsageError:
        return False
    return True


class RemoteRoot:
    """A root that is a URI, which may disappear during a run."""

    def __init__(self, images_root: str) -> None:
        self._images_root = images_root
        self._answered_s = -math.inf

    def still_there(self) -> bool:
        """Whether the service, the bucket and the permission to read it are still there.

        A yes is trusted for some seconds, so that a million missing objects do not cause a million
        requests.
        """
        if time.monotonic() - self._answered_s < BELIEVED_S:
            return True
        if not still_answers(self._images_root):
            return False
        self._answered_s = time.monotonic()
        return True


def remote_bytes(images_root: str, file: str, max_bytes: int) -> tuple[bytes, int]:
    """The content of one object and its size; only the start if it has more than ``max_bytes``.

    Raises ItemError.
    """
    try:
        system, path = _open_root(images_root)
        with system.open_input_file(f"{path}/{file}") as opened:
            size = opened.size()
            head = opened.read(min(size, _HEAD_BYTES))
            if len(head) < size <= max_bytes:
                return head + opened.read(), size
            return head, size
    except FileNotFoundError as error:
        raise _absent(images_root, file) from error
    except _FAULTS as error:
        raise _refusal(error) from error


def remote_size(images_root: str, file: str) -> int:
    """The size of one object in bytes. Raises ItemError."""
    from pyarrow import fs

    try:
        system, path = _open_root(images_root)
        info = system.get_file_info(f"{path}/{file}")
    except _FAULTS as error:
        raise _refusal(error) from error
    if info.type is fs.FileType.File:
        return int(info.size)
    if info.type is fs.FileType.NotFound:
        raise _absent(images_root, file)
    raise ItemError("not_a_file", "it is a folder, not an object")


def _absent(images_root: str, file: str) -> ItemError:
    from pyarrow import fs

    def is_there(name: str) -> bool:
        try:
            system, path = _open_root(images_root)
            return bool(system.get_file_info(f"{path}/{name}").type is fs.FileType.File)
        except _FAULTS:
            return False

    reason, hint = "there is no such object below the images root", near_spelling(file, is_there)
    return ItemError("missing_file", f"{reason}; {hint}" if hint else reason)


def _refusal(error: Exception) -> ItemError:
    if isinstance(error, FileNotFoundError):  # the root itself
        return ItemError("missing_file", "there is no such object below the images root")
    denied = isinstance(error, PermissionError) or "ACCESS_DENIED" in str(error)
    return ItemError("unreadable", f"it cannot be read: {_reason(error)}", transient=not denied)


def _reason(error: BaseException) -> str:
    """The service's error message, on one line."""
    return first_line(error, 300).partition(" Detail:")[0]
