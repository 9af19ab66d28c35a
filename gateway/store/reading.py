"""Reads the metrics of runs: snapshots, following reads, lists of series.

The connection budget: a snapshot holds one query connection, and at most
`reads_max` are held at a time, so that readers cannot take the connections of
everything else. A reader that takes no message for 8 seconds while a snapshot is
held for it is sent away. Between looks for new points a following read holds
nothing; a look is one small query, every `poll_min_ms` while points come and
up to `poll_max_ms` when none do. News that finds no connection waits.

While a snapshot is held for a following read, compaction of its run goes no
further (`Follower.hold_place`).

What it never does: write.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.reads import Emit, ReadQuery, SeriesPart
from gateway.store.connections import Database
from gateway.store.following import Follower
from gateway.store.queries import load
from gateway.store.run_rules import read_run
from gateway.store.snapshot import SnapshotRead, give
from gateway.store.summaries import SeriesPage, SeriesQuery, list_series

_SQL: Final = load("reading")
_SNAPSHOT_S: Final = 900.0
"""The longest a snapshot may be held: it keeps vacuum from cleaning up. So long PostgreSQL waits
for a slow reader, and for a gateway that vanished with its machine: it cannot tell them apart."""
_TURN_S: Final = 10.0
_HELD_POINTS_MAX: Final = 262_144
"""New points that are kept in memory (8 MiB) until the connection is given back; more are passed
on while it is held."""


class _NoTurnError(HeadraceError):
    """As many snapshots are held as may be, and none was given back in time."""

    def __init__(self) -> None:
        super().__init__(Reason.OVERLOADED, "too many reads at a time", retry_after_ms=1_000)


class MetricReading:
    """The reads of one gateway process; shared by all calls."""

    def __init__(
        self,
        database: Database,
        *,
        reads_max: int = 2,
        followers_max: int = 256,
        poll_min_ms: int = 50,
        poll_max_ms: int = 500,
    ) -> None:
        """Prepare; nothing is read.

        Args:
            database: lends the connections.
            reads_max: snapshots held at a time; fewer than the query connections,
                so that other calls always find one.
            followers_max: following reads at a time.
            poll_min_ms: between looks for new points, while they come.
            poll_max_ms: the same, after a while without any.
        """
        self._database = database
        self._turns = asyncio.Semaphore(reads_max)
        self._followers_max = followers_max
        self._poll_min_s = poll_min_ms / 1000
        self._poll_max_s = poll_max_ms / 1000
        self.followers = 0
        """Following reads now."""

    async def read(self, query: ReadQuery, emit: Emit) -> None:
        """Push the points of a run; with `query.follow`, until cancelled.

        Raises:
            HeadraceError: RUN_NOT_FOUND, RUN_PURGED; OVERLOADED when too many read
                at a time or the reader takes nothing; STORE_UNAVAILABLE.
        """
        if query.follow:
            await self._follow(query, emit)
            return
        async with self._snapshot() as connection:
            await SnapshotRead(connection, query, emit).run()

    async def list_series(self, query: SeriesQuery) -> SeriesPage:
        """Return a page of series with the summaries of their visible points.

        Raises:
            HeadraceError: RUN_NOT_FOUND, RUN_PURGED, OVERLOADED, STORE_UNAVAILABLE.
        """
        async with self._snapshot() as connection:
            await read_run(connection, query.run_id, workspace_id=query.workspace_id)
            return await list_series(connection, query)

    async def _follow(self, query: ReadQuery, emit: Emit) -> None:
        if self.followers >= self._followers_max:
            raise HeadraceError(
                Reason.OVERLOADED,
                f"this gateway serves {self.followers} following reads, as many as it may",
                limit=self._followers_max,
                retry_after_ms=5_000,
            )
        self.followers += 1
        try:
            follower = Follower(query)
            async with self._snapshot() as connection:
                await follower.hold_place(connection)
                await SnapshotRead(connection, query, emit).run()
                await follower.advance(connection)
            await emit(None)
            pause_s = self._poll_min_s
            while True:
                await asyncio.sleep(pause_s)
                async with self._database.query() as connection:
                    news = await follower.anything_new(connection)
                pause_s = self._poll_min_s if news else min(1.5 * pause_s, self._poll_max_s)
                if news:
                    # While others read it asks again; its place stays the same.
                    with contextlib.suppress(_NoTurnError):
                        await self._pass_on_news(follower, query, emit)
        finally:
            self.followers -= 1

    async def _pass_on_news(self, follower: Follower, query: ReadQuery, emit: Emit) -> None:
        held: list[SeriesPart] = []
        async with self._snapshot() as connection:
            # It may have been purged meanwhile.
            await read_run(connection, query.run_id, workspace_id=query.workspace_id)
            news = await follower.advance(connection)
            hold = sum(item.point_count for item in news) <= _HELD_POINTS_MAX
            if not hold:
                await follower.hold_place(connection)

            async def take(part: SeriesPart) -> None:
                if hold:
                    held.append(part)
                else:
                    await give(emit, part)

            await follower.read(connection, news, take)
        for part in held:  # without a connection: the reader may take its time
            await emit(part)

    @contextlib.asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection in a read-only transaction that sees one snapshot."""
        try:
            async with asyncio.timeout(_TURN_S):
                await self._turns.acquire()
        except TimeoutError:
            raise _NoTurnError from None
        try:
            async with (
                self._database.query(timeout_s=_SNAPSHOT_S) as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                await connection.execute(_SQL["take_time"], f"{_SNAPSHOT_S:.0f}s")
                yield connection
        finally:
            self._turns.release()
