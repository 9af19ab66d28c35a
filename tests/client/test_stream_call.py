"""A stream that its peer ends while the client writes tells the peer's status, and all it said."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import pytest
from headrace.stream_call import StreamCall, StreamOverError

_METHOD: Final = "/test.Service/Converse"
_ANSWERS: Final = (b"one", b"two", b"three")
_CALLS: Final = 60  # about every second one ends under a write


async def _refuse(_: object, context: Any) -> None:
    """Answer thrice, then fail at the second message of a client that goes on writing."""
    await context.read()
    for answer in _ANSWERS:
        await context.write(answer)
    await context.read()
    await context.abort(grpc.StatusCode.ABORTED, "fenced", (("told", "by the peer"),))


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(_refuse)
    handlers = grpc.method_handlers_generic_handler("test.Service", {"Converse": handler})
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


async def _write_until_over(call: StreamCall[bytes]) -> None:
    with contextlib.suppress(StreamOverError):
        while True:
            await call.write(bytes(3_000))


async def test_status_and_responses_survive_a_write_that_fails_at_the_end() -> None:
    async with _server() as channel:
        for _ in range(_CALLS):
            call = StreamCall[bytes](channel.stream_stream(_METHOD)())
            writing = asyncio.create_task(_write_until_over(call))
            for answer in _ANSWERS:
                assert await call.read() == answer
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            await writing
            error = caught.value
            assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "fenced")
            assert dict(error.trailing_metadata())["told"] == "by the peer"
            with pytest.raises(StreamOverError):
                await call.write(b"late")
            await call.done_writing()
