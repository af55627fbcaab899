"""A two-way stream of messages over a socket: msgpack, each preceded by its length.

Sending never blocks; what the other end sent before it ended is received. A worker holds a bounded
number of items, so few messages wait to be sent.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from contextlib import suppress
from typing import Any, Generic, TypeVar

import msgspec

from vllm_caption.messages import DriverMessage, WorkerMessage

In = TypeVar("In")
Out = TypeVar("Out")

LENGTH_BYTES = 4
_CHUNK_BYTES = 65536


class Channel(asyncio.Protocol, Generic[Out, In]):
    """One end of a socket pair."""

    def __init__(self, incoming: Any, end: socket.socket) -> None:
        self._end = end
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)
        self._encoder = msgspec.msgpack.Encoder()
        self._incomplete = b""
        self._payloads: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()

    async def receive(self) -> In | None:
        """The next message; None if the other end is gone."""
        while not self._payloads:
            if self._ended.is_set():
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._decoder.decode(self._payloads.popleft())

    def send(self, *messages: Out) -> None:
        """Queue messages. They are dropped if the other end is dead, which the reader will
        notice."""
        if not self._transport.is_closing():
            payloads = map(self._encoder.encode, messages)
            self._transport.write(
                b"".join(len(p).to_bytes(LENGTH_BYTES, "big") + p for p in payloads)
            )

    async def flush(self) -> None:
        """Send what is queued, then close this end; returns when that is done or the other end is
        gone."""
        self._transport.close()
        await self._ended.wait()

    def close(self) -> None:
        """Close this end now, without sending what is queued; a waiting `receive` returns None."""
        self._transport.abort()

    # --- called by the transport ---------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """The socket is ready."""
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        """Cut what has arrived into messages."""
        data, begin = self._incomplete + data, LENGTH_BYTES
        while len(data) >= begin:
            end = begin + int.from_bytes(data[begin - LENGTH_BYTES : begin], "big")
            if len(data) < end:
                break
            self._payloads.append(data[begin:end])
            begin = end + LENGTH_BYTES
        self._incomplete = data[begin - LENGTH_BYTES :]
        self._arrived.set()

    def connection_lost(self, error: Exception | None) -> None:
        """The other end is gone, or this one was closed."""
        if error is not None:  # a send has failed: what the other end sent before may be unread
            with suppress(OSError):
                while data := self._end.recv(_CHUNK_BYTES):
                    self.data_received(data)
        self._ended.set()
        self._arrived.set()


async def driver_channel(end: socket.socket) -> Channel[DriverMessage, WorkerMessage]:
    """The driver's end of a socket pair."""
    return await _channel(end, WorkerMessage)


async def worker_channel(end: socket.socket) -> Channel[WorkerMessage, DriverMessage]:
    """The worker's end of a socket pair."""
    return await _channel(end, DriverMessage)


async def _channel(end: socket.socket, incoming: Any) -> Channel[Any, Any]:
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_connection(lambda: Channel[Any, Any](incoming, end), sock=end)
    return channel
