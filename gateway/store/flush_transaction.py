"""The transaction of a flush, and what is known when the answer to COMMIT is lost.

    UPDATE writers (watermark, counters) → COPY loose_chunks → writer_summaries → COMMIT

An `IngestConnection` is lent to one writer task for life. Every error leaves here
as one of the Flush…Errors.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final
from uuid import UUID

import asyncpg

from gateway.domain.errors import HeadraceError
from gateway.domain.flush import (
    CHUNK_COLUMNS,
    EncodedFlush,
    FlushAmbiguousError,
    FlushConflictError,
    FlushDataError,
    FlushTimeoutError,
    FlushUnavailableError,
    FlushUnexplainedError,
    LateMarks,
    Mismatch,
    OpenedWriter,
    RejectionSample,
    WriterAdvance,
    refusal_sample,
)
from gateway.domain.limits import REJECTION_SAMPLES_MAX
from gateway.domain.metadata import MetadataRows
from gateway.domain.series import SERIES_PER_RUN_MAX, SeriesWanted
from gateway.store.connections import CONNECTION_LOST, Database, Slot
from gateway.store.metadata import write_metadata
from gateway.store.queries import load
from gateway.store.rejections import samples_to_json

_SQL: Final = load("metrics")
_METADATA_SQL: Final = load("metadata")
_COPY_PIECE_BYTES: Final = 512 * 1024
_UNSEEN: Final = -(2**63)
_BROKEN = (*CONNECTION_LOST, TimeoutError)

# Classes of SQLSTATE. Cardinality, data, constraints, limits of a row or a statement: what
# was to be written is at fault.
_CONTENT: Final = frozenset({"21", "22", "23", "54"})
# The connection, read-only, rolled back, a table or a privilege that is missing, resources,
# not in a state to, an operator, the system: the database is at fault, until it is put right.
_CONDITION: Final = frozenset({"08", "25", "40", "42", "53", "55", "57", "58"})


class IngestConnection:
    """One connection of the budget, for one writer task."""

    def __init__(self, slot: Slot, database: Database) -> None:
        self._slot = slot
        self._database = database

    async def resolve_series(self, wanted: SeriesWanted) -> list[int | None]:
        """Return the id of each series, creating what is missing; None beyond the run's limit.

        Raises:
            FlushUnavailableError, FlushConflictError: try again.
        """
        async with self._errors() as connection:
            found = await self._find_series(connection, wanted, range(len(wanted.keys)))
            missing: dict[UUID, list[int]] = {}
            for place, run_id in enumerate(wanted.run_ids):
                if place not in found:
                    missing.setdefault(run_id, []).append(place)
            if missing:
                allowed: list[int] = []
                for run_id, places in missing.items():
                    count = await connection.fetchval(
                        _SQL["count_series"], run_id, SERIES_PER_RUN_MAX
                    )
                    allowed += places[: SERIES_PER_RUN_MAX - count]
                await connection.execute(
                    _SQL["insert_series"],
                    [wanted.run_ids[place] for place in allowed],
                    [wanted.ranks[place] for place in allowed],
                    [wanted.keys[place] for place in allowed],
                )
                found |= await self._find_series(connection, wanted, allowed)
            return [found.get(place) for place in range(len(wanted.keys))]

    @staticmethod
    async def _find_series(
        connection: asyncpg.Connection, wanted: SeriesWanted, places: Sequence[int]
    ) -> dict[int, int]:
        rows = await connection.fetch(
            _SQL["find_series"],
            [wanted.run_ids[place] for place in places],
            [wanted.ranks[place] for place in places],
            [wanted.keys[place] for place in places],
        )
        return {places[row["place"] - 1]: row["series_id"] for row in rows}

    async def commit(self, flush: EncodedFlush) -> dict[int, Mismatch]:
        """Commit a flush in one transaction.

        Returns:
            Writers that did not match, by position; nothing is committed then.

        Raises:
            FlushDataError, FlushConflictError, FlushUnavailableError: rolled back.
            FlushAmbiguousError: ask `was_committed`.
        """
        return await self._transact(lambda connection: self._write(connection, flush))

    async def commit_rejecting(
        self, wanted: LateMarks, encode: Callable[[LateMarks], EncodedFlush]
    ) -> dict[int, Mismatch]:
        """Lock the wanted marks, encode with them, and commit like `commit`."""

        async def write(connection: asyncpg.Connection) -> dict[int, Mismatch]:
            keys = (wanted.run_ids, wanted.series_ids, wanted.attempts)
            await connection.execute(_SQL["insert_marks"], *keys)
            rows = await connection.fetch(_SQL["lock_marks"], *keys)
            locked = LateMarks(
                run_ids=[row["run_id"] for row in rows],
                series_ids=[row["series_id"] for row in rows],
                attempts=[row["attempt"] for row in rows],
                last_steps=[
                    None if row["last_step"] == _UNSEEN else row["last_step"] for row in rows
                ],
            )
            flush = encode(locked)
            unmatched = await self._write(connection, flush)
            if not unmatched and flush.marks is not None:
                await connection.execute(
                    _SQL["raise_marks"],
                    flush.marks.run_ids,
                    flush.marks.series_ids,
                    flush.marks.attempts,
                    [_UNSEEN if step is None else step for step in flush.marks.last_steps],
                )
            return unmatched

        return await self._transact(write)

    async def was_committed(self, advances: Sequence[WriterAdvance]) -> bool:
        """Return whether the flush whose COMMIT was ambiguous is committed.

        The old backend is gone by the time a new connection exists (see
        `connections`), or holds its row locks until it is: locking the rows
        waits for it. Within its epoch only this flush moves a watermark, so any
        row of its epoch decides; rows of newer epochs say nothing, and their
        streams are fenced anyway. Nor do rows that a failover lost: the next try
        finds that they do not match.

        Raises:
            FlushUnavailableError, FlushConflictError: ask again.
        """
        async with self._errors() as connection:
            rows = await connection.fetch(
                _SQL["lock_writers"],
                list(range(len(advances))),
                [advance.run_id for advance in advances],
                [advance.writer_id for advance in advances],
            )
            return any(
                row["epoch"] == advances[row["place"]].epoch
                and row["committed_sequence"] >= advances[row["place"]].last_sequence
                for row in rows
            )

    async def _write(
        self, connection: asyncpg.Connection, flush: EncodedFlush
    ) -> dict[int, Mismatch]:
        advances = flush.advances
        order = sorted(
            range(len(advances)),
            key=lambda place: (advances[place].run_id, advances[place].writer_id),
        )
        ordered = [advances[place] for place in order]
        matched = await connection.fetch(
            _SQL["advance_writers"],
            order,
            [advance.run_id for advance in ordered],
            [advance.writer_id for advance in ordered],
            [advance.epoch for advance in ordered],
            [advance.first_sequence for advance in ordered],
            [advance.last_sequence for advance in ordered],
            [advance.counters.accepted_points for advance in ordered],
            [advance.counters.late_points for advance in ordered],
            [advance.counters.repeated_points for advance in ordered],
            [advance.counters.rejected_points for advance in ordered],
            [
                None if advance.rejections is None else samples_to_json(advance.rejections)
                for advance in ordered
            ],
        )
        if len(matched) < len(advances):
            found = {row["place"] for row in matched}
            return await _mismatches(
                connection,
                {place: item for place, item in enumerate(advances) if place not in found},
            )
        if flush.copy_pieces:
            await connection.copy_to_table(
                "loose_chunks",
                source=sliced(flush.copy_pieces),
                columns=CHUNK_COLUMNS,
                format="binary",
            )
        rows = flush.summaries
        if rows.run_ids:
            await connection.execute(
                _SQL["store_summaries"],
                rows.run_ids,
                rows.writer_nos,
                rows.blocks,
                rows.lo,
                rows.hi,
                rows.series_ids,
                rows.point_counts,
                rows.last_steps,
                rows.last_times,
                rows.last_values,
                rows.min_values,
                rows.max_values,
            )
        if flush.metadata is not None:
            await self._write_metadata(connection, flush, flush.metadata)
        return {}

    @staticmethod
    async def _write_metadata(
        connection: asyncpg.Connection, flush: EncodedFlush, rows: MetadataRows
    ) -> None:
        """Write what the flush says of its runs; count what was refused with its writers."""
        await write_metadata(connection, rows)
        samples: dict[int, list[RejectionSample]] = {}
        for refusal in rows.refusals:
            sequence = flush.advances[refusal.place].last_sequence
            samples.setdefault(refusal.place, []).append(refusal_sample(refusal, sequence=sequence))
        if samples:
            # The writers' rows are locked by this transaction already.
            await connection.execute(
                _METADATA_SQL["count_refusals"],
                [flush.advances[place].run_id for place in samples],
                [flush.advances[place].writer_id for place in samples],
                [len(refused) for refused in samples.values()],
                [samples_to_json(refused[-REJECTION_SAMPLES_MAX:]) for refused in samples.values()],
            )

    async def _transact(
        self, write: Callable[[asyncpg.Connection], Awaitable[dict[int, Mismatch]]]
    ) -> dict[int, Mismatch]:
        """Write in a transaction; commit it unless `write` returns writers that did not match."""
        async with self._errors() as connection:
            await connection.execute("BEGIN")
            unmatched = await write(connection)
            if unmatched:
                await connection.execute("ROLLBACK")
            else:
                await self._commit(connection)
            return unmatched

    async def _commit(self, connection: asyncpg.Connection) -> None:
        try:
            tag = await connection.execute("COMMIT")
        except (*_BROKEN, asyncpg.PostgresError) as error:
            self._slot.discard()
            raise FlushAmbiguousError(str(error)) from error
        if tag != "COMMIT":  # what PostgreSQL answers when the transaction had failed before
            raise FlushConflictError(f"COMMIT was answered by {tag}")

    @contextlib.asynccontextmanager
    async def _errors(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend the connection; translate errors and leave no open transaction behind."""
        try:
            connection = await self._slot.ensure()
        except HeadraceError as error:
            raise FlushUnavailableError(error.message) from error
        try:
            yield connection
        except FlushAmbiguousError:
            raise
        except TimeoutError as error:
            self._slot.discard()
            raise FlushTimeoutError("the database took too long to answer") from error
        except _BROKEN as error:
            self._slot.discard()
            raise FlushUnavailableError(f"connection lost: {error!r}") from error
        except asyncpg.PostgresError as error:
            await self._roll_back(connection)
            state = error.sqlstate or ""
            if state in {"40P01", "40001"}:
                raise FlushConflictError(str(error)) from error
            if state[:2] in _CONTENT:
                raise FlushDataError(str(error)) from error
            known = state[:2] in _CONDITION
            failure = FlushUnavailableError if known else FlushUnexplainedError
            raise failure(f"SQLSTATE {state}: {error}") from error
        except BaseException:
            # A defect, or a forced stop in the middle: what the connection is
            # doing is unknown, so it goes.
            self._slot.discard()
            raise

    async def _roll_back(self, connection: asyncpg.Connection) -> None:
        try:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK", timeout=5)
        except (*_BROKEN, asyncpg.PostgresError):
            self._slot.discard()


async def mismatch(connection: asyncpg.Connection, writer: OpenedWriter) -> Mismatch:
    """Return why the row of a writer did not match."""
    return (await _mismatches(connection, {0: writer}))[0]


async def _mismatches(
    connection: asyncpg.Connection, unmatched: Mapping[int, WriterAdvance | OpenedWriter]
) -> dict[int, Mismatch]:
    """Return why the rows of these writers did not match, by place.

    Only a newer epoch says that somebody else is in charge. A watermark that is not
    where the stream left it says that the database is another one: a standby that was
    promoted before it had everything, or a backup. It is not looked at: even if the
    row holds this very flush, whoever opens the writer again learns that it does.
    """
    rows = await connection.fetch(
        _SQL["newer_epochs"],
        list(unmatched),
        [writer.run_id for writer in unmatched.values()],
        [writer.writer_id for writer in unmatched.values()],
        [writer.epoch for writer in unmatched.values()],
    )
    fenced = {row["place"] for row in rows}
    return {place: Mismatch.FENCED if place in fenced else Mismatch.BEHIND for place in unmatched}


async def sliced(pieces: Sequence[memoryview]) -> AsyncIterator[memoryview]:
    """Yield pieces of a size at which the driver checks flow control often enough."""
    for piece in pieces:
        for start in range(0, len(piece), _COPY_PIECE_BYTES):
            yield piece[start : start + _COPY_PIECE_BYTES]
