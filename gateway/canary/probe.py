"""The canary's conversation with a gateway: open, write, wait, read, compare; for ever.

Without a number of beats a gateway that is away is waited for, however long;
with one it may fail as many times in a row. Nothing is lost by that: the writer
resumes from the gateway's watermark, as every client does. A run is finished
and replaced after `run_records` records, so that none grows without bound.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import structlog
from headrace.limits import BATCH_POINTS_MAX
from headrace.v1 import metric_service_pb2 as wire
from headrace.v1 import metric_service_pb2_grpc, run_service_pb2, run_service_pb2_grpc

from gateway.canary.ledger import Verdict, first_step_of_window, judge, step_of, value_of
from gateway.canary.measurements import Measurements

_LOG = structlog.get_logger(__name__)

KEY: Final = "canary/value"
CALL_DEADLINE_S: Final = 30.0
RETRY_S: Final = 1.0
_HOPELESS: Final = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
)
"""What the next try would meet again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which gateway, and how to talk to it.

    Attributes:
        address: host:port, or https://host:port for TLS.
        token: bearer token; empty: none.
        root_certificates: PEM authorities for TLS; None: the public ones, if TLS is asked for.
        experiment: name of the experiment that the runs belong to.
    """

    address: str
    token: str = ""
    root_certificates: bytes | None = None
    experiment: str = "headrace/canary/probe"

    def channel(self) -> grpc.aio.Channel:
        """Open a channel; nothing is sent."""
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1_000)]
        target = self.address.removeprefix("https://")
        if target == self.address and self.root_certificates is None:
            return grpc.aio.insecure_channel(target, options=options)
        credentials = grpc.ssl_channel_credentials(self.root_certificates)
        return grpc.aio.secure_channel(target, credentials, options=options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much and how long.

    Attributes:
        interval_s: between two beats.
        records: log calls of a beat, one point each.
        beats: after so many it ends, or after so many failures in a row; 0: never.
        run_records: records of a run before the next begins.
    """

    interval_s: float = 1.0
    records: int = 10
    beats: int = 0
    run_records: int = 36_000


@dataclass(slots=True, kw_only=True)
class _Writer:
    """One run, its one writer, and how far both ends are.

    Attributes:
        written: the last sequence that was sent, or was to be.
        acknowledged: the gateway's watermark as last heard.
        counted: the greatest it has been: a loss sets it back.
        verified: the watermark up to which points were read back.
    """

    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    writer_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    written: int = 0
    acknowledged: int = 0
    counted: int = 0
    verified: int = 0


async def watch(target: Target, pace: Pace, measurements: Measurements) -> bool:
    """Beat until `pace.beats` are done or the task is cancelled.

    Returns:
        Whether they are done; False when the gateway failed so many times in a
        row, or refused for good. Never without a number of beats.
    """
    done = failed = 0
    writer = _Writer()

    def beat_done() -> bool:
        nonlocal done, failed
        done += 1
        failed = 0
        return bool(pace.beats) and done >= pace.beats

    async with target.channel() as channel:
        conversation = _Conversation(channel, target, measurements)
        while True:
            try:
                ended = await conversation.hold(writer, pace, beat_done)
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                measurements.failed()
                failed += 1
                code, detail = _explained(error)
                _LOG.warning(
                    "the gateway failed the canary",
                    address=target.address, code=code.name, detail=detail,
                )  # fmt: skip
                if pace.beats and (code in _HOPELESS or failed >= pace.beats):
                    return False
                await asyncio.sleep(RETRY_S)
                continue
            if ended:
                return True
            writer = _Writer()


class _Conversation:
    """The calls of one channel."""

    def __init__(
        self, channel: grpc.aio.Channel, target: Target, measurements: Measurements
    ) -> None:
        self._metrics = metric_service_pb2_grpc.MetricServiceStub(channel)
        self._runs = run_service_pb2_grpc.RunServiceStub(channel)
        self._target = target
        self._measurements = measurements

    async def hold(self, writer: _Writer, pace: Pace, beat_done: Callable[[], bool]) -> bool:
        """Write and read one run to its end; return whether that was the last beat.

        Raises:
            grpc.aio.AioRpcError: the gateway is away, or drains.
            TimeoutError: its stream is silent.
        """
        await self._runs.CreateRun(
            run_service_pb2.CreateRunRequest(
                run_id=writer.run_id, experiment=self._target.experiment
            ),
            metadata=self._target.metadata,
            timeout=CALL_DEADLINE_S,
        )
        async with _opened(self._metrics, self._target, writer) as stream:
            lost = writer.acknowledged - stream.committed
            if lost > 0:
                self._measurements.judged(Verdict(lost=lost))
                # Counted once, whatever becomes of this stream.
                writer.acknowledged = stream.committed
                writer.verified = min(writer.verified, stream.committed)
            if writer.written > stream.committed:  # under way when the last stream ended, or lost
                missing = range(stream.committed + 1, writer.written + 1)
                for first in range(0, len(missing), BATCH_POINTS_MAX):
                    await stream.write(missing[first : first + BATCH_POINTS_MAX])
                await stream.wait(writer.written)
            self._advance(writer, stream.committed)
            while True:
                started = time.monotonic()
                last = await self._beat(stream, writer, pace, beat_done)
                if last or writer.written >= pace.run_records:
                    await stream.finish(writer.written)
                    break
                await asyncio.sleep(max(0.0, started + pace.interval_s - time.monotonic()))
        await self._runs.FinishRun(
            run_service_pb2.FinishRunRequest(
                run_id=writer.run_id, attempt=1, state=run_service_pb2.RUN_STATE_FINISHED
            ),
            metadata=self._target.metadata,
            timeout=CALL_DEADLINE_S,
        )
        return last

    async def _beat(
        self, stream: "_Stream", writer: _Writer, pace: Pace, beat_done: Callable[[], bool]
    ) -> bool:
        first = writer.written + 1
        writer.written += pace.records
        self._measurements.wrote(pace.records)  # once: the next stream resends what fails here
        sent_at = time.monotonic()
        await stream.write(range(first, writer.written + 1))
        await stream.wait(writer.written)
        self._measurements.waited(time.monotonic() - sent_at)
        self._advance(writer, stream.committed)
        read_at = time.monotonic()
        verdict = await self._read(writer)
        self._measurements.read(time.monotonic() - read_at)
        self._measurements.judged(verdict)
        if not verdict.healthy:
            _LOG.error("the canary read what it did not write", run_id=writer.run_id, **{
                name: getattr(verdict, name) for name in Verdict.__dataclass_fields__
            })  # fmt: skip
        return beat_done()

    def _advance(self, writer: _Writer, committed_sequence: int) -> None:
        self._measurements.acknowledged(max(0, committed_sequence - writer.counted))
        writer.acknowledged = committed_sequence
        writer.counted = max(writer.counted, committed_sequence)

    async def _read(self, writer: _Writer) -> Verdict:
        steps: list[int] = []
        values: list[float] = []
        request = wire.ReadMetricsRequest(
            run_id=writer.run_id,
            keys=[KEY],
            first_step=first_step_of_window(writer.acknowledged, writer.verified),
            step_policy=run_service_pb2.STEP_POLICY_ALL,
        )
        async for answer in self._metrics.ReadMetrics(
            request, metadata=self._target.metadata, timeout=CALL_DEADLINE_S
        ):
            steps += answer.columns.step
            values += answer.columns.value
        listed = await self._metrics.ListSeries(
            wire.ListSeriesRequest(run_id=writer.run_id, key_prefix=KEY),
            metadata=self._target.metadata,
            timeout=CALL_DEADLINE_S,
        )
        verdict = judge(
            committed_sequence=writer.acknowledged,
            verified_sequence=writer.verified,
            steps=steps,
            values=values,
            stored_points=sum(series.point_count for series in listed.series),
        )
        writer.verified = writer.acknowledged
        return verdict


class _Stream:
    """One open WriteMetrics call; whatever waits for it does so for CALL_DEADLINE_S at most.

    Its reader task is never cancelled: the call is.

    Attributes:
        committed: the gateway's watermark as last heard.
    """

    def __init__(self, call: Any, committed_sequence: int) -> None:
        self.committed = committed_sequence
        self._call = call
        self._moved = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def define_key(self) -> None:
        """Send the dictionary."""
        await self._send(keys=wire.DefineKeys(keys=[wire.KeyDefinition(index=0, key=KEY)]))

    async def write(self, sequences: Sequence[int]) -> None:
        """Send records as one batch."""
        steps = [step_of(sequence) for sequence in sequences]
        await self._send(
            batch=wire.MetricBatch(
                first_sequence=sequences[0],
                record_count=len(sequences),
                series_index=[0] * len(steps),
                step=steps,
                time_unix_us=[time.time_ns() // 1_000] * len(steps),
                value=[value_of(step) for step in steps],
            )
        )

    async def wait(self, sequence: int) -> None:
        """Wait until the watermark reaches a sequence."""
        async with asyncio.timeout(CALL_DEADLINE_S):
            while self.committed < sequence:
                if self._reader.done():
                    raise await _failure(self._call)
                self._moved.clear()
                await self._moved.wait()

    async def finish(self, last_sequence: int) -> None:
        """Finish the writer and wait for the answer."""
        await self._send(finish=wire.FinishWriter(last_sequence=last_sequence))
        async with asyncio.timeout(CALL_DEADLINE_S):
            await asyncio.wait([self._reader])

    async def close(self) -> None:
        """End the call, if it has not ended."""
        self._call.cancel()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                kind = answer.WhichOneof("message")
                if kind == "reconnect":
                    break  # the gateway drains: another stream has to be opened
                self.committed = max(self.committed, getattr(answer, kind).committed_sequence)
                self._moved.set()
        self._moved.set()

    async def _send(self, **message: Any) -> None:
        try:
            async with asyncio.timeout(CALL_DEADLINE_S):
                await self._call.write(wire.WriteMetricsRequest(**message))
        except asyncio.InvalidStateError:
            raise await _failure(self._call) from None


@contextlib.asynccontextmanager
async def _opened(
    stub: "metric_service_pb2_grpc.MetricServiceAsyncStub", target: Target, writer: _Writer
) -> AsyncIterator[_Stream]:
    call: Any = stub.WriteMetrics(metadata=target.metadata)
    opening = wire.OpenWriter(
        run_id=writer.run_id,
        writer_id=writer.writer_id,
        incarnation=writer.incarnation,
        attempt=1,
    )
    async with asyncio.timeout(CALL_DEADLINE_S):
        await call.write(wire.WriteMetricsRequest(open=opening))
        answer = await call.read()
    if answer is grpc.aio.EOF:
        raise await _failure(call)
    stream = _Stream(call, answer.opened.committed_sequence)
    try:
        await stream.define_key()
        yield stream
    finally:
        await stream.close()


def _explained(error: grpc.aio.AioRpcError | TimeoutError) -> tuple[grpc.StatusCode, str | None]:
    if isinstance(error, TimeoutError):
        return grpc.StatusCode.DEADLINE_EXCEEDED, f"the stream was silent for {CALL_DEADLINE_S} s"
    return error.code(), error.details()


async def _failure(call: Any) -> grpc.aio.AioRpcError:
    """Return why a call ended; one that only asked to reconnect is ended as UNAVAILABLE."""
    code, details = grpc.StatusCode.UNAVAILABLE, "the gateway asked to reconnect"
    if call.done():
        code, details = await call.code(), await call.details()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
