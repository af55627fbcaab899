"""Whose fault is an errno? The one place that decides what a failed operation means for the run.

Pure: from an errno and what was being done to a verdict. The reading of images has its own table
(`images/files.py`).
"""

from __future__ import annotations

import errno
from typing import Final, Literal

Operation = Literal["start", "caption", "file", "sync", "lock", "remove", "inform"]
"""start: make, open or list what a run begins with, while its user looks on; caption: make, write,
rename or look at something under an item's name; file: the same for what the run needs and names
itself (a part, the journal, recipes); sync: bring a file, a folder or the file system to the disk;
lock: flock; remove: take away what is not needed; inform: write a file that nothing depends on
(status, documents)."""
Verdict = Literal["item", "passing", "optional", "disk"]
"""item: this name or place is at fault, the others are not; passing: it may work in a moment;
optional: the run does without; disk: nothing more can be written, so the run stops."""

CONFLICTS: Final = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY})
"""Something else lies where a caption is to be."""
NAMES: Final = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})
"""The file system cannot hold such a name: `:` on exFAT, bytes that are not UTF-8, too long."""
DENIALS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY})
"""On a network drive these pass; where they do not, they are about one file or folder."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""Nothing can be written, whatever its name."""
OUTAGES: Final = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EREMOTEIO),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.EPIPE),
        *(errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.EDEADLK, errno.ECOMM),
    }
)
"""A disk, a network or a machine that is short of something for a moment."""
UNKNOWN: Final = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF}
)
"""What file systems answer to an operation that they do not have."""


def judge(number: int | None, operation: Operation) -> Verdict:
    """What an error with this errno means while ``operation`` was done."""
    if operation in ("remove", "inform"):
        return "optional"
    if operation == "lock" and number in UNKNOWN | {errno.ENOLCK}:
        return "optional"
    if operation == "sync" and number in UNKNOWN | DENIALS | {errno.EISDIR}:
        return "optional"
    if operation == "caption" and number in NAMES | CONFLICTS:
        return "item"
    if number in OUTAGES or (number in DENIALS and operation != "start"):
        return "passing"
    return "disk"
