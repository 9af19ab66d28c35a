"""A WriteMetrics call over HTTP/2 written by hand: a load generator that costs little.

A generator shares its machine with the gateway that it measures, and what it
spends the gateway lacks. grpc.aio spends about 0.1 ms on a message; this sends
the same bytes for less, several messages to a system call where HTTP/2's windows
allow. Frames: RFC 9113; messages: "gRPC over HTTP2" in gRPC's documentation.

Stands in for headrace.stream_call.StreamCall in `raw_streams`. It does not decode
headers, so a call that the gateway ended looks like one that ended well, too early.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Sequence
from typing import Final, Self, cast

from headrace.stream_call import StreamOverError
from headrace.v1.metric_service_pb2 import WriteMetricsResponse

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_WINDOW_SETTING, _FRAME_SETTING = 4, 5
_CONNECTION, _STREAM = 0, 1  # one call a connection
_FRAME: Final = struct.Struct(">BHBBI")  # length in 1 + 2 bytes, type, flags, stream
_SETTING: Final = struct.Struct(">HI")
_PREFIX: Final = struct.Struct(">BI")  # compressed?, length
_CREDIT_BYTES: Final = 16_384  # received since the last WINDOW_UPDATE of ours


class BareCall(asyncio.Protocol):
    """A call on a connection of its own. Make it with `open`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes | memoryview] = []
        self._window = {_CONNECTION: 65_535, _STREAM: 65_535}
        self._initial_window = 65_535
        self._frame_bytes_max = 16_384
        self._room = asyncio.Event()
        self._incoming = bytearray()
        self._body = bytearray()
        self._uncredited_bytes = 0
        self._responses: deque[WriteMetricsResponse] = deque()
        self._changed = asyncio.Event()
        self._over = self._left = False

    @classmethod
    async def open(
        cls, address: str, method: str, metadata: Sequence[tuple[str, str]] | None
    ) -> Self:
        """Connect and start the call."""
        host, _, port = address.rpartition(":")
        _, call = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        headers = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *(metadata or ()),
        )
        call._send(_frame(_SETTINGS, 0, _CONNECTION, b""))
        call._send(_frame(_HEADERS, _END_HEADERS, _STREAM, b"".join(map(_literal, headers))))
        return call

    async def write(self, message: bytes) -> None:
        """Send a message; returns when HTTP/2's windows have taken it.

        Raises:
            StreamOverError: the call is over.
        """
        data = memoryview(_PREFIX.pack(0, len(message)) + message)
        while data:
            if self._over:
                raise StreamOverError
            size = min(len(data), self._frame_bytes_max, *self._window.values())
            if size <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            self._window[_CONNECTION] -= size
            self._window[_STREAM] -= size
            self._send(_frame_head(_DATA, 0, _STREAM, size), data[:size])
            data = data[size:]

    async def read(self) -> WriteMetricsResponse | None:
        """Return the next response; None when the call is over.

        Raises:
            asyncio.CancelledError: `cancel` was called, as grpc.aio has it.
        """
        while not self._responses:
            if self._left:
                raise asyncio.CancelledError
            if self._over:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._responses.popleft()

    def cancel(self) -> None:
        """Leave. Idempotent."""
        self._left = True
        if self._transport is not None:
            self._transport.abort()
        self._end()

    # -- asyncio.Protocol -----------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(_PREFACE)

    def connection_lost(self, _: Exception | None) -> None:
        """End the call."""
        self._end()

    def data_received(self, data: bytes) -> None:
        """Take in whole frames and keep the rest."""
        self._incoming += data
        start = 0
        while len(self._incoming) - start >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(self._incoming, start)
            end = start + _FRAME.size + (high << 16 | low)
            if end > len(self._incoming):
                break
            self._take(kind, flags, stream, bytes(self._incoming[start + _FRAME.size : end]))
            start = end
        del self._incoming[:start]

    # -- inside ---------------------------------------------------------------

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._receive(payload)
        elif kind == _WINDOW_UPDATE:
            self._window[stream] += int.from_bytes(payload, "big")
            self._room.set()
        elif kind == _SETTINGS and not flags & _ACK:
            self._adopt(dict(_SETTING.iter_unpack(payload)))
            self._send(_frame(_SETTINGS, _ACK, _CONNECTION, b""))
        elif kind == _PING and not flags & _ACK:
            self._send(_frame(_PING, _ACK, _CONNECTION, payload))
        elif kind in {_RESET, _GOAWAY} or (kind == _HEADERS and flags & _END_STREAM):
            self._end()

    def _adopt(self, settings: dict[int, int]) -> None:
        window = settings.get(_WINDOW_SETTING, self._initial_window)
        self._window[_STREAM] += window - self._initial_window
        self._initial_window = window
        self._frame_bytes_max = settings.get(_FRAME_SETTING, self._frame_bytes_max)
        self._room.set()

    def _receive(self, payload: bytes) -> None:
        self._body += payload
        while len(self._body) >= _PREFIX.size:
            _, length = _PREFIX.unpack_from(self._body)
            end = _PREFIX.size + length
            if len(self._body) < end:
                break
            message = bytes(self._body[_PREFIX.size : end])
            self._responses.append(WriteMetricsResponse.FromString(message))
            del self._body[:end]
        self._changed.set()
        self._uncredited_bytes += len(payload)
        if self._uncredited_bytes >= _CREDIT_BYTES:
            credit = self._uncredited_bytes.to_bytes(4, "big")
            self._uncredited_bytes = 0
            self._send(_frame(_WINDOW_UPDATE, 0, _CONNECTION, credit))
            self._send(_frame(_WINDOW_UPDATE, 0, _STREAM, credit))

    def _send(self, *pieces: bytes | memoryview) -> None:
        """Send with everything else of this turn of the event loop, in one system call."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing += pieces

    def _flush(self) -> None:
        if self._transport is not None and not self._over:
            self._transport.writelines(self._outgoing)
        self._outgoing.clear()

    def _end(self) -> None:
        self._over = True
        self._room.set()
        self._changed.set()


def _frame_head(kind: int, flags: int, stream: int, size: int) -> bytes:
    return _FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, stream)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _frame_head(kind, flags, stream, len(payload)) + payload


def _literal(header: tuple[str, str]) -> bytes:
    """Return a header as HPACK's literal without indexing, unhuffed; lengths below 127."""
    name, value = (text.encode("ascii") for text in header)
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
