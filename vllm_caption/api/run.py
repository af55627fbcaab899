"""`caption`: one run, in a process of its own.

So nothing changes in the caller's process (signal handlers, environment, event loops, descriptors,
fork servers), and the run has a main thread for its signals, wherever it is called.

Invariants: the call returns after the process of the run has ended; Ctrl+C reaches that process
only through this one, and is raised again when it has drained.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import msgspec

from vllm_caption.api.arguments import Value, as_arguments, as_path, in_python
from vllm_caption.api.table import read
from vllm_caption.errors import EXIT_INTERRUPTED, RunStopped
from vllm_caption.messages import Refused, RunEnded, RunFailed, RunMessage

if TYPE_CHECKING:
    import pyarrow as pa

CHILD: Final = "vllm_caption.api.child"
_CODE: Final = (
    "import sys; sys.path[:] = sys.argv.pop(1).split('\\n');"
    " from {module} import main; main(*sys.argv[1:])"
)
"""What Python is started with: it finds modules where this process does, and never imports the main
module of this process."""
_CHUNK_BYTES: Final = 65536
Readers = dict[int, Callable[[bytes], object]]
"""Descriptor → the function that gets the bytes read there."""
_decoder: msgspec.msgpack.Decoder[RunMessage] = msgspec.msgpack.Decoder(RunMessage)


class RunResult(RunEnded, frozen=True, kw_only=True, dict=True, tag="RunEnded"):
    """How a run ended: the counts of its summary, and where its captions are.

    `exit_code`: 0 all items have a caption, 1 some failed, 130 interrupted by a signal that was
    sent to the process of the run. `items`: found in the input; `captioned`: those that have a
    caption now; `captioned_now`: those that this run captioned; `failed`: those without a caption;
    `not_tried`: those that were left when the run was interrupted. `documents`: read;
    `skipped_documents`: left out. `failures`: kind → items; `flags`: broken rule → captions of this
    run. `seconds`: from start to end; `prompt_tokens` and `output_tokens`: of this run.
    """

    output: Path
    """The output folder, absolute."""

    @cached_property
    def table(self) -> pa.Table:
        """The last row of every item in the output folder, read on first use: see `read`."""
        return read(self.output)


def caption(
    input: str | os.PathLike[str] | None = None,
    *,
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    prompt: str | os.PathLike[str] | None = None,
    **flags: Value,
) -> RunResult:
    """Caption everything in the input that is not done yet; returns when the run has ended.

    Args:
        input: a folder of images, a table or a tar; without it, the designs of `jsons=`,
            `json_detail=` and `images_root=`.
        output: folder of captions; if it is that of an earlier run, finished items are skipped.
        model: name or folder; None is the command line's default, `"demo"` the bundled model.
        prompt: a prompt file, or the name of one in prompts/.
        **flags: every other flag of `python -m vllm_caption --help`, with `_` for `-`, and every
            engine flag of vLLM. Use True or False for a switch, a list for several values
            (`skip_types=["A"]`, `stop=["."]`), a dict for JSON, and None for the default. Units are
            the command line's: seconds for timeouts, pixels for sizes, tokens for `max_tokens`.

    Progress is written to `sys.stderr` and the summary to `sys.stdout`, as on the command line.
    The run has a process of its own, so this can be called from any thread, inside a running event
    loop, and without a main guard. That process ends with this one. Ctrl+C finishes the items in
    flight (a second Ctrl+C stops at once), then KeyboardInterrupt is raised; what is finished is
    kept, and the next call resumes.

    Raises:
        UsageError: a setting is wrong, or nothing in the input can be used; nothing was captioned.
        RunStopped: the run could not continue (no engine left, disk full); what is done is kept.
    """
    given = {"input": input, "output": output, "model": model, "prompt": prompt}
    folder = as_path("output", output).absolute()
    message = _run(as_arguments({**given, **flags}))
    if isinstance(message, Refused):
        raise in_python(message.as_error())
    if isinstance(message, RunFailed):
        raise RunStopped(message.error)
    return RunResult(output=folder, **msgspec.structs.asdict(message))


def _run(arguments: list[str]) -> RunMessage:
    """Run one command line to its end."""
    ours, theirs = _pipe()
    answer = bytearray()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, ours)
        try:
            process = stack.enter_context(_start(arguments, theirs))
        finally:
            os.close(theirs)
        readers: Readers = {ours: answer.extend}
        for pipe, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            if pipe is not None:
                readers[pipe.fileno()] = _Writer(stream)
        _relay(process, readers, until=ours)
    try:
        return _decoder.decode(answer)
    except msgspec.DecodeError:
        raise RunStopped(_died(process.returncode)) from None


def _pipe() -> tuple[int, int]:
    """The ends for reading and for writing. The latter has the same number in the run, so it must
    not be that of a standard stream that is closed here."""
    ours, theirs = os.pipe()
    try:
        return ours, fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(theirs)


def _start(arguments: list[str], answer: int) -> subprocess.Popen[bytes]:
    path = "\n".join(entry or str(Path.cwd()) for entry in sys.path if isinstance(entry, str))
    words = [path, str(os.getpid()), str(answer), *arguments]
    # It unblocks SIGINT when it can handle it; while Python starts, it would print a traceback.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _CODE.format(module=CHILD), *words],
            stdin=subprocess.DEVNULL,
            stdout=_target(sys.stdout, sys.__stdout__),
            stderr=_target(sys.stderr, sys.__stderr__),
            pass_fds=[answer],
            start_new_session=True,  # a terminal's Ctrl+C reaches it through this process, once
        )
    except OSError as error:  # also if the arguments are longer than the system allows
        raise RunStopped(f"the process of the run cannot be started: {error.strerror}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _target(stream: TextIO | None, original: TextIO | None) -> int | None:
    """Where the run writes: to this process' own stream, or through this process to whatever
    stands in its place (a notebook's cell, `redirect_stdout`)."""
    if stream is None:
        return subprocess.DEVNULL
    if stream is not original:
        return subprocess.PIPE
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    return None


class _Writer:
    """Bytes of the run → text on a stream of this process, which may be closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(self._decoder.decode(data))
            if hasattr(self._stream, "flush"):  # `print` does not need it either
                self._stream.flush()


def _relay(process: subprocess.Popen[bytes], readers: Readers, until: int) -> None:
    """Pass on what the process writes until it ends, which closes ``until``.

    Whatever is raised meanwhile (KeyboardInterrupt, or by a signal handler of the caller) makes the
    process drain, and the second time exit at once; it is raised again when the process has ended.
    """
    raised: list[BaseException] = []
    num_sent = 0
    while True:
        try:
            while num_sent < len(raised):
                num_sent += 1
                process.send_signal(signal.SIGINT)
            _copy(process, readers, until)
            break
        except BaseException as error:  # noqa: BLE001 - it is raised below
            raised.append(error)
    if raised:
        raise raised[0]


def _copy(process: subprocess.Popen[bytes], readers: Readers, until: int) -> None:
    with selectors.DefaultSelector() as selector:
        for descriptor in readers:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        is_open = True
        while is_open:
            for key, _ in selector.select():
                if not _read(key.fd, readers):
                    selector.unregister(key.fd)
                    is_open = is_open and key.fd != until
    process.wait()
    for descriptor in readers:
        _read(descriptor, readers)


def _read(descriptor: int, readers: Readers) -> bool:
    """Read what is there; False at the end."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(descriptor, _CHUNK_BYTES):
            readers[descriptor](data)
        return False
    return True


def _died(exit_code: int) -> str:
    """Why there is no answer from the process."""
    if exit_code == EXIT_INTERRUPTED:
        return "the run was interrupted before it began"
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"the process of the run was killed ({name}); run again: what is finished is kept"
    return f"internal error (exit code {exit_code}, traceback above)"
