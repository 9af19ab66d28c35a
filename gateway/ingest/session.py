"""One writer's stream, as a state machine. Pure: no I/O, no clock, no tasks.

Rules it holds to:

1. Batches are admitted in sequence without gaps; a batch at or below what was
   admitted is discarded, one that straddles it is an error.
2. What was admitted is never forgotten: it ends committed, or the session ends
   failed, and then nothing after it was committed either.
3. `committed_sequence` moves only by `commit`, which the writer calls after the
   transaction committed.
4. A session ends once: finished, drained, fenced or failed (`ending`).

`rpc.metric_write` feeds it and sends what it owes; `coalescer` and `writer` take
batches from `pending` and report back. `on_change` is called, without arguments,
whenever something may have to be sent or the session has ended.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.domain.errors import HeadraceError, Reason, StoreUnavailableError
from gateway.domain.flush import Mismatch, OpenedWriter, RejectionSample
from gateway.domain.limits import BATCH_POINTS_MAX, REJECTION_SAMPLES_MAX, SEQUENCE_MAX
from gateway.domain.metadata import Entry
from gateway.ingest.dictionary import KeyDictionary
from gateway.ingest.summary import WriterSummary


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    """A MetricBatch as read-only columns of equal length, or a MetadataBatch without points.

    Nobody changes one. It is not frozen, which would triple what making one costs.

    Attributes:
        first_sequence, record_count: the records it holds.
        series_index: uint32 key indexes.
        step, time: int64; time in µs since 1970.
        value: float64.
        size_bytes: what it is charged against the byte budgets.
        arrived: when it was received, on the clock of time.perf_counter.
        metadata: the entries of a MetadataBatch, in order.
    """

    first_sequence: int
    record_count: int
    series_index: NDArray[np.uint32]
    step: NDArray[np.int64]
    time: NDArray[np.int64]
    value: NDArray[np.float64]
    size_bytes: int
    arrived: float
    metadata: tuple[Entry, ...] = ()

    @property
    def last_sequence(self) -> int:
        """The sequence number of the last record."""
        return self.first_sequence + self.record_count - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a session ended: well (`error` is None) or not."""

    error: HeadraceError | None


class Session:
    """The state of one open stream.

    Attributes:
        writer: what the store said when it was opened.
        keys, summary: the stream's dictionary, the writer's summary.
        pending: admitted batches that no flush has taken yet.
        in_flight: whether a flush holds batches of this session.
    """

    __slots__ = (
        "_ack_due",
        "_admitted_sequence",
        "_finish_sequence",
        "_known_positions",
        "_reconnect_due",
        "_unreported",
        "committed_sequence",
        "counters",
        "draining",
        "ending",
        "finished",
        "in_flight",
        "keys",
        "on_change",
        "pending",
        "pending_bytes",
        "queued",
        "rejections",
        "summary",
        "writer",
    )

    def __init__(self, writer: OpenedWriter, *, on_change: Callable[[], None]) -> None:
        self.writer = writer
        self.on_change = on_change
        self.keys = KeyDictionary()
        self.summary = WriterSummary.from_rows(writer.summaries)
        self._known_positions = self.summary.series_positions()
        self.committed_sequence = writer.committed_sequence
        self._admitted_sequence = writer.committed_sequence
        self.counters = writer.counters
        self.rejections = writer.rejections
        self.finished = writer.finished
        self._finish_sequence: int | None = None
        self.pending: deque[Batch] = deque()
        self.pending_bytes = 0
        self.in_flight = False
        self.queued = False
        self.draining = False
        self.ending: Ending | None = None
        self._ack_due = False
        self._reconnect_due = False
        self._unreported: list[RejectionSample] = []

    # -- what the client sends ------------------------------------------------

    def admit(self, batch: Batch) -> bool:
        """Take a batch in; return whether it has to be stored.

        Raises:
            HeadraceError: the batch breaks the contract; the session is unchanged.
        """
        if batch.record_count < 1:
            raise HeadraceError(
                Reason.FIELD_INVALID,
                f"batch.record_count is {batch.record_count}; it must be 1 or more",
                field="batch.record_count",
                value=batch.record_count,
                limit=1,
            )
        last_sequence = batch.last_sequence
        if last_sequence <= self._admitted_sequence and batch.first_sequence >= 1:
            self._ack_due = self._ack_due or last_sequence <= self.committed_sequence
            return False
        self._refuse_after_finish()
        if batch.first_sequence != self._admitted_sequence + 1:
            raise HeadraceError(
                Reason.SEQUENCE_GAP,
                f"batch.first_sequence is {batch.first_sequence}; the writer's next record is "
                f"{self._admitted_sequence + 1}",
                field="batch.first_sequence",
                value=batch.first_sequence,
                limit=self._admitted_sequence + 1,
            )
        if last_sequence > SEQUENCE_MAX:
            raise _beyond_sequences("batch.record_count", last_sequence)
        points = len(batch.value)
        lengths = (len(batch.series_index), len(batch.step), len(batch.time), points)
        if lengths != (points,) * 4:
            raise HeadraceError(
                Reason.COLUMN_LENGTH_MISMATCH,
                "the columns of a batch must have equal length; series_index, step, time_unix_us "
                f"and value have {', '.join(map(str, lengths))}",
                field="batch",
                value=lengths,
                limit=points,
            )
        if points > BATCH_POINTS_MAX:
            raise HeadraceError(
                Reason.LIMIT_EXCEEDED,
                f"the batch has {points} points; the limit is {BATCH_POINTS_MAX}",
                field="batch.value",
                value=points,
                limit=BATCH_POINTS_MAX,
            )
        if (undefined := self.keys.first_undefined(batch.series_index)) is not None:
            raise HeadraceError(
                Reason.UNKNOWN_KEY_INDEX,
                f"batch.series_index contains {undefined}, which no `keys` message of this stream "
                f"defined; {self.keys.size} is the least index never defined",
                field="batch.series_index",
                value=undefined,
                limit=self.keys.size,
            )
        self._admitted_sequence = last_sequence
        self.pending.append(batch)
        self.pending_bytes += batch.size_bytes
        return True

    def heartbeat(self) -> None:
        """Owe the client an ack."""
        self._ack_due = True
        self.on_change()

    def finish(self, last_sequence: int) -> None:
        """Note that the writer ends with this record.

        Raises:
            HeadraceError: SEQUENCE_GAP when it is not the last record admitted.
        """
        if last_sequence != self._admitted_sequence:
            raise HeadraceError(
                Reason.SEQUENCE_GAP,
                f"finish.last_sequence is {last_sequence}; the last record admitted is "
                f"{self._admitted_sequence}",
                field="finish.last_sequence",
                value=last_sequence,
                limit=self._admitted_sequence,
            )
        self._finish_sequence = last_sequence

    def check_resync(self, first_sequence: int) -> None:
        """Refuse a `resync` that is not the first message or does not go forward."""
        self._refuse_after_finish()
        if self._admitted_sequence != self.writer.committed_sequence or self.pending:
            raise HeadraceError(
                Reason.SEQUENCE_GAP,
                "resync must come before the first batch of a stream",
                field="resync",
            )
        if first_sequence <= self.committed_sequence + 1:
            raise HeadraceError(
                Reason.SEQUENCE_GAP,
                f"resync.first_sequence is {first_sequence}; it must be above "
                f"{self.committed_sequence + 1}, where the writer would go on anyway",
                field="resync.first_sequence",
                value=first_sequence,
                limit=self.committed_sequence + 2,
            )
        if first_sequence > SEQUENCE_MAX:
            raise _beyond_sequences("resync.first_sequence", first_sequence)

    def resynced(self, first_sequence: int) -> None:
        """Continue at `first_sequence`; the store has moved the watermark."""
        from_sequence = self.committed_sequence
        self.committed_sequence = self._admitted_sequence = first_sequence - 1
        self.counters = self.counters.plus_lost(self.committed_sequence - from_sequence)
        self._ack_due = True
        self.on_change()

    def _refuse_after_finish(self) -> None:
        if self.finished or self._finish_sequence is not None:
            raise HeadraceError(
                Reason.WRITER_FINISHED,
                "the writer was finished; open another writer to log more",
                field="batch",
                writer_id=self.writer.writer_id.hex,
            )

    # -- what the flush reports -----------------------------------------------

    def resolve(self, index: int, series_id: int) -> None:
        """Note the store's id of a key."""
        self.keys.resolve(index, series_id, self._known_positions.get(series_id, -1))

    def committed(self, last_sequence: int, size_bytes: int) -> None:
        """Note that everything up to `last_sequence` is durable."""
        self.committed_sequence = last_sequence
        self.pending_bytes -= size_bytes
        self._ack_due = True
        if self.draining and last_sequence == self._admitted_sequence:
            self.end(None)
        self.on_change()

    def settled(self) -> None:
        """Note that it is idle: the flush which held it is over, maybe long after `committed`."""
        if self.draining:
            self.end(None)
        else:
            self.on_change()

    def report(self, samples: tuple[RejectionSample, ...]) -> None:
        """Note new samples of committed rejections."""
        self.rejections = (*self.rejections, *samples)[-REJECTION_SAMPLES_MAX:]
        self._unreported = [*self._unreported, *samples][-REJECTION_SAMPLES_MAX:]

    def mismatched(self, mismatch: Mismatch) -> HeadraceError:
        """Return the error of a stream whose writer's row does not match what it knows."""
        writer = self.writer
        if mismatch is Mismatch.BEHIND:
            return StoreUnavailableError(
                f"the database does not have writer {writer.writer_id.hex} as epoch "
                f"{writer.epoch} left it (a failover, a backup, a purge); open it again"
            )
        return HeadraceError(
            Reason.WRITER_FENCED,
            f"a newer stream of writer {writer.writer_id.hex} was opened; this one "
            f"(epoch {writer.epoch}) ends",
            field="open.writer_id",
            value=writer.writer_id.hex,
            epoch=writer.epoch,
        )

    def end(self, error: HeadraceError | None) -> None:
        """End the session; only the first call counts."""
        if self.ending is None:
            self.ending = Ending(error=error)
        self.on_change()

    def drain(self) -> None:
        """Admit nothing more; end when everything admitted is committed."""
        if not self.draining:
            self.draining = True
            self._reconnect_due = True
            if self.idle:
                self.end(None)
            self.on_change()

    @property
    def failed(self) -> bool:
        """Whether the session ended with an error: nothing of it is stored from here on."""
        return self.ending is not None and self.ending.error is not None

    @property
    def idle(self) -> bool:
        """Whether everything admitted is committed."""
        return not self.pending and not self.in_flight

    @property
    def finish_due(self) -> bool:
        """Whether the writer asked to finish and everything before it is committed."""
        return (
            self._finish_sequence is not None and self._finish_sequence <= self.committed_sequence
        )

    # -- what the client is owed ----------------------------------------------

    def take_ack(self) -> tuple[RejectionSample, ...] | None:
        """Return the samples of the ack that is due, or None when none is."""
        if not self._ack_due:
            return None
        self._ack_due = False
        samples, self._unreported = tuple(self._unreported), []
        return samples

    def take_reconnect(self) -> bool:
        """Return, once, whether the client has to be asked to move."""
        due, self._reconnect_due = self._reconnect_due, False
        return due


def _beyond_sequences(field: str, sequence: int) -> HeadraceError:
    return HeadraceError(
        Reason.FIELD_INVALID,
        f"{field} leads to record {sequence}; the last one that a writer can have is "
        f"{SEQUENCE_MAX}",
        field=field,
        value=sequence,
        limit=SEQUENCE_MAX,
    )
