"""No process outlives its parent: Linux' parent-death signal, set for us and for every fork.

The signal fires when the *thread* that started the process ends, so processes are started from
threads that live as long as the process. Source: prctl(2), PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """SIGKILL this process when its parent dies, and its forks when it dies in turn."""
    _arm()
    os.register_at_fork(after_in_child=_arm)


def _arm() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_session(leader_pid: int) -> None:
    """SIGKILL a session leader's whole process group; gone already is fine."""
    try:
        os.killpg(leader_pid, signal.SIGKILL)
    except ProcessLookupError:
        return
