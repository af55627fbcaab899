"""No process outlives its parent, and none receives a signal that was meant for the driver.

Parent-death signals (prctl(2), PR_SET_PDEATHSIG) are set for this process and for every fork. They
fire when the *thread* that started the process ends, so processes are started from threads that
live as long as the process. Until a new process leads a session of its own, Ctrl+C reaches it too:
so it starts with those signals blocked, and then drops those that have arrived.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

_DRIVERS_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_IGNORED_BY_WORKERS = (signal.SIGHUP, signal.SIGUSR1)
"""A closed terminal and a batch system's warning; the latter may reach every process of the job."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_parent_of_fork = 0
DRIVER_PID = "VLLM_CAPTION_DRIVER_PID"
"""The environment variable that tells the fork server its parent."""


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when its parent (that process id) dies, or exit now if it is dead
    already; forks of this process die with it in turn."""
    end_with_parent(parent)
    os.register_at_fork(
        before=_note_parent, after_in_child=lambda: end_with_parent(_parent_of_fork)
    )


def end_with_parent(parent: int) -> None:
    """Like `die_with_parent`, for this process only."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be watched
        os._exit(1)


def guard_session() -> None:
    """Have this process' session killed when it dies. Programs that it executes (spawned engine
    cores) have no parent-death signal: a guardian, forked here, waits for one in their place."""
    leader = os.getpid()
    if os.fork():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.closerange(0, 4096)  # the guardian must not keep pipes or sockets open
    if os.getppid() == leader:
        signal.sigwait({signal.SIGTERM})
    os.killpg(leader, signal.SIGKILL)  # the guardian is in it


def _note_parent() -> None:
    global _parent_of_fork
    _parent_of_fork = os.getpid()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start processes in here: signals meant for the driver reach neither them nor this thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_BY_WORKERS)
    try:
        resource_tracker.ensure_running()  # its own start would unblock SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, _DRIVERS_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def lead_session() -> None:
    """Leave the driver's session; earlier signals that were meant for the driver are dropped."""
    os.setsid()
    for number in _DRIVERS_SIGNALS:  # ignoring a signal discards a pending one: signal(7)
        handler = signal.signal(number, signal.SIG_IGN)
        signal.signal(number, handler)
    for number in _IGNORED_BY_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_DRIVERS_SIGNALS, *_IGNORED_BY_WORKERS))


def kill_session(leader_pid: int) -> None:
    """SIGKILL a session leader's whole process group; it may already be gone."""
    try:
        os.killpg(leader_pid, signal.SIGKILL)
    except ProcessLookupError:
        return
