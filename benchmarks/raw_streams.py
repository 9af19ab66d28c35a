"""Raw streams: WriteMetrics traffic from bytes built by hand.

Measures the gateway and not a client: no protobuf objects on the sending side,
no spool, one process. Each stream has a connection and a run of its own, as
jobs have. It resumes after failures like a real client, so the fault tests
drive it too; what it sends follows from `benchmarks.plan`.

    python -m benchmarks.raw_streams --help
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import grpc
import numpy as np
import uvloop
from headrace.stream_call import StreamCall, StreamOverError
from headrace.v1 import metric_service_pb2 as wire
from headrace.v1 import run_service_pb2, run_service_pb2_grpc

from benchmarks.bare_call import BareCall
from benchmarks.plan import Encoder, Mix, Plan

_METHOD: Final = "/headrace.v1.MetricService/WriteMetrics"
_CHANNEL_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection per channel, as jobs have
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # also the deadline of a handshake
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
)
_KEYS_PER_MESSAGE: Final = 10_000
_OPENING_MAX: Final = 50  # a gentle start: the handshakes are not the test

Call = StreamCall[wire.WriteMetricsResponse] | BareCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What to send.

    Attributes:
        streams: concurrent writers.
        series: series of each stream; a step writes all of them.
        batch_points: points in a message, rounded to whole records.
        window_batches: unacknowledged batches a stream may have in flight.
        duration_s: send for this long (0: no bound).
        warm_up_s: batches sent in the first of it are not timed: runs get their series then.
        stream_points: send this many points a stream (0: no bound).
        points_per_s: total over all streams; 0 sends as fast as acks allow.
        idle: open the streams and send nothing.
        shared_run: all streams write one run, as its ranks, instead of one each.
        mix: deviations from step order.
        finish: end the writers at the end.
        resume: reopen broken streams; otherwise the first failure ends a stream.
        recut: cut batches of random length, and other ones after a resume.
        seed: of run and writer ids; equal seeds continue the same writers.
        token: bearer token.
        bare: send by `bare_call`, at a fraction of grpc.aio's cost.
    """

    streams: int = 64
    series: int = 20
    batch_points: int = 1_000
    window_batches: int = 16
    duration_s: float = 0.0
    warm_up_s: float = 0.0
    stream_points: int = 0
    points_per_s: float = 0.0
    idle: bool = False
    shared_run: bool = False
    mix: Mix = field(default_factory=Mix)
    finish: bool = True
    resume: bool = False
    recut: bool = False
    seed: int = field(default_factory=lambda: random.randrange(2**32))
    token: str = ""
    bare: bool = False

    def run_id(self, stream: int) -> str:
        return self._id("run", 0 if self.shared_run else stream)

    def writer_id(self, stream: int) -> str:
        return self._id("writer", stream)

    def incarnation(self, stream: int) -> str:
        return self._id("incarnation", stream)

    def rank(self, stream: int) -> int:
        return stream if self.shared_run else 0

    def plan(self, stream: int) -> Plan:
        points = min(self.batch_points, 8_192)
        return Plan(stream=stream, series=self.series, record_points_max=points, mix=self.mix)

    def _id(self, kind: str, number: int) -> str:
        """Return a UUIDv7 in which the seed is the time: ids of one round are neighbours."""
        random_bits = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.seed}/{kind}/{number}").int
        fields = self.seed % 2**48 << 80 | random_bits % 2**80
        return uuid.UUID(int=fields & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62).hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What happened.

    Attributes:
        seconds: from the first batch to the last acknowledgement.
        points: points acknowledged in that time; so are `batches`.
        acks: acknowledging messages received.
        ack_ms: latency from sending (paced: from when it was due) to the
            acknowledgement, per batch after the warm-up: p50, p99, max.
        reconnects: streams reopened.
        committed_sequences: each stream's watermark as last acknowledged.
        errors: the first 20 failures that ended a stream.
        generator_cpu_s: processor time of this process.
        seed: see Traffic.
    """

    seconds: float
    points: int
    points_per_s: float
    batches: int
    acks: int
    ack_ms: dict[str, float]
    reconnects: int
    committed_sequences: list[int]
    errors: list[str]
    generator_cpu_s: float
    seed: int


class Journal:
    """Per stream the greatest sequence sent and acknowledged; survives SIGKILL.

    A file of little-endian uint64 pairs (sent, acknowledged), one for each
    stream. `sent` is written before the batch is, `acknowledged` after the ack.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def sent(self, stream: int, sequence: int) -> None:
        self._raise(16 * stream, sequence)

    def acknowledged(self, stream: int, sequence: int) -> None:
        self._raise(16 * stream + 8, sequence)

    def _raise(self, offset: int, sequence: int) -> None:
        before = os.pread(self._file, 8, offset)
        # A resumed stream sends again what it sent before: the greatest counts.
        if sequence > int.from_bytes(before, "little"):
            os.pwrite(self._file, sequence.to_bytes(8, "little"), offset)

    @staticmethod
    def read(path: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Return the pairs: shape (streams, 2), columns sent and acknowledged."""
        found = np.fromfile(path, "<u8")
        # The last stream may have sent something and heard nothing yet.
        return np.pad(found, (0, len(found) % 2)).reshape(-1, 2)


class _Tally:
    """Measurements of all streams."""

    def __init__(self) -> None:
        self.points = self.batches = self.acks = self.reconnects = 0
        self.timed_from = 0.0
        self.latencies_s: list[float] = []
        self.last_ack_at = 0.0
        self.errors: list[str] = []


class _Stream:
    """One writer: sends its plan in order and resumes from the watermark."""

    def __init__(
        self,
        number: int,
        traffic: Traffic,
        address: str,
        tally: _Tally,
        *,
        journal: Journal | None,
        shared: grpc.aio.Channel,
    ) -> None:
        self.number = number
        self._shared = shared  # creates the runs of bare streams
        self.committed = 0
        self.opened = asyncio.Event()
        self._traffic = traffic
        self._plan = traffic.plan(number)
        self._tally = tally
        self._journal = journal
        self._address = address
        self._random = random.Random(f"{traffic.seed}/{number}/{os.getpid()}")
        self._records = max(1, traffic.batch_points // traffic.series)
        self._metadata = (("authorization", f"Bearer {traffic.token}"),) if traffic.token else None
        self._in_flight: deque[tuple[int, float]] = deque()  # (last sequence, sent at)
        self._room = asyncio.Event()
        self._last_sequence: int | None = None
        self._moving = False

    async def run(self, encoder: Encoder, go: asyncio.Event, stop: asyncio.Event) -> None:
        failures = 0
        while True:
            before = self.committed
            try:
                async with self._call() as call:
                    await self._converse(call, encoder, go, stop)
                return
            except grpc.aio.AioRpcError as error:
                if not self._traffic.resume or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    reason = f"stream {self.number}: {error.code()} {error.details()}"
                    self._tally.errors.append(reason)
                    self.opened.set()
                    return
            failures = 0 if self.committed > before else failures + 1
            self._tally.reconnects += 1
            await asyncio.sleep(self._random.uniform(0, min(1.0, 0.05 * 2**failures)))

    async def _create_run(self, channel: grpc.aio.Channel) -> None:
        stub = run_service_pb2_grpc.RunServiceStub(channel)
        request = run_service_pb2.CreateRunRequest(
            run_id=self._traffic.run_id(self.number), experiment="raw streams"
        )
        await stub.CreateRun(request, metadata=self._metadata, timeout=60)

    @contextlib.asynccontextmanager
    async def _call(self) -> AsyncIterator[Call]:
        """Create the run and lend a call, on a connection of its own."""
        if not self._traffic.bare:
            async with _channel(self._address) as channel:
                await self._create_run(channel)
                yield StreamCall(
                    channel.stream_stream(_METHOD, None, wire.WriteMetricsResponse.FromString)(
                        metadata=self._metadata
                    )
                )
            return
        await self._create_run(self._shared)
        call = await BareCall.open(self._address, _METHOD, self._metadata)
        try:
            yield call
        finally:
            call.cancel()

    async def _converse(
        self, call: Call, encoder: Encoder, go: asyncio.Event, stop: asyncio.Event
    ) -> None:
        traffic = self._traffic
        opening = wire.OpenWriter(
            run_id=traffic.run_id(self.number),
            writer_id=traffic.writer_id(self.number),
            incarnation=traffic.incarnation(self.number),
            rank=traffic.rank(self.number),
            attempt=1,
        )
        with contextlib.suppress(StreamOverError):  # `read` tells why
            await call.write(wire.WriteMetricsRequest(open=opening).SerializeToString())
        answer = await call.read()
        if answer is None:
            raise _ended_early()
        self._acknowledge(answer.opened.committed_sequence)
        self._in_flight.clear()
        if answer.opened.finished:
            self.opened.set()
            call.cancel()
            return
        self._moving = False
        reader = asyncio.create_task(self._read(call))
        try:
            for keys in self._key_messages():
                await call.write(keys)
            self.opened.set()
            await go.wait()
            if traffic.idle:
                await stop.wait()
            else:
                await self._send(call, encoder, stop, reader)
                await self._end(call, reader)
        except StreamOverError:
            pass  # the call ended under a write; the reader knows why
        finally:
            if not reader.done() and traffic.idle:
                call.cancel()
            await asyncio.wait([reader])
        failure = reader.exception() if not reader.cancelled() else None
        if failure is not None and not isinstance(failure, asyncio.CancelledError):
            raise failure

    async def _end(self, call: Call, reader: asyncio.Task[None]) -> None:
        if self._moving:
            await asyncio.wait([reader])
            return
        if self._traffic.finish:
            last = self._last_sequence or self.committed
            finish = wire.WriteMetricsRequest(finish=wire.FinishWriter(last_sequence=last))
            await call.write(finish.SerializeToString())
            await asyncio.wait([reader])
            return
        while self._in_flight and not reader.done():  # leave the writer open, lose nothing
            self._room.clear()
            await self._room.wait()  # the reader's end sets it too
        call.cancel()

    async def _send(
        self, call: Call, encoder: Encoder, stop: asyncio.Event, reader: asyncio.Task[None]
    ) -> None:
        traffic, plan = self._traffic, self._plan
        loop = asyncio.get_running_loop()
        sequence = self.committed + 1
        interval_s = 0.0
        if traffic.points_per_s:
            points = sum(plan.record_points(record + 1) for record in range(self._records))
            interval_s = points * traffic.streams / traffic.points_per_s
        due = loop.time() + interval_s * self._random.random()
        while not (stop.is_set() or reader.done() or self._moving):
            if traffic.stream_points and plan.points_through(sequence - 1) >= traffic.stream_points:
                break
            while len(self._in_flight) >= traffic.window_batches:
                self._room.clear()
                await self._room.wait()  # the reader's end sets it too
                if reader.done() or self._moving:
                    return
            records = self._random.randint(1, self._records) if traffic.recut else self._records
            message = encoder.encode(plan, sequence, records)
            last = sequence + records - 1
            now = loop.time()
            if interval_s:
                due += interval_s
                if due > now:
                    await asyncio.sleep(due - now)
                now = due  # lateness of the generator counts as latency
            if self._journal is not None:
                self._journal.sent(self.number, last)
            self._in_flight.append((last, now))
            await call.write(message)
            sequence = last + 1
        # A replacement of a killed process knows the end only from the plan.
        self._last_sequence = sequence - 1

    async def _read(self, call: Call) -> None:
        finished = False
        try:
            while (answer := await call.read()) is not None:
                kind = answer.WhichOneof("message")
                if kind == "ack":
                    self._acknowledge(answer.ack.committed_sequence)
                elif kind == "finished":
                    self._acknowledge(answer.finished.committed_sequence)
                    finished = True
                elif kind == "reconnect":
                    self._moving = True
                    self._room.set()
            if not finished:
                raise _ended_early()
        finally:
            self._room.set()

    def _acknowledge(self, committed_sequence: int) -> None:
        tally, plan = self._tally, self._plan
        if committed_sequence <= self.committed:
            return
        if self._journal is not None:
            self._journal.acknowledged(self.number, committed_sequence)
        now = asyncio.get_running_loop().time()
        while self._in_flight and self._in_flight[0][0] <= committed_sequence:
            sent_at = self._in_flight.popleft()[1]
            if sent_at >= tally.timed_from:
                tally.latencies_s.append(now - sent_at)
            tally.batches += 1
        tally.points += plan.points_through(committed_sequence) - plan.points_through(
            self.committed
        )
        tally.acks += 1
        tally.last_ack_at = now
        self.committed = committed_sequence
        self._room.set()

    def _key_messages(self) -> list[bytes]:
        messages = []
        for start in range(0, self._plan.series, _KEYS_PER_MESSAGE):
            request = wire.WriteMetricsRequest()
            for index in range(start, min(start + _KEYS_PER_MESSAGE, self._plan.series)):
                request.keys.keys.add(index=index, key=self._plan.key(index))
            messages.append(request.SerializeToString())
        return messages


async def run(
    address: str,
    traffic: Traffic,
    *,
    journal: Journal | None = None,
    on_ready: Callable[[], None] = lambda: None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Send `traffic` to the gateway at `address`.

    Args:
        journal: where to note what was sent and acknowledged.
        on_ready: called when all streams are open, before the clock starts.
        stop: ends sending early; what was sent is still waited for.
    """
    tally, encoder = _Tally(), Encoder()
    go, stop = asyncio.Event(), stop or asyncio.Event()
    async with _channel(address) as shared, asyncio.TaskGroup() as group:
        streams = [
            _Stream(number, traffic, address, tally, journal=journal, shared=shared)
            for number in range(traffic.streams)
        ]
        tasks: list[asyncio.Task[None]] = []
        door = asyncio.Semaphore(_OPENING_MAX)

        async def start(stream: _Stream) -> None:
            async with door:
                tasks.append(group.create_task(stream.run(encoder, go, stop)))
                await stream.opened.wait()

        await asyncio.gather(*map(start, streams))
        on_ready()
        tally.points = tally.batches = tally.acks = 0
        cpu_s, started = time.process_time(), asyncio.get_running_loop().time()
        tally.timed_from = started + traffic.warm_up_s
        go.set()
        if traffic.duration_s:
            await asyncio.wait(tasks, timeout=traffic.duration_s)
        else:
            await asyncio.wait(tasks)
        stop.set()
    seconds = max(tally.last_ack_at - started, 1e-9)
    latencies_ms = 1e3 * np.asarray(tally.latencies_s or [0.0])
    return Result(
        seconds=seconds,
        points=tally.points,
        points_per_s=tally.points / seconds,
        batches=tally.batches,
        acks=tally.acks,
        ack_ms={
            "p50": float(np.percentile(latencies_ms, 50)),
            "p99": float(np.percentile(latencies_ms, 99)),
            "max": float(latencies_ms.max()),
        },
        reconnects=tally.reconnects,
        committed_sequences=[stream.committed for stream in streams],
        errors=tally.errors[:20],
        generator_cpu_s=time.process_time() - cpu_s,
        seed=traffic.seed,
    )


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def _ended_early() -> grpc.aio.AioRpcError:
    """What a clean end before `finished` counts as."""
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(),
        details="the stream ended without `finished`",
    )


def _parse(arguments: list[str]) -> tuple[str, Traffic, str]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.raw_streams",
        description="Raw WriteMetrics traffic. Prints one JSON object; `ready` goes to stderr "
        "when all streams are open.",
    )
    parser.add_argument("address", help="host:port of a gateway")
    defaults = Traffic(seed=0)
    for name in ("streams", "series", "batch_points", "window_batches", "stream_points"):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name)
        )
    for name in ("duration_s", "warm_up_s", "points_per_s"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=0.0)
    for name in ("swapped", "repeated", "late"):
        parser.add_argument(f"--{name}", type=float, default=0.0, help="fraction of the records")
    for name in ("idle", "shared_run", "resume", "recut", "special_values", "bare"):
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true")
    parser.add_argument("--no-finish", dest="finish", action="store_false")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--token", default="")
    parser.add_argument("--journal", default="", help="file of what was sent and acknowledged")
    values = vars(parser.parse_args(arguments))
    address, journal = values.pop("address"), values.pop("journal")
    mix = Mix(
        **{name: values.pop(name) for name in ("swapped", "repeated", "late", "special_values")}
    )
    return address, Traffic(mix=mix, **values), journal


async def _run_until_terminated(address: str, traffic: Traffic, journal: str) -> Result:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return await run(
        address,
        traffic,
        journal=Journal(journal) if journal else None,
        on_ready=lambda: print("ready", file=sys.stderr, flush=True),
        stop=stop,
    )


def main() -> None:
    """Run from the command line; SIGTERM stops sending and drains."""
    result = uvloop.run(_run_until_terminated(*_parse(sys.argv[1:])))
    print(json.dumps(asdict(result)))
    sys.exit(1 if result.errors else 0)


if __name__ == "__main__":
    main()
