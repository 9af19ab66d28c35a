"""A bidirectional call of grpc.aio whose end is told as its peer told it.

When the gateway ends a stream while the client writes, the write fails, and
grpc.aio (seen in 1.85) puts a status of its own, INTERNAL "Internal error from
Core", in place of the gateway's, which had come already or comes a moment later.
A sender that believed it would take WRITER_FENCED for a passing failure, come
back, and fence the stream that fenced it. So here a failed write says only that
the stream is over; `read` says how.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final, Generic, TypeVar

import grpc
import grpc.aio

Response = TypeVar("Response")

_MADE_UP: Final = "Internal error from Core"
_STATUS_DEADLINE_S: Final = 5.0  # it follows the last response at once
_STATUS_POLL_S: Final = 0.005


class StreamOverError(Exception):
    """The stream takes no more messages; `StreamCall.read` tells why."""


class StreamCall(Generic[Response]):
    """One call: a single task reads, any may write."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, Response]) -> None:
        self._call = call
        # Iterated, not `read`: that one stops at a failed write with responses still to come.
        self._responses: AsyncIterator[Response] = call.__aiter__()
        self._end: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note_end)

    async def read(self) -> Response | None:
        """The next response; None at the end of a stream that did not fail.

        Raises:
            grpc.aio.AioRpcError: the stream failed, with the status of the peer.
        """
        try:
            return await anext(self._responses, None)
        except grpc.aio.AioRpcError as error:
            raise await self._as_told(error) from None

    async def write(self, message: bytes) -> None:
        """Sends; returns when the transport took it.

        Raises:
            StreamOverError: the stream has ended.
        """
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise StreamOverError from error

    async def done_writing(self) -> None:
        """Half-closes; nothing happens when the stream is over."""
        try:
            await self._call.done_writing()
        except (grpc.aio.BaseError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    def cancel(self) -> None:
        """Drops the call. Idempotent."""
        self._call.cancel()

    def _note_end(self, _: object) -> None:
        """Keeps the first status, before a failed write replaces it."""
        call = self._call
        self._end = grpc.aio.AioRpcError(
            _immediate(call.code()),
            _immediate(call.initial_metadata()),
            _immediate(call.trailing_metadata()),
            details=_immediate(call.details()),
        )

    async def _as_told(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        deadline = time.monotonic() + _STATUS_DEADLINE_S
        while self._end is None or self._end.details() == _MADE_UP:
            if time.monotonic() > deadline:
                return error
            await asyncio.sleep(_STATUS_POLL_S)
            self._note_end(self._call)
        return self._end


def _immediate(answer: Coroutine[Any, Any, Any]) -> Any:
    """The result of a question to a finished call, which needs no waiting."""
    try:
        answer.send(None)
    except StopIteration as stop:
        return stop.value
    answer.close()
    raise RuntimeError("the call is not over")
