"""A two-way stream of messages over a socket: msgpack, each preceded by its length.

Sending never blocks. A worker holds a bounded number of items, so few messages wait to be sent.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Generic, TypeVar

import msgspec

from vllm_caption.messages import DriverMessage, WorkerMessage

In = TypeVar("In")
Out = TypeVar("Out")

LENGTH_BYTES = 4


class Channel(Generic[Out, In]):
    """One end of a socket pair."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, incoming: Any
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)
        self._encoder = msgspec.msgpack.Encoder()

    async def receive(self) -> In | None:
        """The next message; None if the other end is gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def send(self, message: Out) -> None:
        """Queue a message. It is dropped if the other end is dead, which the reader will notice."""
        payload = self._encoder.encode(message)
        self._writer.write(len(payload).to_bytes(LENGTH_BYTES, "big") + payload)

    async def flush(self) -> None:
        """Wait until everything sent has left this process, or the other end is gone."""
        try:
            await self._writer.drain()
            self._writer.close()
            await self._writer.wait_closed()
        except ConnectionError:
            return

    def close(self) -> None:
        """Close this end now, without sending what is queued; a waiting `receive` returns None."""
        self._writer.transport.abort()


async def driver_channel(end: socket.socket) -> Channel[DriverMessage, WorkerMessage]:
    """The driver's end of a socket pair."""
    reader, writer = await asyncio.open_connection(sock=end)
    return Channel(reader, writer, WorkerMessage)


async def worker_channel(end: socket.socket) -> Channel[WorkerMessage, DriverMessage]:
    """The worker's end of a socket pair."""
    reader, writer = await asyncio.open_connection(sock=end)
    return Channel(reader, writer, DriverMessage)
