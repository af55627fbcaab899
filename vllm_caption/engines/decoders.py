"""Decodes images in separate processes: a file's bytes go in over a socket, pixels come back.

In threads of the worker, decoding would take the interpreter's lock from the rendering thread, and
an image that crashes a decoder or is never decoded would take the engine with it. Here it costs a
process, which is killed and replaced.

By the time a worker needs a decoder, it has threads, and a process with threads must not fork. So
while it has none, it forks a *nursery*, which does nothing but fork decoders.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Final, TypeVar

import msgspec
from PIL import Image

from vllm_caption.config import ImageConfig
from vllm_caption.errors import ItemError, ItemKind
from vllm_caption.images.decode import PreparedImage, decode_image
from vllm_caption.messages import Backdrop
from vllm_caption.process import DECODER_NAME, name_process

_FORK: Final = b"fork"
_LENGTH_BYTES: Final = 4
_MAX_DESCRIPTORS: Final = 4096
_MALLOC: Final = ((-3, 16 << 20), (-1, 32 << 20))
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3): the bounds that glibc reaches by itself once
it has freed a block of 16 MiB. Larger blocks are given back at once."""
_DIED: Final = (
    "the process that decoded it died: it needs more memory than there is, or its decoder has a bug"
    " (the engine's log may say which)"
)

Head = TypeVar("Head")


class _Encoded(msgspec.Struct, frozen=True, array_like=True):
    """Announces the bytes of a file."""

    image_format: str
    num_bytes: int


class _Decoded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Announces the pixels of an image, three bytes each."""

    size: tuple[int, int]
    original_size: tuple[int, int]
    backdrop: Backdrop
    sha256: str


class _Refused(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """An ``ItemError``."""

    kind: ItemKind
    reason: str
    transient: bool


_pid: msgspec.msgpack.Decoder[int] = msgspec.msgpack.Decoder(int)
_encoded: msgspec.msgpack.Decoder[_Encoded] = msgspec.msgpack.Decoder(_Encoded)
_answer: msgspec.msgpack.Decoder[_Decoded | _Refused] = msgspec.msgpack.Decoder(_Decoded | _Refused)


class Decoders:
    """The decoder processes of one worker, as many as calls of `decode` are running."""

    def __init__(self, config: ImageConfig) -> None:
        """Must be created by a process that has a single thread."""
        _keep_freed_memory()
        self._nursery, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._nursery_pid = os.fork()
        if not self._nursery_pid:
            _tend(theirs, config)
        theirs.close()
        self._idle: list[_Decoder] = []
        self._at_work: dict[Hashable, _Decoder] = {}

    def decode(self, name: Hashable, read: Callable[[], tuple[bytes, str]]) -> PreparedImage:
        """The pixels of what ``read`` returns, a file's bytes and its format. Raises ItemError, and
        ChildProcessError if no decoder can be started any more.

        Blocks, and may be called from any number of threads. ``name``: for `kill`.
        """
        data, image_format = read()
        try:
            decoder = self._idle.pop()
        except IndexError:  # not checked before, since another thread may take the last one
            decoder = _Decoder(self._nursery)
        self._at_work[name] = decoder
        try:
            decoder.give(data, image_format)
            del data  # while the decoder works
            prepared = decoder.take()
        except (EOFError, ConnectionError) as end:
            decoder.close()
            raise ItemError("decode_error", _DIED, transient=True) from end
        except ItemError:
            self._idle.append(decoder)
            raise
        finally:
            del self._at_work[name]
        self._idle.append(decoder)
        return prepared

    def kill(self, name: Hashable) -> None:
        """End a call that takes too long, if its decoder is at work."""
        if decoder := self._at_work.get(name):
            decoder.kill()

    def close(self) -> None:
        """End all processes."""
        self._nursery.close()
        with suppress(ProcessLookupError, ChildProcessError):  # it is dead already
            os.kill(self._nursery_pid, signal.SIGKILL)
            os.waitpid(self._nursery_pid, 0)
        for decoder in tuple(self._at_work.values()):  # a call may end meanwhile
            decoder.kill()
        while self._idle:
            self._idle.pop().close()


class _Decoder:
    """The worker's end of one decoder."""

    def __init__(self, nursery: socket.socket) -> None:
        """Have the nursery fork it. Raises ChildProcessError."""
        self._end, theirs = socket.socketpair()
        self._pid: int | None = None
        try:
            socket.send_fds(nursery, [_FORK], [theirs.fileno()])
        except OSError as gone:
            self.close()
            raise ChildProcessError("the process that starts image decoders has ended") from gone
        finally:
            theirs.close()

    def give(self, data: bytes, image_format: str) -> None:
        """Send an image. Raises EOFError or ConnectionError, as `take` does, if the decoder has
        died."""
        self._pid = self._pid or _receive(self._end, _pid)
        _send(self._end, _Encoded(image_format, len(data)), data)

    def take(self) -> PreparedImage:
        """Return the pixels of that image. Raises ItemError."""
        answer = _receive(self._end, _answer)
        if isinstance(answer, _Refused):
            raise ItemError(answer.kind, answer.reason, transient=answer.transient)
        width, height = answer.size
        pixels = _exactly(self._end, 3 * width * height)
        image = Image.frombuffer("RGB", answer.size, pixels, "raw", "RGB", 0, 1)
        return PreparedImage(image, *answer.original_size, answer.backdrop, answer.sha256)

    def kill(self) -> None:
        """Kill the process; whoever waits for its answer gets an EOFError."""
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Let the process end."""
        self._end.close()


def _keep_freed_memory() -> None:
    """Have this process and its forks reuse the memory of the last image for the next one. By
    default, glibc gives it back to the system, whose new pages cost 5% of the time per image."""
    libc = ctypes.CDLL(None)
    for parameter, num_bytes in _MALLOC:
        libc.mallopt(parameter, num_bytes)


def _tend(end: socket.socket, config: ImageConfig) -> None:
    """The nursery: fork a decoder for each socket that arrives, until the worker is gone."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for decoders
        name_process(DECODER_NAME)
        gc.freeze()  # or the first collection would copy all that is shared with the worker
        os.dup2(end.detach(), 3)
        os.closerange(4, _MAX_DESCRIPTORS)  # the worker's link to its driver, above all
        end = socket.socket(fileno=3)
        while ends := socket.recv_fds(end, len(_FORK), 1)[1]:
            if not os.fork():
                end.close()
                _serve(socket.socket(fileno=ends[0]), config)
            os.close(ends[0])
    except BaseException:  # noqa: BLE001 - of a decoder, too; it goes into the engine's log
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)  # neither an end nor an error may lead back into the worker's code


def _serve(end: socket.socket, config: ImageConfig) -> None:
    """A decoder: one image after the other, until the worker is gone."""
    faulthandler.enable(2)  # not `sys.stderr`, which may be a stream without a descriptor
    try:
        _send(end, os.getpid())
        while True:
            asked = _receive(end, _encoded)
            data = bytes(_exactly(end, asked.num_bytes))
            try:
                prepared = decode_image(data, asked.image_format, config)
            except ItemError as error:
                _send(end, _Refused(error.kind, error.reason, error.transient))
                continue
            finally:
                del data
            original = prepared.width, prepared.height
            head = _Decoded(prepared.image.size, original, prepared.backdrop, prepared.sha256)
            _send(end, head, prepared.image.tobytes())
            del prepared
    except (EOFError, ConnectionError):
        os._exit(0)


# --- the wire: the length of a head, the head in msgpack, and the bytes that it announces ---------


def _send(end: socket.socket, head: object, payload: bytes = b"") -> None:
    encoded = msgspec.msgpack.encode(head)
    end.sendall(len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded)
    end.sendall(payload)


def _receive(end: socket.socket, head: msgspec.msgpack.Decoder[Head]) -> Head:
    """Raises EOFError if the other end is gone."""
    length = int.from_bytes(_exactly(end, _LENGTH_BYTES), "big")
    return head.decode(_exactly(end, length))


def _exactly(end: socket.socket, num_bytes: int) -> bytearray:
    received = bytearray(num_bytes)
    rest = memoryview(received)
    while rest:
        got = end.recv_into(rest, 0, socket.MSG_WAITALL)
        if not got:
            raise EOFError
        rest = rest[got:]
    return received
