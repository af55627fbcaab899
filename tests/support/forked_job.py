"""Fake jobs forked from a process that has imported the package, so that a start costs no imports.

To a test, `ForkedJob` is the `subprocess.Popen` of `python -m support.fake_job`: pipes, a session
of its own, signals, an exit code. This module is also that process: each message on descriptor 0
asks for a job, with the job's streams and a socket for its process id and, at its end, its status.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import io
import os
import pickle
import select
import selectors
import socket
import struct
import subprocess
import sys
import tempfile
from functools import cache
from typing import Any, NoReturn

NUMBER = struct.Struct("i")
READ_AT_START = ("LANG", "LC_", "LD_", "LOCPATH", "PYTHON")
"""How variables begin that a process reads when it starts, and never again."""
FAULTY_DISK = "FAULTY_DISK"
"""How variables begin that the library of `faulty_disk` reads, also when asked to again."""
IMPORTS = (
    "pandas",
    "pyarrow.parquet",
    "vllm_caption.cli",
    "vllm_caption.commands.run",
    "vllm_caption.job",
    "vllm_caption.monitoring.host",
)


def can_fork(environment: dict[str, str]) -> bool:
    """Whether a forked job is the same with these variables, besides those of the tests."""
    is_faulty = any(name.startswith(FAULTY_DISK) for name in environment)
    others = environment.keys() - ({"LD_PRELOAD"} if is_faulty else set())
    return not any(name.startswith(READ_AT_START) for name in others)


class ForkedJob(subprocess.Popen[str]):
    """A fake job; its arguments and its environment are those given to `Popen`."""

    def _execute_child(self, args: Any, *given: Any) -> None:
        environment: dict[str, str] = given[5]
        stdin, stdin_here, stdout_here, stdout, stderr_here, stderr = given[9:15]
        origin = _origin(environment.get("LD_PRELOAD"))
        self._end, theirs = socket.socketpair()
        with theirs:
            streams = [0 if stdin == -1 else stdin, stdout, stderr, theirs.fileno()]
            request = pickle.dumps((args, environment, os.getcwd()))
            socket.send_fds(origin, [request], streams)
        self.pid = self._number()
        self._child_created = True
        self._close_pipe_fds(stdin, stdin_here, stdout_here, stdout, stderr_here, stderr)

    def _number(self) -> int:
        answer = self._end.recv(NUMBER.size)
        assert answer, "the process that jobs are forked from has ended"
        return int(NUMBER.unpack(answer)[0])

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = os.waitstatus_to_exitcode(self._number())
            self._end.close()
        return self.returncode

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        try:
            return self._wait(0)
        except subprocess.TimeoutExpired:
            return None


@cache
def _origin(preload: str | None) -> socket.socket:
    """The socket of the process that jobs with this `LD_PRELOAD` are forked from."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | ({"LD_PRELOAD": preload} if preload else {})
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "support.forked_job"]
    with theirs:
        process = subprocess.Popen(command, stdin=theirs, env=environment, start_new_session=True)

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def main() -> None:
    """Fork a job for each message, until the tests end."""
    for name in IMPORTS:
        importlib.import_module(name)
    control = socket.socket(fileno=0)
    ends: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is control:
                    request, descriptors, *_ = socket.recv_fds(control, 2**20, 4)
                    if not request:
                        return
                    pid = os.fork()
                    if not pid:
                        become_job(request, descriptors[:3])
                    for descriptor in descriptors[:3]:
                        os.close(descriptor)
                    ends[pid] = socket.socket(fileno=descriptors[3])
                    ends[pid].send(NUMBER.pack(pid))
                    waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                else:
                    waiting.unregister(key.fileobj)
                    os.close(key.fd)
                    status = os.waitpid(key.data, 0)[1]
                    with ends.pop(key.data) as end, contextlib.suppress(BrokenPipeError):
                        end.send(NUMBER.pack(status))  # a test may not wait for it


def become_job(request: bytes, streams: list[int]) -> NoReturn:
    """Run a fake job in this process, which was forked for it."""
    from support.fake_job import let_go_of_files, run_fake

    arguments, environment, folder = pickle.loads(request)
    os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    for number, name in ((1, "stdout"), (2, "stderr")):  # a stream keeps what it knows of its file
        file = io.FileIO(number, "w", closefd=False)
        setattr(sys, name, io.TextIOWrapper(file, "utf-8", write_through=True))
    let_go_of_files()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    if "LD_PRELOAD" in environment:
        ctypes.CDLL(None).read_environment()
    run_fake(*arguments)


if __name__ == "__main__":
    main()
