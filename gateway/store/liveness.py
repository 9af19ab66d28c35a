"""Leases of runs: LOST when nobody has heard of a run for too long.

Every sweep writes the one row of `sweeps`. A gap between two sweeps says that
gateways or the database were away: nobody could be heard then, so all leases begin
anew from the first sweep after it. A sweep that cannot write does nothing; so
heartbeats that cannot be written either never count against a run.

Of several gateways one sweeps at a time. Only live runs are looked at.
"""

from dataclasses import dataclass
from typing import Final

from gateway.store.connections import Database
from gateway.store.queries import load
from gateway.store.run_metrics import refresh_dirty, refresh_run_metrics

_SQL: Final = load("liveness")
_EXPIRED_PER_SWEEP_MAX: Final = 500
_REFRESHED_AT_ONCE_MAX: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What one sweep did.

    Attributes:
        lost: runs that became LOST.
        restarted: whether leases begin anew.
        gap_s: since the sweep before.
    """

    lost: int
    restarted: bool
    gap_s: float


class LivenessStore:
    """The leases of one database; methods raise STORE_UNAVAILABLE."""

    def __init__(self, database: Database, *, lease_s: float, gap_max_s: float) -> None:
        """Prepare.

        Args:
            database: lends the connections.
            lease_s: without a word for so long, a run is LOST.
            gap_max_s: sweeps further apart than this mean an outage.
        """
        self._database = database
        self._lease_s = lease_s
        self._gap_max_s = gap_max_s

    async def sweep(self) -> Sweep | None:
        """End the leases that are over; None when another gateway does."""
        async with self._database.query() as connection, connection.transaction():
            before = await connection.fetchrow(_SQL["begin_sweep"])
            if before is None:
                return None
            restarted = before["gap_s"] > self._gap_max_s
            leases_from = await connection.fetchval(_SQL["record_sweep"], restarted)
            lost = await connection.fetch(_SQL["lose_runs"], leases_from, self._lease_s)
            expired = [
                row["run_id"]
                for row in await connection.fetch(
                    _SQL["expired"], leases_from, self._lease_s, _EXPIRED_PER_SWEEP_MAX
                )
            ]
            if expired:
                # The last refresh: nothing will make these runs dirty any more.
                await refresh_run_metrics(connection, expired)
                await connection.execute(_SQL["expire"], expired, self._lease_s)
        return Sweep(lost=len(lost), restarted=restarted, gap_s=before["gap_s"])

    async def refresh_some(self, *, delay_s: float) -> int:
        """Refresh what searches know of a few live runs; return how many.

        0 when none is due that nobody else holds.
        """
        async with self._database.query() as connection, connection.transaction():
            return await refresh_dirty(connection, runs_max=_REFRESHED_AT_ONCE_MAX, delay_s=delay_s)
