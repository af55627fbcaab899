"""The process around a command: its streams, text encoding, signals and temporary files.

Invariants: descriptors 0 to 2 are open, so no file of the job ever gets one of these numbers;
names and text are UTF-8 whatever the locale; a failure to print never changes the exit code;
temporary folders are removed when the process exits, or, if it was killed, by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import getpass
import io
import locale
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

from vllm_caption.errors import EXIT_INTERRUPTED, EXIT_STOPPED, RunStopped, UsageError

_UTF8_MODE: Final = "PYTHONUTF8"
_MAX_BASE_CHARS: Final = 38
"""Longest folder that may hold `socket_folder`: the path of a socket has at most 107 bytes."""
_SHORT_FOLDERS: Final = ("/tmp", "/dev/shm", "/var/tmp")
_USUAL_WIDTH: Final = 80
_NOT_IN_NAMES: Final = r'[\\/:*?"<>|]'
_LAST: Final = -1000
_PREFIX: Final = "vllm-caption-"
_OWNED: Final = "owned"
"""A file in each of these folders that names the machine's boot; the owner holds a lock on it."""
_MAX_AGE_S: Final = 10 * 86400
"""After this, a folder is removed even if nobody knows whether its owner lives. Sockets that are in
use survive that."""
_socket_folders: list[Path] = []


def prepare_process() -> None:
    """Called before anything else in a command's process. Raises UsageError."""
    _open_streams()
    _use_utf8()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal must be able to print any file name
            shown = locale.getencoding() if stream.isatty() else None
            stream.reconfigure(encoding=shown, errors="backslashreplace")


def _open_streams() -> None:
    """Open /dev/null in place of streams that were closed when the process started."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        reads = descriptor == 0
        try:
            os.fstat(descriptor)
        except OSError:
            # Opens as the lowest free descriptor, which is this one: those below are open by now.
            os.open(os.devnull, os.O_RDONLY if reads else os.O_WRONLY)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            mode = "r" if reads else "w"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def _use_utf8() -> None:
    """Re-execute in Python's UTF-8 mode, which child processes inherit, if the locale has another
    encoding: file names would be written in that encoding."""
    if sys.getfilesystemencoding() == "utf-8":
        return
    if os.environ.get(_UTF8_MODE) == "1":  # Python was told to ignore it
        remedy = "file names must be UTF-8; set LC_ALL=C.UTF-8, or start Python without -E and -I"
        raise UsageError("LC_ALL", os.environ.get("LC_ALL", ""), remedy)
    arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")[1:-1]
    os.environ[_UTF8_MODE] = "1"
    os.execv(sys.executable, [os.fsencode(sys.executable), *arguments])


DECODER_NAME: Final = "image-decoder"
"""The processes that decode images, in `ps` and `top`."""


def name_process(name: str) -> None:
    """What `ps` and `top` call this process; at most 15 bytes. See prctl(2), PR_SET_NAME."""
    ctypes.CDLL(None).prctl(15, name.encode())


def show(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print the result of a command. Raises RunStopped where standard output takes no more."""
    try:
        print(text, file=stream, end=end, flush=True)
    except BrokenPipeError:  # as by `| head`; not an error of the command
        raise
    except OSError as error:
        raise RunStopped(f"standard output cannot be written ({error.strerror})") from error


def terminal_width(stream: TextIO) -> int:
    """The columns of a terminal; 80 if unknown."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL_WIDTH
    except (OSError, ValueError):  # no descriptor, or an unknown size
        return _USUAL_WIDTH


def say(text: str, stream: TextIO) -> None:
    """Print a line, even if the stream may be closed."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=stream, flush=True)


@contextlib.contextmanager
def outliving_the_terminal() -> Iterator[None]:
    """Ignore SIGHUP (sent when a terminal is closed), here and in the processes started here."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def socket_folder() -> Path:
    """The folder for the sockets of this process, created if missing. Raises UsageError.

    It is in the folder for temporary files, or in another such folder if the path would be too
    long.
    """
    if not _socket_folders:
        _socket_folders.append(_make_socket_folder())
        # After multiprocessing's finalizer, which removes what it put there.
        Finalize(None, remove_temporary_folders, exitpriority=_LAST)
    (folder,) = _socket_folders
    with contextlib.suppress(OSError):  # whoever uses it reports what is wrong
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def keep_temporary_files_in(folder: str) -> None:
    """Have this process and those that it starts put temporary files into a job's own folder, so
    that they disappear with it, however they end. Compiled kernels stay where they are found again.
    """
    usual = Path(folder).parent
    is_usual = tempfile.gettempdir() in (folder, str(usual))
    if not is_usual or not Path(folder).name.startswith(_PREFIX):
        return  # TMPDIR is too long for sockets, or somebody chose the folder for these
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # as in a container whose user has no name
        user = f"uid_{os.getuid()}"
    kernels = usual / f"torchinductor_{re.sub(_NOT_IN_NAMES, '_', user)}"  # as torch names it
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kernels))
    os.environ["TMPDIR"] = tempfile.tempdir = folder


def _make_socket_folder() -> Path:
    try:
        usual = tempfile.gettempdir()
    except FileNotFoundError:
        usual = os.environ.get("TMPDIR", "")
    for base in (usual, *_SHORT_FOLDERS):
        with contextlib.suppress(OSError):
            if base and len(base) <= _MAX_BASE_CHARS:
                folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
                _own(folder)
                remove_abandoned(Path(base))
                return folder
    places = ", ".join(_SHORT_FOLDERS)
    problem = f"no folder for sockets can be created there or in {places}"
    raise UsageError("TMPDIR", usual, f"{problem}; set it to a short, writable one")


def _own(folder: Path) -> None:
    """Own the folder until this process is dead, however it dies."""
    with contextlib.suppress(OSError):  # if the file system has no locks, age decides
        descriptor = os.open(folder / _OWNED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, _boot())  # last: a file without a boot may be about to be locked


def remove_abandoned(base: Path) -> None:
    """Remove the folders of this user's processes that were killed. Locks decide, not process ids:
    containers with separate process ids may share the folder."""
    with contextlib.suppress(OSError):
        for folder in base.glob(f"{_PREFIX}*"):
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    is_old = False
    try:
        found = folder.lstat()
        if found.st_uid != os.getuid():
            return False
        is_old = time.time() - found.st_mtime > _MAX_AGE_S
        with open(folder / _OWNED, "rb", opener=_without_links) as owned:
            if owned.read() != _boot():  # from before a reboot, or another machine's
                return is_old
            fcntl.flock(owned, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:  # from an older version, or just created
        return is_old
    except OSError:  # its owner lives, or we cannot know
        return False
    return True


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _boot() -> bytes:
    """Identifies the current boot of this machine; empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return b""


def ensure_home() -> None:
    """If there is no home folder, as in some containers and batch jobs, give the caches of
    libraries a temporary one. Raises UsageError."""
    usual = os.path.expanduser("~")  # noqa: PTH111 - stays "~" if there is no home folder
    is_folder = usual.startswith("/") and os.path.isdir(usual)  # noqa: PTH112 (never raises)
    if os.environ.get("HOME") == "" or not is_folder:
        home = socket_folder() / "home"
        try:
            home.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            remedy = (
                f"is not a folder ({home}: {error.strerror}); set it to one that can be written"
            )
            raise UsageError("HOME", os.environ.get("HOME", ""), remedy) from None
        os.environ["HOME"] = str(home)


def remove_temporary_folders() -> None:
    """Called when the process ends."""
    for folder in _socket_folders:
        shutil.rmtree(folder, ignore_errors=True)


def print_bug(kind: type[BaseException], error: BaseException, trace: Any) -> NoReturn:
    """A `sys.excepthook`: print a traceback, and never exit with the code of a finished run. A
    Ctrl+C that comes before or after the command itself is no bug."""
    if issubclass(kind, KeyboardInterrupt):
        leave(EXIT_INTERRUPTED)
    sys.__excepthook__(kind, error, trace)
    leave(EXIT_STOPPED)


def leave(exit_code: int) -> NoReturn:
    """Exit without waiting for threads: one may be waiting for an engine process to start."""
    remove_temporary_folders()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)
