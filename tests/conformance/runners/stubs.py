"""The runner of the bare stubs: the contract's rules followed with nothing but protoc's output.

What a stranger writes from the comments in protos/: a list of records, a thread
that streams them, and a loop that opens the stream again. No library of ours.
"""

import random
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc
from headrace.v1 import metric_service_pb2 as pb
from headrace.v1 import metric_service_pb2_grpc
from headrace.v1.error_reason_pb2 import ErrorReason

from tests.conformance.runners.steps import RunnerError, Steps, Target, main, reason_of

BATCH_POINTS_MAX: Final = 4_096
RECORD_POINTS_MAX: Final = 8_192
KEY_CHARACTERS_MAX: Final = 250
HEARTBEAT_S: Final = 10.0
RETRIED: Final = {
    "SEQUENCE_GAP",
    "UNKNOWN_KEY_INDEX",
    "OVERLOADED",
    "STORE_UNAVAILABLE",
    "DRAINING",
    "INTERNAL",
    "UNAVAILABLE",
    "UNKNOWN",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
}
OPTIONS: Final = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

Record: TypeAlias = tuple[int, int, list[int], list[float]]
"""Step, time in µs, series indexes, values."""


class StubWriter:
    """Keeps every record until it is acknowledged, and streams what the gateway lacks."""

    def __init__(self, target: Target, step: Mapping[str, Any]) -> None:
        self._channel = target.channel(OPTIONS)
        self._stub = metric_service_pb2_grpc.MetricServiceStub(self._channel)
        self._metadata = target.metadata
        self._open = pb.OpenWriter(
            run_id=step["run_id"],
            writer_id=step["writer_id"],
            incarnation=step["incarnation"],
            rank=step.get("rank", 0),
            attempt=step.get("attempt", 0),
            resume_step=step.get("resume_step"),
            resume_exempt_keys=step.get("resume_exempt_keys", []),
        )
        self._batch_points_max = step.get("batch_points_max", BATCH_POINTS_MAX)
        self._changed = threading.Condition()
        self._keys: dict[str, int] = {}
        self._records: list[Record] = []  # numbers first_sequence, …
        self._first_sequence = 1
        self._stream = 0  # which stream is the current one
        self._finishing = self._closed = self._moving = False
        self._report: dict[str, Any] = {
            "committed_sequence": 0,
            "counters": {},
            "rejections": [],
            "error": None,
            "finished": False,
            "streams": 0,
            "reconnects": 0,
            "refused_points": 0,
        }
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a record, or several when it is large."""
        time_us = time.time_ns() // 1_000
        with self._changed:
            self._raise_if_over()
            if self._finishing:
                raise RunnerError("WRITER_CLOSED")
            items = [
                (self._keys.setdefault(key[: KEY_CHARACTERS_MAX + 1], len(self._keys)), value)
                for key, value in values.items()
            ]
            for start in range(0, len(items), RECORD_POINTS_MAX):
                piece = items[start : start + RECORD_POINTS_MAX]
                self._records.append((step, time_us, [i for i, _ in piece], [v for _, v in piece]))
            self._changed.notify_all()

    def flush(self, deadline_s: float) -> None:
        """Wait until everything is acknowledged."""
        self._wait(lambda: self._committed >= self._last_sequence, deadline_s)

    def finish(self, deadline_s: float) -> None:
        """Send `finish` after the last record and wait for its answer."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
        self._wait(lambda: self._report["finished"], deadline_s)
        self.close()

    def close(self) -> None:
        """Stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._channel.close()
        self._thread.join()

    def report(self) -> dict[str, Any]:
        """Return the report."""
        return self._report

    @property
    def _committed(self) -> int:
        return int(self._report["committed_sequence"])

    @property
    def _last_sequence(self) -> int:
        return self._first_sequence + len(self._records) - 1

    def _raise_if_over(self) -> None:
        if self._report["error"]:
            raise RunnerError(self._report["error"])
        if self._closed:
            raise RunnerError("WRITER_CLOSED")

    def _wait(self, reached: Any, deadline_s: float) -> None:
        with self._changed:
            over = self._changed.wait_for(lambda: reached() or self._report["error"], deadline_s)
            self._raise_if_over()
            if not over:
                raise RunnerError("DEADLINE_EXCEEDED")

    def _run(self) -> None:
        failures = 0
        while not self._closed and not self._report["finished"]:
            committed_before = self._committed
            self._stream += 1
            self._moving = False
            wait_s = 0.0
            responses = self._stub.WriteMetrics(
                self._requests(self._stream), metadata=self._metadata
            )
            try:
                for response in responses:
                    wait_s = max(wait_s, self._take(response))
            except grpc.RpcError as error:
                reason = reason_of(error)
                failures = 1 if self._committed > committed_before else failures + 1
                wait_s = min(5.0, 0.05 * 2**failures) * random.uniform(0.5, 1)
                if reason not in RETRIED and not self._closed:
                    with self._changed:
                        self._report["error"] = reason
                        self._changed.notify_all()
                    return
            with self._changed:
                self._stream += 1  # whatever generator still waits ends
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._report["finished"], wait_s)

    def _take(self, response: pb.WriteMetricsResponse) -> float:
        """Take in a response; return how long to wait before the next stream."""
        with self._changed:
            self._changed.notify_all()
            kind = response.WhichOneof("message")
            if kind == "reconnect":
                self._report["reconnects"] += 1
                self._moving = True
                return random.uniform(0, response.reconnect.retry_after_ms / 1_000)
            message = getattr(response, str(kind))
            self._report["finished"] |= kind == "finished"
            if kind == "opened":
                self._report["streams"] += 1
                self._opened = self._stream
            for one in getattr(message, "rejections", ()):
                # What an earlier ack has told stands at or below its watermark.
                if kind == "ack" or one.sequence > self._committed:
                    self._report["rejections"].append(
                        {
                            "reason": ErrorReason.Name(one.reason).removeprefix("ERROR_REASON_"),
                            "key": one.key,
                            "step": one.step,
                            "points": one.points,
                        }
                    )
            self._report["committed_sequence"] = max(self._committed, message.committed_sequence)
            self._report["counters"] = {
                field.name: getattr(message.counters, field.name)
                for field in message.counters.DESCRIPTOR.fields
            }
            return 0.0

    _opened = 0

    def _requests(self, stream: int) -> Iterator[pb.WriteMetricsRequest]:
        """Yield the messages of one stream, until it is no longer the current one."""
        yield pb.WriteMetricsRequest(open=self._open)
        keys_sent = 0
        with self._changed:
            self._changed.wait_for(lambda: self._opened == stream or self._stream != stream)
            next_sequence = self._committed + 1
        while True:
            with self._changed:
                woken = self._changed.wait_for(
                    partial(self._something_to_do, stream, next_sequence), HEARTBEAT_S
                )
                if self._stream != stream or self._closed or self._moving:
                    return
                self._forget()
                next_sequence = max(next_sequence, self._first_sequence)
                if next_sequence > self._last_sequence and self._finishing:
                    break
                first = next_sequence
                batch = self._batch(first) if next_sequence <= self._last_sequence else None
                new_keys = list(self._keys.items())[keys_sent:]
            for start in range(0, len(new_keys), 1_000):
                definitions = [
                    pb.KeyDefinition(index=index, key=key)
                    for key, index in new_keys[start : start + 1_000]
                ]
                yield pb.WriteMetricsRequest(keys=pb.DefineKeys(keys=definitions))
            keys_sent += len(new_keys)
            if batch is not None:
                next_sequence += batch.record_count
                yield pb.WriteMetricsRequest(batch=batch)
            elif not woken:
                yield pb.WriteMetricsRequest(heartbeat=pb.Heartbeat())
        # A successor that logged less than its predecessor had committed ends there.
        last = max(self._last_sequence, self._committed)
        yield pb.WriteMetricsRequest(finish=pb.FinishWriter(last_sequence=last))

    def _something_to_do(self, stream: int, next_sequence: int) -> bool:
        over = self._stream != stream or self._closed or self._moving
        return over or self._finishing or next_sequence <= self._last_sequence

    def _forget(self) -> None:
        """Drop the records that are acknowledged."""
        count = min(self._committed + 1 - self._first_sequence, len(self._records))
        if count > 0:
            del self._records[:count]
            self._first_sequence += count

    def _batch(self, first_sequence: int) -> pb.MetricBatch:
        batch = pb.MetricBatch(first_sequence=first_sequence)
        for step, time_us, indexes, values in self._records[
            first_sequence - self._first_sequence :
        ]:
            if batch.record_count and len(batch.value) + len(values) > self._batch_points_max:
                break
            batch.record_count += 1
            batch.series_index.extend(indexes)
            batch.step.extend([step] * len(values))
            batch.time_unix_us.extend([time_us] * len(values))
            batch.value.extend(values)
        return batch


class StubSteps(Steps):
    """Steps with StubWriter."""

    def open_writer(self, step: Mapping[str, Any]) -> StubWriter:
        """Open one."""
        return StubWriter(self.target, step)


def make(target: Target, directory: Path) -> Steps:
    """Return the executor."""
    return StubSteps(target, directory)


if __name__ == "__main__":
    main(make)
