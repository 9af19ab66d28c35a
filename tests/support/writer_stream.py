"""A WriteMetrics stream by hand: says exactly what a test wants said, well-formed or not."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.rpc import error_details_pb2, status_pb2
from headrace.stream_call import StreamCall, StreamOverError
from headrace.v1 import metric_service_pb2 as wire
from headrace.v1 import run_service_pb2, run_service_pb2_grpc

WRITE: Final = "/headrace.v1.MetricService/WriteMetrics"
OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
)
_ANSWER_DEADLINE_S: Final = 60.0  # a busy machine is slow
TIME_US: Final = 1_767_225_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a call failed: its status and its ErrorInfo ("" and {} when it had none)."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]


def failure_of(
    code: grpc.StatusCode, message: str | None, trailers: Sequence[tuple[str, str | bytes]] | None
) -> Failure:
    """Read the details of a status; assert that there is at most one ErrorInfo."""
    infos = []
    for key, value in trailers or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    infos.append(info)
    assert len(infos) <= 1, infos
    return Failure(
        code=code,
        message=message or "",
        reason=infos[0].reason if infos else "",
        metadata=dict(infos[0].metadata) if infos else {},
    )


async def create_run(channel: grpc.aio.Channel, **properties: Any) -> str:
    """Create a run; return its id."""
    run_id = uuid.uuid4().hex
    stub = run_service_pb2_grpc.RunServiceStub(channel)
    await stub.CreateRun(run_service_pb2.CreateRunRequest(run_id=run_id, **properties), timeout=60)
    return run_id


def opening(run_id: str, **fields: Any) -> bytes:
    """An `open` message of a new writer, unless told otherwise."""
    values = {"writer_id": uuid.uuid4().hex, "incarnation": "a" * 32, "attempt": 1, **fields}
    return wire.WriteMetricsRequest(
        open=wire.OpenWriter(run_id=run_id, **values)
    ).SerializeToString()


def keys(*names: str, first: int = 0) -> bytes:
    """A `keys` message."""
    definitions = [
        wire.KeyDefinition(index=first + number, key=name) for number, name in enumerate(names)
    ]
    return wire.WriteMetricsRequest(keys=wire.DefineKeys(keys=definitions)).SerializeToString()


def batch(first_sequence: int = 1, points: int = 1, **columns: Any) -> bytes:
    """A `batch` message with one record, of series 0 unless told otherwise."""
    values = {
        "record_count": 1,
        "series_index": [0] * points,
        "step": range(first_sequence, first_sequence + points),
        "time_unix_us": [TIME_US] * points,
        "value": [0.5] * points,
        **columns,
    }
    return wire.WriteMetricsRequest(
        batch=wire.MetricBatch(first_sequence=first_sequence, **values)
    ).SerializeToString()


def finish(last_sequence: int) -> bytes:
    """A `finish` message."""
    return wire.WriteMetricsRequest(
        finish=wire.FinishWriter(last_sequence=last_sequence)
    ).SerializeToString()


HEARTBEAT: Final = wire.WriteMetricsRequest(heartbeat=wire.Heartbeat()).SerializeToString()


class WriterStream:
    """One stream. Sends bytes; reads responses; remembers the watermark it was told.

    Attributes:
        committed: the last watermark received, -1 before `opened`.
        over: whether a message could not be sent because the stream has ended.
        answers: every response, in order.
    """

    def __init__(
        self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] | None = None
    ) -> None:
        method: Any = channel.stream_stream(WRITE, None, wire.WriteMetricsResponse.FromString)
        self._call = StreamCall[wire.WriteMetricsResponse](method(metadata=metadata))
        self._failure: Failure | None = None
        self.committed = -1
        self.over = False
        self.answers: list[wire.WriteMetricsResponse] = []

    async def send(self, *messages: bytes) -> None:
        """Send; a stream that has ended already says so in `failure`."""
        for message in messages:
            try:
                await self._call.write(message)
            except StreamOverError:
                self.over = True
                return

    async def read(self) -> wire.WriteMetricsResponse | None:
        """Return the next response; None at the end of the stream."""
        try:
            answer = await asyncio.wait_for(self._call.read(), _ANSWER_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            self._failure = failure_of(
                error.code(), error.details(), list(error.trailing_metadata() or ())
            )
            return None
        if answer is None:
            return None
        kind = answer.WhichOneof("message")
        if kind in ("opened", "ack", "finished"):
            committed = getattr(answer, str(kind)).committed_sequence
            assert committed >= self.committed, "the watermark went back"
            self.committed = committed
        self.answers.append(answer)
        return answer

    async def read_until(self, committed: int) -> None:
        """Read until the watermark has reached `committed`."""
        while self.committed < committed:
            answer = await self.read()
            assert answer is not None, f"the stream ended: {await self.failure()}"

    async def failure(self) -> Failure:
        """Read to the end of the stream and return how it failed."""
        while await self.read() is not None:
            pass
        return self._failure or failure_of(grpc.StatusCode.OK, "", ())

    def cancel(self) -> None:
        """Drop the stream."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()


@contextlib.asynccontextmanager
async def connected(
    address: str, *options: tuple[str, int], compression: grpc.Compression | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """Yield a channel with a connection of its own."""
    async with grpc.aio.insecure_channel(
        address, options=(*OPTIONS, *options), compression=compression
    ) as channel:
        yield channel


@contextlib.asynccontextmanager
async def bystander(address: str) -> AsyncIterator[None]:
    """A good stream that must not notice whatever happens inside the block.

    Sends one batch after the other and waits for each acknowledgement; at the
    end it finishes and must have lost nothing, without ever reconnecting.
    """
    async with connected(address) as channel:
        run_id = await create_run(channel)
        async with WriterStream(channel) as stream:
            await stream.send(opening(run_id), keys("good"))
            stop = asyncio.Event()

            async def write() -> int:
                sequence = 0
                while not stop.is_set() or sequence < 2:
                    sequence += 1
                    await stream.send(batch(sequence))
                    await stream.read_until(sequence)
                    await asyncio.sleep(random.uniform(0, 0.01))
                return sequence

            writing = asyncio.create_task(write())
            try:
                yield
            finally:
                stop.set()
                sequence = await writing
            await stream.send(finish(sequence))
            assert (await stream.failure()).code is grpc.StatusCode.OK
            assert stream.answers[-1].finished.counters.accepted_points == sequence
