"""Frames that break the rules of HTTP/2 and gRPC: who sends them suffers, and nobody else does.

Frames: RFC 9113; what stands in a DATA frame: "gRPC over HTTP2" in gRPC's documentation.
"""

import asyncio
import contextlib
import random
import re
import socket
import struct
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import grpc
import pytest

from benchmarks.bare_call import BareCall
from tests.support.gateway_process import GatewayProcess
from tests.support.memory import Memory
from tests.support.waiting import eventually_async
from tests.support.writer_stream import (
    HEARTBEAT,
    WRITE,
    WriterStream,
    batch,
    bystander,
    connected,
    create_run,
    keys,
    opening,
)

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 8, 9
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_CANCELLED: Final = struct.pack(">I", 8)
_WINDOW_MAX: Final = struct.pack(">I", 2**31 - 1)
_FRAME_BYTES_MAX: Final = 16_384
_FLOOD_FRAMES: Final = 4_096  # of the largest: 64 MiB
_ANSWER_DEADLINE_S: Final = 60.0
_READ_AHEAD_MIB_MAX: Final = 128
"""gRPC reads ahead of its parser, as much as there is: 64 to 90 MiB were seen of CONTINUATION."""


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    length = struct.pack(">I", len(payload))[1:]
    return length + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _literal(name: str, value: str) -> bytes:
    """Return a header as HPACK's literal without indexing; lengths below 127."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


_PADDING: Final = _literal("padding", "x" * 116)
_CALL: Final = b"".join(
    _literal(name, value)
    for name, value in (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", WRITE),
        (":authority", "gateway"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
)


# ---- messages --------------------------------------------------------------------------


class RudeCall(BareCall):
    """A call that says what it likes. Make it with `open`.

    Attributes:
        trailers: of the call, as they came; empty when it had none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trailers = b""

    def send_data(self, data: bytes, flags: int) -> None:
        """Send a DATA frame."""
        self._send(_frame(_DATA, flags, 1, data))

    async def status(self) -> int:
        """Read to the end and return the status that the gateway ended the call with."""
        async with asyncio.timeout(_ANSWER_DEADLINE_S):
            while (answer := await self.read()) is not None:
                assert not answer.HasField("finished")
        (status,) = re.findall(rb"grpc-status.(\d+)", self.trailers, re.DOTALL)
        return int(status)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _HEADERS and flags & _END_STREAM:
            self.trailers = payload
        super()._take(kind, flags, stream, payload)


@pytest.mark.parametrize(
    ("data", "flags", "status"),
    [
        pytest.param(
            struct.pack(">BI", 0, 1_000) + b"cut off",
            _END_STREAM,
            grpc.StatusCode.OK,  # gRPC takes it for a half-close: nothing is `finished`
            id="shorter than its length",
        ),
        pytest.param(
            struct.pack(">BI", 0, 2**32 - 1) + bytes(10_000),
            0,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            id="of 4 GiB",
        ),
        pytest.param(
            struct.pack(">BI", 1, len(HEARTBEAT)) + HEARTBEAT,
            0,
            grpc.StatusCode.INTERNAL,
            id="compressed by nothing",
        ),
    ],
)
async def test_message_that_breaks_its_frame_ends_its_stream_and_undoes_nothing(
    data: bytes, flags: int, status: grpc.StatusCode, shared_gateway: GatewayProcess
) -> None:
    address = shared_gateway.address
    async with bystander(address), connected(address) as channel:
        run_id, writer_id = await create_run(channel), uuid.uuid4().hex
        call = await RudeCall.open(address, WRITE, None)
        try:
            for message in (opening(run_id, writer_id=writer_id), keys("loss"), batch(1)):
                await call.write(message)
            while (answer := await call.read()) is not None:
                if answer.ack.committed_sequence == 1:
                    break
            call.send_data(data, flags)
            assert await call.status() == status.value[0]
        finally:
            call.cancel()
        async with WriterStream(channel) as again:
            await again.send(opening(run_id, writer_id=writer_id))
            await again.read_until(1)


# ---- connections -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """What is sent on one connection, and what must come of it.

    Attributes:
        frames: what is sent, in pieces.
        hangs_up: whether the gateway ends the connection before it has answered all; None where
            that depends on who is faster.
        hears: what is among its answers.
        growth_mib_max: of the gateway's memory.
    """

    frames: Iterable[bytes] = field(repr=False)
    hangs_up: bool | None = False
    hears: bytes = b""
    growth_mib_max: int = 32


def _resets() -> Iterator[bytes]:
    for stream in range(1, 10_001, 2):
        yield _frame(_HEADERS, _END_HEADERS, stream, _CALL)
        yield _frame(_RESET, 0, stream, _CANCELLED)


_OPENED: Final = _frame(_HEADERS, _END_HEADERS, 1, _CALL)
_FILLER: Final = _PADDING * (_FRAME_BYTES_MAX // len(_PADDING))
_FLOODS: Final = {
    "PING": Flood(
        frames=[_frame(_PING, 0, 0, b"are you?") * 1_000] * 10,
        hangs_up=None,
        hears=b"too_many_pings",
    ),
    "SETTINGS": Flood(
        frames=[_frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)) * 1_000] * 50,
        hears=_frame(_SETTINGS, _ACK, 0),
    ),
    "RST_STREAM": Flood(frames=list(_resets())),
    # gRPC takes windows beyond the greatest that HTTP/2 knows, and goes on.
    "WINDOW_UPDATE": Flood(
        frames=[
            _OPENED,
            *(_frame(_WINDOW_UPDATE, 0, stream, _WINDOW_MAX) for stream in (0, 1, 0, 1)),
        ]
    ),
    "CONTINUATION": Flood(
        frames=[
            _frame(_HEADERS, 0, 1, _CALL),
            *[_frame(_CONTINUATION, 0, 1, _FILLER)] * _FLOOD_FRAMES,
        ],
        hangs_up=True,
        growth_mib_max=_READ_AHEAD_MIB_MAX,
    ),
    "DATA beyond the window": Flood(
        frames=[_OPENED, *[_frame(_DATA, 0, 1, bytes(_FRAME_BYTES_MAX))] * _FLOOD_FRAMES],
        hangs_up=True,
        growth_mib_max=_READ_AHEAD_MIB_MAX,
    ),
}
_LAST: Final = _frame(_PING, 0, 0, b"the end!")
_LAST_ANSWERED: Final = _frame(_PING, _ACK, 0, b"the end!")


@pytest.mark.parametrize("name", _FLOODS)
async def test_flood_of_frames_costs_little_memory_and_nobody_else_anything(
    name: str, shared_gateway: GatewayProcess
) -> None:
    flood = _FLOODS[name]
    memory = Memory(shared_gateway.pid)
    async with bystander(shared_gateway.address), asyncio.timeout(_ANSWER_DEADLINE_S):
        answers = await _pour(shared_gateway.address, flood.frames)
    grown_mib = memory.grown() >> 20
    print(f"{name}: {grown_mib} MiB")
    if flood.hangs_up is not None:
        assert (_LAST_ANSWERED not in answers) == flood.hangs_up
    assert flood.hears in answers
    assert grown_mib < flood.growth_mib_max
    assert shared_gateway.process.poll() is None
    await eventually_async(
        lambda: shared_gateway.metrics()["headrace_streams"] == 0, "no stream is left"
    )


async def _pour(address: str, frames: Iterable[bytes]) -> bytes:
    """Send all frames, or what the gateway takes of them; return what it answered until then."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    answers = bytearray()
    # Not by asyncio's streams: they drop what was answered when a later frame cannot be sent.
    with socket.create_connection((host, int(port))) as raw:
        raw.setblocking(False)

        async def listen() -> None:
            with contextlib.suppress(ConnectionError):
                while _LAST_ANSWERED not in answers and (
                    answer := await loop.sock_recv(raw, 1 << 16)
                ):
                    answers.extend(answer)

        listening = asyncio.create_task(listen())
        with contextlib.suppress(ConnectionError):
            for frame in (_PREFACE, _frame(_SETTINGS, 0, 0), *frames, _LAST):
                await loop.sock_sendall(raw, frame)
        await listening
    return bytes(answers)


async def test_what_is_no_http2_at_all_is_dropped(shared_gateway: GatewayProcess) -> None:
    generator = random.Random(20)
    host, port = shared_gateway.address.rsplit(":", 1)
    floods = [generator.randbytes(1 << generator.randrange(16)) for _ in range(40)]
    floods += [_PREFACE + generator.randbytes(1 << generator.randrange(12)) for _ in range(40)]
    # A DATA frame of 16 MiB on a stream that was never opened, and its header only.
    floods.append(_PREFACE + b"\xff\xff\xff" + bytes([_DATA, 0]) + struct.pack(">I", 1))
    async with bystander(shared_gateway.address):
        for flood in floods:
            raw = socket.create_connection((host, int(port)), timeout=60)
            raw.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_sendall(raw, flood)
            except ConnectionError:
                pass  # dropped in the middle: what was asked for
            finally:
                raw.close()
    assert shared_gateway.process.poll() is None
