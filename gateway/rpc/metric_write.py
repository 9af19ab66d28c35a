"""The write half of MetricService: streams to sessions and back.

Two tasks and sometimes a third serve a stream: the call's own waits for the end,
a reader feeds the session (a `read` is never cancelled: grpcio leaks what it had
allocated for it), and a responder lives only while something is owed to the
client, so that a client that does not read its acks blocks nobody. One of them
writes at a time (gRPC refuses a second write): the call's own task before it has
written `opened` and after the end, the responder between.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, Protocol

import grpc
from headrace.v1 import metric_service_pb2 as pb
from headrace.v1.error_reason_pb2 import ErrorReason

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.flush import Counters, OpenRequest, RejectionSample
from gateway.domain.identity import current_identity
from gateway.domain.limits import (
    BATCH_POINTS_MAX,
    HEARTBEAT_INTERVAL_MS,
    KEY_CHARACTERS_MAX,
    KEYS_MAX,
    MESSAGE_BYTES_MAX,
    RESUME_EXEMPT_KEYS_MAX,
    STEP_MAX,
    STEP_MIN,
)
from gateway.ingest.dictionary import key_fault
from gateway.ingest.engine import IngestEngine
from gateway.ingest.session import Batch, Session
from gateway.rpc import fields
from gateway.rpc.wire import decode

_RECONNECT_SPREAD_MS: Final = 2_000
_RANK_MAX: Final = 2**31 - 1
_OPEN_TIMEOUT_S: Final = 30.0  # a call costs memory before it is a stream too


class StreamContext(Protocol):
    """The part of grpc.aio.ServicerContext that a stream uses."""

    def read(self) -> Awaitable[object]:
        """Return the next message's bytes, or grpc.aio.EOF."""

    def write(self, message: pb.WriteMetricsResponse) -> Awaitable[None]:
        """Send a message; returns when the transport took it."""


class MetricWriteService:
    """WriteMetrics and ImportMetrics."""

    def __init__(self, engine: IngestEngine) -> None:
        self._engine = engine

    async def write_metrics(self, _: object, context: StreamContext) -> None:
        """Serve one WriteMetrics stream; see the contract."""
        await _Stream(self._engine, context, sends_acks=True).run()

    async def import_metrics(self, _: object, context: StreamContext) -> pb.ImportMetricsResponse:
        """Serve one ImportMetrics stream; see the contract."""
        stream = _Stream(self._engine, context, sends_acks=False)
        session = await stream.run()
        if session is None or not session.finished:
            raise HeadraceError(
                Reason.FIELD_REQUIRED,
                "the stream ended without `finish`; what was sent is stored",
                field="finish",
            )
        return pb.ImportMetricsResponse(
            committed_sequence=session.committed_sequence,
            counters=_counters(session.counters),
            rejections=[_rejection(sample) for sample in session.rejections],
        )


class _Stream:
    """One stream from its first message to its end."""

    def __init__(self, engine: IngestEngine, context: StreamContext, *, sends_acks: bool) -> None:
        self._engine = engine
        self._context = context
        self._sends_acks = sends_acks
        self._changed = asyncio.Event()
        self._responder: asyncio.Task[None] | None = None
        self._answered: Session | None = None  # by a responder, while it is set

    async def run(self) -> Session | None:
        """Serve the stream; None when the client left before it opened."""
        session = await self._open()
        if session is None:
            return None
        try:
            if self._sends_acks:
                await self._context.write(_opened(session, self._engine))
                self._answered = session
                self._wake()
            reader = asyncio.create_task(self._read(session))
            reader.add_done_callback(self._reader_ended)
            while not self._over(session, reader):
                self._changed.clear()
                await self._changed.wait()
            self._answered = None
            if session.ending is not None and session.ending.error is not None:
                raise session.ending.error
            if reader.done():
                reader.result()
            if session.finish_due:
                await self._engine.finish(session)
            if self._responder is not None:
                await self._responder
            await self._respond(session)
            if session.finished and self._sends_acks:
                await self._context.write(_finished(session))
            if session.draining and not session.finished and not self._sends_acks:
                raise HeadraceError(
                    Reason.DRAINING, "the gateway is shutting down", retry_after_ms=1_000
                )
        finally:
            self._engine.leave(session)
        return session

    async def _open(self) -> Session | None:
        with self._engine.opening():
            first = await self._first()
            if first is grpc.aio.EOF:
                return None
            return await self._engine.open(_open_request(_message(first)), on_change=self._wake)

    async def _first(self) -> object:
        reading = asyncio.ensure_future(self._context.read())
        reading.add_done_callback(self._reader_ended)
        await asyncio.wait({reading}, timeout=_OPEN_TIMEOUT_S)
        if not reading.done():  # it ends with the call
            raise HeadraceError(
                Reason.TRANSFER_STALLED,
                f"`open`, the first message of a stream, did not come within {_OPEN_TIMEOUT_S:g} s",
                field="open",
                limit=f"{_OPEN_TIMEOUT_S:g} s",
            )
        return reading.result()

    @staticmethod
    def _over(session: Session, reader: "asyncio.Task[None]") -> bool:
        if session.ending is not None:
            return True
        # What was admitted before a bad message is committed before the stream fails.
        return reader.done() and session.idle

    async def _read(self, session: Session) -> None:
        """Feed the session until the client's last message."""
        while True:
            await self._engine.room(session)
            if session.ending is not None or session.draining:
                return
            # Nothing here may keep a message: thousands of streams wait for their next one.
            if not await self._take(session, await self._context.read()):
                return

    async def _take(self, session: Session, raw: object) -> bool:
        """Feed the session one message; return whether another may follow."""
        if raw is grpc.aio.EOF:
            return False
        message = _message(raw)
        if isinstance(message, Batch):
            self._engine.admit(session, message)
            return True
        kind = message.WhichOneof("message")
        if kind == "keys":
            for definition in message.keys.keys:
                session.keys.define(definition.index, definition.key)
        elif kind == "heartbeat":
            self._engine.heartbeat(session)
        elif kind == "finish":
            session.finish(message.finish.last_sequence)
            return False
        elif kind == "resync":
            await self._engine.resync(session, message.resync.first_sequence)
        elif kind == "open":
            raise HeadraceError(Reason.OPEN_EXPECTED, "the stream is open already", field="open")
        else:
            raise HeadraceError(
                Reason.FIELD_REQUIRED,
                "the message sets none of the fields that this gateway knows",
                field="message",
            )
        return True

    def _reader_ended(self, reader: "asyncio.Future[Any]") -> None:
        if not reader.cancelled():
            reader.exception()  # looked at here even when the call is gone
        self._changed.set()

    def _wake(self) -> None:
        """React to a change of the session; called by whoever changed it."""
        self._changed.set()
        if self._answered is not None and self._responder is None:
            self._responder = asyncio.create_task(self._respond_and_go(self._answered))

    async def _respond_and_go(self, session: Session) -> None:
        try:
            await self._respond(session)
        except (grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # the client is gone; the call's own task learns it from the reader
        finally:
            self._responder = None

    async def _respond(self, session: Session) -> None:
        """Send what is owed, as often as something is."""
        while self._sends_acks:
            if session.take_reconnect():
                await self._context.write(
                    pb.WriteMetricsResponse(
                        reconnect=pb.Reconnect(retry_after_ms=_RECONNECT_SPREAD_MS)
                    )
                )
            samples = session.take_ack()
            if samples is None:
                return
            await self._context.write(
                pb.WriteMetricsResponse(
                    ack=pb.Ack(
                        committed_sequence=session.committed_sequence,
                        counters=_counters(session.counters),
                        rejections=[_rejection(sample) for sample in samples],
                    )
                )
            )


def _message(raw: object) -> Batch | pb.WriteMetricsRequest:
    if not isinstance(raw, bytes):
        raise TypeError(f"expected bytes, got {type(raw).__name__}")
    return decode(raw)


def _open_request(message: Batch | pb.WriteMetricsRequest) -> OpenRequest:
    if isinstance(message, Batch) or message.WhichOneof("message") != "open":
        raise HeadraceError(
            Reason.OPEN_EXPECTED, "the first message of a stream must be `open`", field="open"
        )
    opening = message.open
    if not 0 <= opening.rank <= _RANK_MAX:
        raise _out_of_range("open.rank", opening.rank, f"[0, {_RANK_MAX}]")
    if not 0 <= opening.attempt <= _RANK_MAX:
        raise _out_of_range("open.attempt", opening.attempt, f"[0, {_RANK_MAX}]")
    resume_step = opening.resume_step if opening.HasField("resume_step") else None
    if resume_step is not None and not STEP_MIN <= resume_step <= STEP_MAX:
        raise _out_of_range("open.resume_step", resume_step, f"[{STEP_MIN}, {STEP_MAX}]")
    exempt = tuple(opening.resume_exempt_keys)
    if len(exempt) > RESUME_EXEMPT_KEYS_MAX:
        raise HeadraceError(
            Reason.LIMIT_EXCEEDED,
            f"open.resume_exempt_keys has {len(exempt)} keys, more than {RESUME_EXEMPT_KEYS_MAX}",
            field="open.resume_exempt_keys",
            value=len(exempt),
            limit=RESUME_EXEMPT_KEYS_MAX,
        )
    for key in exempt:
        if (fault := key_fault(key)) is not None:
            raise HeadraceError(
                Reason.FIELD_INVALID,
                f"open.resume_exempt_keys: {fault}",
                field="open.resume_exempt_keys",
                value=repr(key[:80]),
            )
    return OpenRequest(
        workspace_id=current_identity().workspace_id,
        run_id=fields.run_id(opening.run_id, field="open.run_id"),
        writer_id=fields.hex_id(opening.writer_id, field="open.writer_id"),
        incarnation=fields.hex_id(opening.incarnation, field="open.incarnation"),
        rank=opening.rank,
        attempt=opening.attempt or 1,
        resume_step=resume_step,
        resume_exempt_keys=exempt,
    )


def _out_of_range(field: str, value: int, limit: str) -> HeadraceError:
    return HeadraceError(
        Reason.FIELD_INVALID,
        f"{field} is {value}; it must be in {limit}",
        field=field,
        value=value,
        limit=limit,
    )


def _opened(session: Session, engine: IngestEngine) -> pb.WriteMetricsResponse:
    return pb.WriteMetricsResponse(
        opened=pb.Opened(
            committed_sequence=session.committed_sequence,
            epoch=session.writer.epoch,
            finished=session.finished,
            counters=_counters(session.counters),
            rejections=[_rejection(sample) for sample in session.rejections],
            limits=pb.Limits(
                batch_points_max=BATCH_POINTS_MAX,
                message_bytes_max=MESSAGE_BYTES_MAX,
                key_characters_max=KEY_CHARACTERS_MAX,
                keys_max=KEYS_MAX,
                heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
                stream_pending_bytes_max=engine.settings.stream_pending_bytes_max,
            ),
        )
    )


def _finished(session: Session) -> pb.WriteMetricsResponse:
    return pb.WriteMetricsResponse(
        finished=pb.Finished(
            committed_sequence=session.committed_sequence, counters=_counters(session.counters)
        )
    )


def _counters(counters: Counters) -> pb.WriterCounters:
    return pb.WriterCounters(
        accepted_points=counters.accepted_points,
        late_points=counters.late_points,
        repeated_points=counters.repeated_points,
        rejected_points=counters.rejected_points,
        lost_records=counters.lost_records,
        rejected_entries=counters.rejected_entries,
    )


def _rejection(sample: RejectionSample) -> pb.Rejection:
    return pb.Rejection(
        reason=ErrorReason.ValueType(sample.reason),
        key=sample.key,
        step=sample.step,
        sequence=sample.sequence,
        field=sample.field,
        detail=sample.detail,
        points=sample.points,
    )
