"""Takes flushes from the coalescer and sees each of them to its end.

One writer task owns one database connection for life. What it guarantees:

1. A session is told `committed` only after the transaction that holds its batches
   committed, or was found committed after an ambiguous COMMIT.
2. Every session of a failed flush learns its own fate: one that is fenced, or whose
   commits the store has lost, leaves it; content that the store refuses is isolated
   writer by writer and then batch by batch; what takes the store too long is tried
   again in halves; what fails for no known reason is tried writer by writer and ends
   the one that fails alone; everything else waits until the store takes it.
3. It is never cancelled by a call's end. Streams stall while the store is away.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog

from gateway.domain.backoff import retry_delay_s
from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.flush import (
    EncodedFlush,
    FlushAmbiguousError,
    FlushConflictError,
    FlushDataError,
    FlushTimeoutError,
    FlushUnavailableError,
    FlushUnexplainedError,
    LateMarks,
    Mismatch,
    WriterAdvance,
)
from gateway.domain.series import SeriesWanted
from gateway.ingest.coalescer import Portion
from gateway.ingest.encode import Encoded, encode, mark_targets, unresolved_indexes
from gateway.telemetry import METRICS

_LOG = structlog.get_logger(__name__)

_UNEXPLAINED_MAX: Final = 5
"""Failures in a row for no known reason, about a second, until a flush is taken apart."""
_REFUSED_DETAIL: Final = "the database refused the content of the batch that carried these points"


class FlushConnection(Protocol):
    """A database connection that writes flushes. Raises the Flush…Errors of `domain.flush`."""

    async def resolve_series(self, wanted: SeriesWanted) -> list[int | None]:
        """Return the id of each series, creating what is missing; None beyond the run's limit."""

    async def commit(self, flush: EncodedFlush) -> dict[int, Mismatch]:
        """Commit a flush in one transaction.

        Returns:
            The writers whose epoch or watermark did not match, by their positions in
            `flush.advances`; when there are any, nothing was committed.
        """

    async def commit_rejecting(
        self, wanted: LateMarks, encode: Callable[[LateMarks], EncodedFlush]
    ) -> dict[int, Mismatch]:
        """Lock the wanted marks, encode with them, and commit like `commit`."""

    async def was_committed(self, advances: Sequence[WriterAdvance]) -> bool:
        """Return whether the flush whose COMMIT was ambiguous is committed."""


class Writer:
    """Sees flushes to their end over one connection."""

    def __init__(
        self,
        connection: FlushConnection,
        *,
        ended: Callable[[Portion, HeadraceError], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._connection = connection
        self._ended = ended
        self._sleep = sleep

    async def flush(self, portions: Sequence[Portion]) -> None:
        """Store the portions; returns when each is committed or its session has ended."""
        started = time.perf_counter()
        failures = unexplained = 0
        remaining = list(portions)
        while remaining:
            try:
                encoded, unmatched = await self._attempt(remaining)
            except FlushDataError as error:
                METRICS.flush_retries.labels(cause="data").inc()
                _LOG.warning("flush refused", writers=len(remaining), error=str(error))
                await self._isolate(remaining)
                return
            except FlushConflictError:
                failures += 1
                METRICS.flush_retries.labels(cause="conflict").inc()
                _doubt_new_series(remaining)
                await self._sleep(random.random() * 0.02)
            except FlushUnavailableError as error:
                failures += 1
                unexplained = unexplained + 1 if isinstance(error, FlushUnexplainedError) else 0
                METRICS.flush_retries.labels(cause="unavailable").inc()
                if failures in {1, 10} or failures % 100 == 0:
                    _LOG.warning(
                        "store unavailable; streams wait", tries=failures, error=str(error)
                    )
                _doubt_new_series(remaining)
                if unexplained == _UNEXPLAINED_MAX:
                    _LOG.error("flush taken apart", writers=len(remaining), error=str(error))
                    await self._take_apart(remaining)
                    return
                await self._sleep(retry_delay_s(failures))
                if isinstance(error, FlushTimeoutError) and (halves := _halves(remaining)):
                    for half in halves:
                        await self.flush([part for part in half if not part.session.failed])
                    return
            except Exception:
                METRICS.flush_retries.labels(cause="defect").inc()
                _LOG.exception("flush failed by a defect of the gateway", writers=len(remaining))
                await self._take_apart(remaining)
                return
            else:
                if not unmatched:
                    self._finish(encoded, remaining, time.perf_counter() - started)
                    return
                for position, mismatch in unmatched.items():
                    self._leave(remaining[position], mismatch)
                remaining = [portion for at, portion in enumerate(remaining) if at not in unmatched]

    async def _attempt(self, portions: Sequence[Portion]) -> tuple[Encoded, dict[int, Mismatch]]:
        """Try once; an ambiguous COMMIT is settled here."""
        await self._resolve(portions)
        encoded: Encoded | None = None
        try:
            if portions[0].session.writer.rejects_late:

                def encode_with(marks: LateMarks) -> EncodedFlush:
                    nonlocal encoded
                    encoded = encode(portions, marks=marks)
                    return encoded.flush

                unmatched = await self._connection.commit_rejecting(
                    mark_targets(portions), encode_with
                )
            else:
                encoded = encode(portions)
                unmatched = await self._connection.commit(encoded.flush)
        except FlushAmbiguousError:
            if encoded is None:  # nothing was sent yet
                raise FlushUnavailableError("the connection broke before the flush") from None
            unmatched = await self._settle(encoded)
        if encoded is None:
            raise FlushUnavailableError("the flush was not encoded")
        return encoded, unmatched

    async def _settle(self, encoded: Encoded) -> dict[int, Mismatch]:
        """Find out what an ambiguous COMMIT did; never guess.

        Raises:
            FlushConflictError: it did not commit.
        """
        METRICS.flush_retries.labels(cause="ambiguous").inc()
        failures = 0
        while True:
            try:
                committed = await self._connection.was_committed(encoded.flush.advances)
            except (FlushUnavailableError, FlushConflictError, FlushAmbiguousError):
                failures += 1
                await self._sleep(retry_delay_s(failures))
                continue
            _LOG.warning("ambiguous commit settled", committed=committed)
            if committed:
                return {}
            raise FlushConflictError("the ambiguous commit did not happen")

    async def _take_apart(self, portions: Sequence[Portion]) -> None:
        """Flush writer by writer what nobody can explain; end the writer that fails alone.

        Nothing is rejected: its client keeps what is not committed and comes back.
        """
        if len(portions) > 1:
            for portion in portions:
                await self.flush([portion])
            return
        message = "the gateway failed to store a batch; see its log"
        self._ended(portions[0], HeadraceError(Reason.INTERNAL, message))

    async def _isolate(self, portions: Sequence[Portion]) -> None:
        """Store refused content apart: writer by writer, then batch by batch."""
        if len(portions) > 1:
            for portion in portions:
                await self.flush([portion])
            return
        (portion,) = portions
        if len(portion.batches) > 1:
            for batch in portion.batches:
                if portion.session.failed:
                    return
                await self.flush([portion.only((batch,))])
            return
        await self._reject(portion)

    async def _reject(self, portion: Portion) -> None:
        """Advance past a batch that the store refuses, counting its points as rejected."""
        failures = 0
        while True:
            encoded = encode([portion], refuse=(Reason.STORE_REFUSED, _REFUSED_DETAIL))
            try:
                unmatched = await self._connection.commit(encoded.flush)
            except FlushDataError as error:
                _LOG.error("cannot count a rejected batch", error=str(error))
                portion.session.end(
                    HeadraceError(Reason.INTERNAL, "the gateway could not record a rejected batch")
                )
                return
            except FlushAmbiguousError:
                try:
                    unmatched = await self._settle(encoded)
                except FlushConflictError:
                    continue
            except (FlushConflictError, FlushUnavailableError):
                failures += 1
                await self._sleep(retry_delay_s(failures))
                continue
            if unmatched:
                self._leave(portion, unmatched[0])
            else:
                self._finish(encoded, [portion], 0.0)
            return

    def _leave(self, portion: Portion, mismatch: Mismatch) -> None:
        if mismatch is Mismatch.FENCED:
            METRICS.writers_fenced.inc()
        else:
            writer_id = portion.session.writer.writer_id.hex
            _LOG.warning("the store is behind a writer, which opens again", writer_id=writer_id)
        self._ended(portion, portion.session.mismatched(mismatch))

    def _finish(self, encoded: Encoded, portions: Sequence[Portion], seconds: float) -> None:
        encoded.apply()
        accepted = late = repeated = 0
        now = time.perf_counter()
        for effect in encoded.effects:
            accepted += effect.counters.accepted_points
            late += effect.counters.late_points
            repeated += effect.counters.repeated_points
            for sample in effect.samples:
                METRICS.points_rejected.labels(reason=sample.reason.name).inc(sample.points)
            METRICS.ack_seconds.observe(now - effect.portion.batches[0].arrived)
        METRICS.points_accepted.inc(accepted)
        METRICS.points_late.inc(late)
        METRICS.points_repeated.inc(repeated)
        METRICS.batches.inc(sum(len(portion.batches) for portion in portions))
        METRICS.flush_points.observe(encoded.flush.points)
        METRICS.flush_seconds.observe(seconds)

    async def _resolve(self, portions: Sequence[Portion]) -> None:
        wanted = [(portion, index) for portion in portions for index in unresolved_indexes(portion)]
        if not wanted:
            return
        ids = await self._connection.resolve_series(
            SeriesWanted(
                run_ids=[portion.session.writer.run_id for portion, _ in wanted],
                ranks=[portion.session.writer.rank for portion, _ in wanted],
                keys=[portion.session.keys.key(index) for portion, index in wanted],
            )
        )
        for (portion, index), series_id in zip(wanted, ids, strict=True):
            if series_id is None:
                portion.session.keys.refuse(
                    index, Reason.KEYS_EXHAUSTED, "the run has its maximum number of series"
                )
            else:
                portion.session.resolve(index, series_id)


def _doubt_new_series(portions: Sequence[Portion]) -> None:
    """Have ids looked up again that no commit has used yet.

    Their rows were committed before the flush: a failover between the two may have lost them.
    """
    for portion in portions:
        portion.session.keys.forget_unused()


def _halves(portions: Sequence[Portion]) -> list[Sequence[Portion]]:
    """Return two flushes that make up one; none when it is a single batch."""
    if middle := len(portions) // 2:
        return [portions[:middle], portions[middle:]]
    (portion,) = portions
    if middle := len(portion.batches) // 2:
        return [[portion.only(portion.batches[:middle])], [portion.only(portion.batches[middle:])]]
    return []
