"""Messages between a worker and its step processes: length-prefixed msgpack over a socket pair."""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgpack

_HEAD = struct.Struct("<Q")
FRAME_CAP = 1 << 31
_CHUNK = 1 << 18


def frame(message: Any) -> bytes:
    """One message as bytes."""
    body: bytes = msgpack.packb(message, use_bin_type=True)
    return _HEAD.pack(len(body)) + body


class Reader:
    """Splits a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """All messages that are complete now."""
        buffer = self._buffer
        if not buffer and len(data) >= 8 and len(data) == 8 + _HEAD.unpack_from(data)[0]:
            return [_unpack(memoryview(data)[8:])]
        buffer += data
        found = []
        start = 0
        while len(buffer) - start >= 8:
            (size,) = _HEAD.unpack_from(buffer, start)
            if size > FRAME_CAP:
                raise ValueError(f"a frame of {size} bytes")
            if len(buffer) - start - 8 < size:
                break
            found.append(_unpack(bytes(buffer[start + 8 : start + 8 + size])))
            start += 8 + size
        if start:
            del buffer[:start]
        return found


def receive(sock: socket.socket) -> Any:
    """The next message, waiting for it; ``EOFError`` when the other side is gone."""
    head = _exactly(sock, 8)
    (size,) = _HEAD.unpack(head)
    if size > FRAME_CAP:
        raise EOFError(f"a frame of {size} bytes")
    return _unpack(_exactly(sock, size))


def _exactly(sock: socket.socket, size: int) -> bytes | bytearray:
    data = sock.recv(min(size, _CHUNK)) if size else b""
    if len(data) == size:
        return data
    buffer = bytearray(size)
    view = memoryview(buffer)
    view[: len(data)] = data
    at = len(data)
    while at < size:
        if not data:
            raise EOFError
        got = sock.recv_into(view[at:])
        if not got:
            raise EOFError
        at += got
    return buffer


def _unpack(body: Any) -> Any:
    return msgpack.unpackb(body, raw=False, strict_map_key=False, use_list=True)
