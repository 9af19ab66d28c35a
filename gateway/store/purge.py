"""Purges deleted runs for good: points, metadata, and what holds their artifacts.

The first transaction makes the run a tombstone and fences its writers: from then on
every call on the run fails with RUN_PURGED. Then its rows go in bounded batches, each
a transaction; whatever stops in between, the next purge goes on. Objects are not
touched here: what no run refers to any more stands in blob_deletions.
"""

from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from gateway.domain.metadata import PROTECTED_TAG
from gateway.store.artifacts import ArtifactStore
from gateway.store.connections import Database
from gateway.store.queries import load

_SQL: Final = load("purge")
_ROWS_MAX: Final = 5_000
"""Rows of one transaction: 10 MB of chunks at most."""
_ARTIFACTS_MAX: Final = 500
_RUNS_MAX: Final = 500
_STEPS: Final = (
    "delete_loose_chunks",
    "delete_merged_chunks",
    "delete_summaries",
    "delete_marks",
    "delete_metrics",
    "delete_params",
    "delete_tags",
    "delete_summary_values",
    "delete_facts",
    "delete_datasets",
    "delete_notes",
    "delete_attempts",
    "delete_heartbeats",
    "delete_series",
)
"""One for each table whose rows a run owns; the series last, which name the chunks.

`end` in purge.sql names the same tables, and those of artifacts.
"""


class PurgeStore:
    """The purges of one database; methods raise STORE_UNAVAILABLE."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._artifacts = ArtifactStore(database)

    async def begun(self, experiment_id: int | None = None) -> list[UUID]:
        """Return runs whose purge was begun and not ended."""
        async with self._database.query() as connection:
            rows = await connection.fetch(_SQL["begun"], experiment_id)
        return [row["run_id"] for row in rows]

    async def due(
        self, *, grace_s: float, experiment_id: int | None = None, tried: frozenset[UUID]
    ) -> list[UUID]:
        """Return some runs that were deleted, and have ended, longer ago than the grace period.

        Args:
            grace_s: in seconds.
            experiment_id: None means all.
            tried: left out.
        """
        async with self._database.query() as connection:
            rows = await connection.fetch(
                _SQL["due"], grace_s, PROTECTED_TAG, experiment_id, _RUNS_MAX, list(tried)
            )
        return [row["run_id"] for row in rows]

    async def begin(self, run_id: UUID, *, grace_s: float) -> bool:
        """Make a run a tombstone; False when it may not be purged (now)."""
        async with self._database.query() as connection, connection.transaction():
            locked = await connection.fetchval(_SQL["lock_due"], run_id, grace_s, PROTECTED_TAG)
            if locked is None:
                return False
            await connection.execute(_SQL["begin"], run_id)
            await connection.execute(_SQL["fence_writers"], run_id)
        return True

    async def remove(self, run_id: UUID) -> AsyncIterator[int]:
        """Remove what is left of a tombstone; yield after each batch how many rows it had.

        Beside another purge of the run it may leave rows that are the other's: see `end`.
        """
        async for count in self._artifacts.purge(run_id, count_max=_ARTIFACTS_MAX):
            yield count
        for step in _STEPS:
            while True:
                async with self._database.query() as connection:
                    status = await connection.execute(_SQL[step], run_id, _ROWS_MAX)
                count = int(status.rpartition(" ")[2])
                if count:
                    yield count
                if count < _ROWS_MAX:
                    break

    async def end(self, run_id: UUID) -> bool:
        """Note that a purge has ended.

        Returns:
            False when rows are left, which the next purge removes; or when another has
            ended it.
        """
        async with self._database.query() as connection, connection.transaction():
            await connection.execute(_SQL["by_index"])
            return await connection.fetchval(_SQL["end"], run_id) is not None
