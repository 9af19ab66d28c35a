"""Finds small chunks and replaces them by merged ones.

Safe beside everything else. Only chunks are touched that their writer committed
before the last look but one (`settle`), so that followers have long read them; one
that has not is told by writers.compacted_sequence. A transaction that takes chunks
out holds the lock of its run and puts the same points back, or nothing happens: a
second compactor and a purge keep out, writers and readers notice nothing, and
whatever is killed leaves the points as they were. Nothing waits here for a lock:
a run that is locked is left for later.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import numpy as np

from gateway.domain.compaction import (
    BATCH_CHUNKS_MAX,
    LOOSE_POINTS_MAX,
    LooseGroup,
    LoosePoints,
    MergedChunks,
)
from gateway.domain.flush import CHUNK_COLUMNS
from gateway.domain.policies import Points
from gateway.store.chunk_rows import Chunks, copy_chunks
from gateway.store.connections import Database
from gateway.store.flush_transaction import sliced
from gateway.store.queries import load

_SQL: Final = load("compaction")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What may be merged of a run after a look.

    Attributes:
        news: since the look before, more of it.
        ended: the run ended an idle time ago, and all that is committed may be merged.
    """

    news: bool
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """What one transaction did.

    Attributes:
        last_first_step: the greatest first step of a chunk it took.
    """

    chunks_before: int
    chunks_after: int
    points: int
    last_first_step: int


class CompactionStore:
    """The chunks of one database; methods raise STORE_UNAVAILABLE."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, *, idle_s: float, count_max: int) -> list[UUID]:
        """Return runs that nobody has looked at for so long."""
        async with self._database.query() as connection:
            rows = await connection.fetch(_SQL["runs_to_settle"], idle_s, count_max)
        return [row["run_id"] for row in rows]

    async def settle(self, run_id: UUID, *, idle_s: float) -> Settled | None:
        """Look at a run's writers.

        None when another compactor does, or did since; or while a follower reads a
        snapshot (`Follower.hold_place`): what was committed after that must stay loose.
        A snapshot ends after 15 minutes, or when its reader takes nothing for 8 seconds.
        """
        async with self._database.query() as connection, connection.transaction():
            run = await connection.fetchrow(_SQL["lock_to_settle"], run_id, idle_s)
            if run is None:
                return None
            if not await connection.fetchval(_SQL["no_place_held"], run_id):
                return None
            await connection.execute(_SQL["settle_run"], run_id)
            moved = await connection.fetchval(_SQL["settle_writers"], run_id)
            all_settled = await connection.fetchval(_SQL["all_settled"], run_id)
        return Settled(news=moved > 0, ended=bool(run["ended"]) and all_settled)

    async def series_pages(self, run_id: UUID, *, count: int) -> AsyncIterator[list[int]]:
        """Yield the ids of the run's series, so many at a time."""
        after = 0
        while True:
            async with self._database.query() as connection:
                rows = await connection.fetch(_SQL["series_after"], run_id, after, count)
            if rows:
                yield [row["series_id"] for row in rows]
                after = rows[-1]["series_id"]
            if len(rows) < count:
                return

    async def loose_groups(
        self, run_id: UUID, series_ids: Sequence[int], *, newest: int | None
    ) -> list[LooseGroup]:
        """Return the groups of some series that have loose chunks.

        Args:
            run_id: the run.
            series_ids: its series.
            newest: look at so many chunks of each, those of the greatest steps; None at all.
        """
        async with self._database.query() as connection:
            rows = await connection.fetch(
                _SQL["loose_groups"], run_id, series_ids, newest, LOOSE_POINTS_MAX
            )
        return [LooseGroup(**row) for row in rows]

    async def rewrite(
        self,
        run_id: UUID,
        groups: Sequence[LooseGroup],
        merge: Callable[[LoosePoints], MergedChunks],
    ) -> Rewritten | None:
        """Replace the first loose chunks of each group; None when the run is locked.

        Args:
            run_id: the run.
            groups: a batch; of each at most BATCH_CHUNKS_MAX chunks are taken.
            merge: pure; returns rows with exactly the points it is given.
        """
        taken: list[Chunks] = []

        async def take(chunks: Chunks, _last: bool) -> None:
            taken.append(chunks)

        async with self._database.query() as connection, connection.transaction():
            if await connection.fetchval(_SQL["lock_to_merge"], run_id) is None:
                return None
            await copy_chunks(
                connection,
                _SQL["take_loose"],
                run_id,
                [group.series_id for group in groups],
                [group.writer_no for group in groups],
                [group.first_step for group in groups],
                LOOSE_POINTS_MAX,
                BATCH_CHUNKS_MAX,
                take=take,
            )
            if not taken:  # others have done it
                return Rewritten(chunks_before=0, chunks_after=0, points=0, last_first_step=0)
            loose = _loose_points(run_id, groups, taken)
            merged = merge(loose)
            await connection.copy_to_table(
                "merged_chunks",
                source=sliced(merged.copy_pieces),
                columns=CHUNK_COLUMNS,
                format="binary",
            )
        return Rewritten(
            chunks_before=sum(map(len, taken)),
            chunks_after=merged.chunk_count,
            points=len(loose.step),
            last_first_step=max(int(page.first_step.max()) for page in taken),
        )

    async def mark_compacted(self, run_id: UUID) -> None:
        """Note that a run that has ended has nothing left to merge, if that is so."""
        async with self._database.query() as connection:
            await connection.execute(_SQL["mark_compacted"], run_id)


def _loose_points(
    run_id: UUID, groups: Sequence[LooseGroup], taken: Sequence[Chunks]
) -> LoosePoints:
    points = Points.concatenate([page.points for page in taken])
    group = np.concatenate([np.repeat(page.position, np.diff(page.starts)) for page in taken])
    attempt = np.zeros(len(groups), np.int32)
    attempt[group] = points.attempt  # a writer is of one attempt
    return LoosePoints(
        run_id=run_id,
        series_id=np.array([item.series_id for item in groups], np.int64),
        writer_no=np.array([item.writer_no for item in groups], np.int64),
        attempt=attempt,
        group=group,
        step=points.step,
        time_us=points.time_us,
        value=points.value,
    )
