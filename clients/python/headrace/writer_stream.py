"""One WriteMetrics stream of one spool: sends records onwards from the watermark, takes acks.

Follows the conversation of metric_service.proto. Sends up to 8,192 points at
once or what LINGER_S has gathered, keeps at most WINDOW_BYTES unacknowledged,
and holds no record in memory longer than it takes to send it: after a cut the
next stream reads it from the spool again.
"""

import asyncio
import contextlib
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from headrace.batches import write_request
from headrace.limits import BATCH_POINTS_MAX, HEARTBEAT_INTERVAL_MS
from headrace.record import MetadataRecords, RecordColumns
from headrace.sender_status import SenderStatus
from headrace.spool_files import WriterIdentity
from headrace.spool_reader import KeyReader, SpoolReader
from headrace.stream_call import StreamCall, StreamOverError
from headrace.trainer_watch import TrainerWatch
from headrace.v1 import error_reason_pb2, metric_service_pb2

METHOD: Final = "/headrace.v1.MetricService/WriteMetrics"

WINDOW_BYTES: Final = 8 * 1024 * 1024
"""Sent and unacknowledged: 36 of the largest batches, a second of a wide run."""

LINGER_S: Final = 0.1
"""After sending less than half a batch, gather for so long before looking again. A
message costs about 1 ms of CPU here whatever it carries: the sender of a trainer that
logs 100 times a second takes 2.6 % of a core at 50 ms, 1 % at 100 ms."""

ACTIVE_S: Final = 0.5
"""After the last record or wake-up, look every LINGER_S for so long: more than
twice the least time between two wake-ups of a trainer."""

IDLE_S: Final = 2.0
"""Otherwise sleep until woken, and look whether the trainer lives at least this often."""

KEYS_MESSAGE_BYTES: Final = 256 * 1024
"""Keys are sent in messages of about this size."""

DROPPED_POINTS_KEY: Final = "headrace/dropped_points"
"""The key under which a run records how many points found no space on disk."""


class WriterFinishedEarlyError(Exception):
    """The gateway holds this writer for finished, but the spool has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """How a stream ended that did not fail.

    Attributes:
        finished: the gateway confirmed the writer's end.
        reconnect_within_s: set when the gateway asked to come back elsewhere.
    """

    finished: bool
    reconnect_within_s: float | None = None


class WriterStream:
    """One stream. Made, run once, thrown away; the reader and the status outlive it."""

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        metadata: grpc.aio.Metadata,
        identity: WriterIdentity,
        reader: SpoolReader,
        keys: KeyReader,
        watch: TrainerWatch,
        status: SenderStatus,
        woken: asyncio.Event,
        once: bool,
    ) -> None:
        self._identity = identity
        self._reader = reader
        self._keys = keys
        self._watch = watch
        self._status = status
        self._woken = woken
        self._once = once
        self._keys_sent = 0
        self._in_flight: deque[tuple[int, int]] = deque()
        self._in_flight_bytes = 0
        self._acked = asyncio.Event()
        self._heartbeat_interval_s = HEARTBEAT_INTERVAL_MS / 1000
        self._sent_at = time.monotonic()
        self._active_until = 0.0
        self._draining = False
        self._everything_sent = False
        self._opened = False
        self._opened_finished = False
        self._call = StreamCall[metric_service_pb2.WriteMetricsResponse](
            channel.stream_stream(
                METHOD,
                request_serializer=None,
                response_deserializer=metric_service_pb2.WriteMetricsResponse.FromString,
            )(metadata=metadata)
        )

    @property
    def settled(self) -> bool:
        """Whether the stream is open and everything sent on it is acknowledged."""
        return self._opened and not self._in_flight

    async def run(self) -> StreamEnd:
        """Runs the conversation to its end.

        Raises:
            grpc.aio.AioRpcError: the stream failed.
            WriterFinishedEarlyError: see there.
            OSError: the spool cannot be read.
        """
        try:
            with contextlib.suppress(StreamOverError):  # `_receive` tells why
                await self._open()
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send())
                end = await self._receive()
                sending.cancel()
            return end
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._call.cancel()
            self._status.connection(False)

    async def _open(self) -> None:
        identity = self._identity
        await self._write(
            metric_service_pb2.WriteMetricsRequest(
                open=metric_service_pb2.OpenWriter(
                    run_id=identity.run_id,
                    writer_id=identity.writer_id,
                    incarnation=identity.incarnation,
                    rank=identity.rank,
                    attempt=identity.attempt,
                    resume_step=identity.resume_step,
                    resume_exempt_keys=identity.resume_exempt_keys,
                )
            )
        )
        response = await self._call.read()
        if response is None or response.WhichOneof("message") != "opened":
            return  # ended or drained before it began; `_receive` sees the same end again
        opened = response.opened
        self._status.connection(True)
        self._take_rejections(opened.rejections)
        self._status.committed(opened.committed_sequence, opened.counters)
        if opened.limits.heartbeat_interval_ms:
            self._heartbeat_interval_s = opened.limits.heartbeat_interval_ms / 1000
        following = opened.committed_sequence + 1
        position = self._reader.seek(following, ended=self._watch.look())
        if position > following and not opened.finished:
            await self._write(
                metric_service_pb2.WriteMetricsRequest(
                    resync=metric_service_pb2.Resync(first_sequence=position)
                )
            )
            self._status.committed_sequence = position - 1
        self._opened = True
        self._opened_finished = opened.finished

    async def _send(self) -> None:
        """Sends until the spool ends or the stream does (then `_receive` knows why)."""
        with contextlib.suppress(StreamOverError):
            while not self._draining:
                ended = self._watch.ended
                records = self._reader.read(BATCH_POINTS_MAX, ended=ended)
                more = self._reader.more
                self._keys.read(ended=ended)
                if records is not None:
                    await self._send_records(records)
                    if not (more or ended) and _is_small(records):
                        await asyncio.sleep(LINGER_S)
                elif ended:
                    await self._send_end()
                    return
                elif self._once:
                    self._everything_sent = True
                    if not self._in_flight:
                        await self._call.done_writing()
                    return
                else:
                    await self._idle()

    async def _send_records(self, records: RecordColumns | MetadataRecords) -> None:
        if self._opened_finished:
            raise WriterFinishedEarlyError(
                f"the gateway holds this writer for finished at record "
                f"{self._status.committed_sequence}; the spool goes on to "
                f"{records.last_sequence} at least"
            )
        self._status.damaged(self._reader.damages)
        if isinstance(records, RecordColumns):
            await self._send_keys(records)
        while self._in_flight_bytes > WINDOW_BYTES:
            self._acked.clear()
            await self._acked.wait()
        message = write_request(records)
        self._in_flight.append((records.last_sequence, len(message)))
        self._in_flight_bytes += len(message)
        self._active_until = time.monotonic() + ACTIVE_S
        await self._write(message)

    async def _send_keys(self, columns: RecordColumns) -> None:
        """Defines the keys that were added; names those whose dictionary entry is lost."""
        # A power loss may also have cut the dictionary between two entries: nothing is skipped.
        unreadable = self._keys.skipped_bytes or self._watch.ended
        if unreadable and columns.series_index:
            greatest = max(memoryview(columns.series_index).cast("I"))
            for index in range(greatest + 1):
                self._keys.keys.setdefault(index, f"headrace/unreadable_key_{index}")
        known = self._keys.keys
        if len(known) == self._keys_sent:
            return
        for message in _key_messages(known, self._keys_sent):
            await self._write(message)
        self._keys_sent = len(known)

    async def _send_end(self) -> None:
        """Sends the record of the drops, if there were any, and `finish`."""
        last = self._reader.next_sequence - 1
        committed = self._status.committed_sequence
        dropped = self._watch.dropped_points
        if dropped and committed <= last:
            index = max(self._keys.keys, default=-1) + 1
            last += 1
            self._keys.keys[index] = DROPPED_POINTS_KEY
            await self._send_records(
                RecordColumns(
                    first_sequence=last,
                    record_count=1,
                    point_count=1,
                    series_index=struct.pack("<I", index),
                    step=struct.pack("<q", self._watch.last_step),
                    time_unix_us=struct.pack("<q", self._watch.time_us),
                    value=struct.pack("<d", dropped),
                )
            )
            del self._keys.keys[index]
        await self._write(
            metric_service_pb2.WriteMetricsRequest(
                finish=metric_service_pb2.FinishWriter(last_sequence=max(last, committed))
            )
        )
        await self._call.done_writing()

    async def _idle(self) -> None:
        """Waits until there may be more: soon after activity, otherwise when woken."""
        now = time.monotonic()
        self._status.write()
        if self._woken.is_set():
            self._woken.clear()
            self._active_until = now + ACTIVE_S
        if now < self._active_until:
            await asyncio.sleep(LINGER_S)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), IDLE_S)
        self._watch.look()
        if time.monotonic() - self._sent_at > self._heartbeat_interval_s:
            await self._write(
                metric_service_pb2.WriteMetricsRequest(heartbeat=metric_service_pb2.Heartbeat())
            )

    async def _receive(self) -> StreamEnd:
        """Takes responses until the stream ends."""
        reconnect_within_s: float | None = None
        finished = False
        while (response := await self._call.read()) is not None:
            kind = response.WhichOneof("message")
            if kind == "ack":
                self._take_rejections(response.ack.rejections)
                await self._take_ack(response.ack.committed_sequence, response.ack.counters)
            elif kind == "finished":
                self._status.committed(
                    response.finished.committed_sequence, response.finished.counters
                )
                finished = True
            elif kind == "reconnect":
                self._draining = True
                reconnect_within_s = response.reconnect.retry_after_ms / 1000
        return StreamEnd(finished=finished, reconnect_within_s=reconnect_within_s)

    async def _take_ack(self, sequence: int, counters: metric_service_pb2.WriterCounters) -> None:
        self._status.committed(sequence, counters)
        in_flight = self._in_flight
        while in_flight and in_flight[0][0] <= sequence:
            self._in_flight_bytes -= in_flight.popleft()[1]
        self._acked.set()
        self._reader.trim(sequence)
        self._status.write()
        if self._everything_sent and not in_flight:
            await self._call.done_writing()

    def _take_rejections(self, samples: Any) -> None:
        named = error_reason_pb2.ErrorReason.Name
        self._status.rejected(
            (named(sample.reason).removeprefix("ERROR_REASON_"), sample) for sample in samples
        )

    async def _write(self, message: metric_service_pb2.WriteMetricsRequest | bytes) -> None:
        data = message if isinstance(message, bytes) else message.SerializeToString()
        await self._call.write(data)
        self._sent_at = time.monotonic()


def _is_small(records: RecordColumns | MetadataRecords) -> bool:
    """Whether waiting a little for more saves messages."""
    return isinstance(records, MetadataRecords) or records.point_count < BATCH_POINTS_MAX // 2


def _key_messages(keys: dict[int, str], start: int) -> list[metric_service_pb2.WriteMetricsRequest]:
    """The entries after the first `start` ones, in messages of bounded size."""
    messages = []
    definitions: list[metric_service_pb2.KeyDefinition] = []
    size = 0
    for number, (index, key) in enumerate(keys.items()):
        if number < start:
            continue
        definition = metric_service_pb2.KeyDefinition(index=index, key=key)
        definitions.append(definition)
        size += definition.ByteSize() + 4
        if size > KEYS_MESSAGE_BYTES:
            messages.append(definitions)
            definitions, size = [], 0
    messages.append(definitions)
    return [
        metric_service_pb2.WriteMetricsRequest(keys=metric_service_pb2.DefineKeys(keys=some))
        for some in messages
        if some
    ]
