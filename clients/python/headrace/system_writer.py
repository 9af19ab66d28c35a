"""Samples the machine at an interval and sends what it found: a task of the sender.

A writer of its own in the run, without a spool: samples wait in memory, at most
SAMPLES_MAX of them (the oldest go), and are sent once a minute and at the end
over a stream that is open for that long only. Their step is the number of
seconds since the run began. They cost the trainer nothing and are never waited
for; unlike what is logged, they may be lost when the sender is killed.

A thread takes the samples: a driver that hangs holds up neither delivery nor the
sender's end. Nothing that fails here is the sender's failure.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import grpc
import grpc.aio

from headrace.channel import call_metadata, open_channel
from headrace.identifiers import new_identifier
from headrace.settings import Settings
from headrace.spool_files import WriterIdentity
from headrace.system_metrics import SystemSampler
from headrace.v1 import metric_service_pb2 as pb
from headrace.v1.metric_service_pb2_grpc import MetricServiceStub

SEND_INTERVAL_S: Final = 60.0
SAMPLES_MAX: Final = 1_000
"""Four hours at the default interval: at most 90 values each, 3 MB."""
BATCH_SAMPLES: Final = 64
"""Of at most 90 values each: below the 8,192 points of a batch."""
SEND_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample; its sequence is that of the record it becomes."""

    sequence: int
    time_us: int
    values: dict[str, float]


class SystemWriter:
    """Samples, keeps, sends. Made once a sender; `run` until cancelled, then `finish`.

    Attributes:
        began_us: when the run began, which the gateway says; None: not yet known.
    """

    def __init__(self, identity: WriterIdentity, settings: Settings, directory: Path) -> None:
        self._identity = identity
        self._settings = settings
        self._directory = directory
        self._taken = asyncio.Event()
        self._ending = threading.Event()
        self._writer_id = new_identifier()
        self._incarnation = new_identifier()
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self._sequence = 0
        self.began_us: int | None = None

    async def run(self) -> None:
        """Samples at the interval and sends now and then, until cancelled."""
        sampling = threading.Thread(
            target=self._sample,
            args=(asyncio.get_running_loop(),),
            daemon=True,  # it may hang in a driver
        )
        with contextlib.suppress(RuntimeError):  # no more threads: no samples
            sampling.start()
        sent_at = float("-inf")  # the first sample is sent at once
        while True:
            await self._taken.wait()
            self._taken.clear()
            waited_s = time.monotonic() - sent_at
            if waited_s >= SEND_INTERVAL_S and await self._send_if_possible(finish=False):
                sent_at = time.monotonic()

    async def finish(self) -> None:
        """Sends what is left and ends the writer; gives up after a while."""
        self._ending.set()
        if self._sequence:
            await self._send_if_possible(finish=True)

    def _sample(self, loop: asyncio.AbstractEventLoop) -> None:
        """Samples at the interval, in its thread, until the end."""
        sampler = SystemSampler(self._identity.trainer_pid, self._directory)
        interval_s = self._identity.system_metrics_interval_s
        due = time.monotonic() + interval_s
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            due = max(due + interval_s, time.monotonic())
            time_us, values = time.time_ns() // 1_000, sampler.sample()
            try:
                loop.call_soon_threadsafe(self._take, time_us, values)
            except RuntimeError:  # the loop is closed: the sender ended without us
                break
        sampler.close()

    def _take(self, time_us: int, values: dict[str, float]) -> None:
        if self._ending.is_set() or not values:
            return
        self._sequence += 1
        self._samples.append(Sample(sequence=self._sequence, time_us=time_us, values=values))
        self._taken.set()

    async def _send_if_possible(self, *, finish: bool) -> bool:
        """Sends; what fails is tried again with the next sample. Answers whether all is stored."""
        began_us = self.began_us
        if began_us is None:
            return False
        # Whatever fails: gRPC raises more than AioRpcError when a call breaks (InvalidStateError).
        with contextlib.suppress(Exception):
            async with asyncio.timeout(SEND_TIMEOUT_S), open_channel(self._settings) as channel:
                await self._send(channel, began_us, finish=finish)
        return not self._samples

    async def _send(self, channel: grpc.aio.Channel, began_us: int, *, finish: bool) -> None:
        call = MetricServiceStub(channel).WriteMetrics(metadata=call_metadata(self._settings))

        async def read() -> pb.WriteMetricsResponse | None:
            answer = await call.read()
            return None if answer is grpc.aio.EOF else cast("pb.WriteMetricsResponse", answer)

        try:
            identity = self._identity
            # Without a resume step: the trainer's own writer announces it.
            opening = pb.OpenWriter(
                run_id=identity.run_id,
                writer_id=self._writer_id,
                incarnation=self._incarnation,
                rank=identity.rank,
                attempt=identity.attempt,
            )
            await call.write(pb.WriteMetricsRequest(open=opening))
            answer = await read()
            if answer is None or not answer.HasField("opened"):
                return
            committed = answer.opened.committed_sequence
            self._committed(committed)
            if self._samples and self._samples[0].sequence > committed + 1:
                first = self._samples[0].sequence  # older ones were given up
                await call.write(pb.WriteMetricsRequest(resync=pb.Resync(first_sequence=first)))
            for message in _messages(list(self._samples), began_us):
                await call.write(message)
            if finish:
                end = pb.FinishWriter(last_sequence=self._sequence)
                await call.write(pb.WriteMetricsRequest(finish=end))
                await call.done_writing()
            # An acknowledgement of all is not the end of a writer that finishes: its answer is.
            while (finish or self._samples) and (answer := await read()) is not None:
                self._committed(answer.ack.committed_sequence)
                self._committed(answer.finished.committed_sequence)
        finally:
            call.cancel()

    def _committed(self, sequence: int) -> None:
        while self._samples and self._samples[0].sequence <= sequence:
            self._samples.popleft()


def _messages(samples: list[Sample], began_us: int) -> list[pb.WriteMetricsRequest]:
    """The keys of the samples, and a batch for every BATCH_SAMPLES of them."""
    if not samples:
        return []
    keys = dict.fromkeys(key for sample in samples for key in sample.values)
    indexes = {key: index for index, key in enumerate(keys)}
    definitions = [pb.KeyDefinition(index=index, key=key) for key, index in indexes.items()]
    messages = [pb.WriteMetricsRequest(keys=pb.DefineKeys(keys=definitions))]
    for start in range(0, len(samples), BATCH_SAMPLES):
        batch = pb.MetricBatch(first_sequence=samples[start].sequence)
        for sample in samples[start : start + BATCH_SAMPLES]:
            count = len(sample.values)
            batch.record_count += 1
            batch.series_index.extend(indexes[key] for key in sample.values)
            batch.step.extend([(sample.time_us - began_us) // 1_000_000] * count)
            batch.time_unix_us.extend([sample.time_us] * count)
            batch.value.extend(sample.values.values())
        messages.append(pb.WriteMetricsRequest(batch=batch))
    return messages
