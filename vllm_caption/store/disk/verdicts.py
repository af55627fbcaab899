"""What a failed operation on the output means for the run: the only place that decides it.

Pure: maps an errno and the operation to a verdict. For reading images there is another table
(`images/files.py`).
"""

from __future__ import annotations

import errno
from typing import Final, Literal

Operation = Literal["start", "caption", "file", "sync", "lock", "remove", "inform"]
"""start: create, open or list what a run starts with, while the user is watching; caption: create,
write, rename or stat a path named after an item; file: the same for what the run needs and names
itself (a part, the journal, recipes); sync: flush a file, a folder or the file system to disk;
lock: flock; remove: delete what is not needed; inform: write a file that nothing depends on
(status, documents)."""
Verdict = Literal["item", "passing", "optional", "disk"]
"""item: only this path is at fault; passing: a retry may succeed; optional: the run does without;
disk: nothing more can be written, so the run stops."""

CONFLICTS: Final = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY})
"""Something else is where the caption should go."""
NAMES: Final = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})
"""The file system cannot hold such a name: `:` on exFAT, bytes that are not UTF-8, too long."""
DENIALS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY})
"""On a network drive these may pass; if they do not, they concern one file or folder."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""Nothing can be written, under any name."""
OUTAGES: Final = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EREMOTEIO),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.EPIPE),
        *(errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.EDEADLK, errno.ECOMM),
    }
)
"""The disk, the network or the machine fails for a moment."""
UNKNOWN: Final = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF}
)
"""Errors of a file system that does not support the operation."""


def judge(number: int | None, operation: Operation) -> Verdict:
    """What an error with this errno means for ``operation``."""
    if operation in ("remove", "inform"):
        return "optional"
    if operation == "lock" and number in UNKNOWN | {errno.ENOLCK}:
        return "optional"
    if operation == "sync" and number in UNKNOWN | DENIALS | {errno.EISDIR}:
        return "optional"
    if operation == "caption" and (number in NAMES or number in CONFLICTS):
        return "item"
    if number in OUTAGES or (number in DENIALS and operation != "start"):
        return "passing"
    return "disk"
