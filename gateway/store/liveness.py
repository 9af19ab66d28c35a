"""Leases of runs: LOST when nobody has heard of a run for too long.

Every sweep writes the one row of `sweeps`. A gap between two sweeps says that
gateways or the database were away: nobody could be heard then, so all leases begin
anew from the first sweep after it. A sweep that cannot write does nothing; so
heartbeats that cannot be written either never count against a run. A sweep does
nothing else and waits for nothing, so that a gap never is of its own making.

A run whose lease is over is looked at until searches know all of it; the last refresh
and whether the run is LOST have nothing to do with each other.

Of several gateways one sweeps at a time. Only live runs are looked at.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from gateway.domain.errors import HeadraceError
from gateway.store.connections import Database
from gateway.store.queries import load
from gateway.store.run_metrics import refresh_run_metrics

_LOG = structlog.get_logger(__name__)
_SQL: Final = load("liveness")
_REFRESHED_AT_ONCE_MAX: Final = 10
_REFRESH_TIMEOUT_S: Final = 60.0
"""Of one transaction. A worker whose other connection serves a long read has but this one for
heartbeats too: they wait half a lease of 120 s at most."""
_REST_FACTOR: Final = 10.0
"""A resumed run rests so many times what its refresh took: it may have to read a million chunks,
and others are due every few seconds."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """What was made of the runs that were due.

    Attributes:
        runs: refreshed.
        failed: not refreshed, and tried again a lease later.
    """

    runs: int
    failed: int


class LivenessStore:
    """The leases of one database; methods raise STORE_UNAVAILABLE."""

    def __init__(
        self,
        database: Database,
        *,
        lease_s: float,
        gap_max_s: float,
        refresh_timeout_s: float = _REFRESH_TIMEOUT_S,
    ) -> None:
        """Prepare.

        Args:
            database: lends the connections.
            lease_s: without a word for so long, a run is LOST.
            gap_max_s: sweeps further apart than this mean an outage.
            refresh_timeout_s: how long a transaction that refreshes may take.
        """
        self._database = database
        self._lease_s = lease_s
        self._gap_max_s = gap_max_s
        self._refresh_timeout_s = refresh_timeout_s

    async def sweep(self) -> Sweep | None:
        """End the leases that are over; None when another gateway does."""
        async with self._database.query() as connection, connection.transaction():
            before = await connection.fetchrow(_SQL["begin_sweep"])
            if before is None:
                return None
            restarted = before["gap_s"] > self._gap_max_s
            leases_from = await connection.fetchval(_SQL["record_sweep"], restarted)
            lost = await connection.fetch(_SQL["lose_runs"], leases_from, self._lease_s)
        return Sweep(lost=len(lost), restarted=restarted, gap_s=before["gap_s"])

    async def refresh_some(self, *, delay_s: float) -> Refresh:
        """Refresh what searches know of a few live runs; of those whose lease is over finally.

        Nothing when none is due that nobody else holds. A run that cannot be refreshed is logged
        and put off; it keeps no other from being refreshed.
        """
        async with self._database.query() as connection:
            due = await connection.fetch(
                _SQL["claim"], _REFRESHED_AT_ONCE_MAX, delay_s, self._lease_s
            )
        refreshed = await self._refresh([row["run_id"] for row in due if not row["is_cut"]])
        for run_id in [row["run_id"] for row in due if row["is_cut"]]:
            began = time.monotonic()
            if await self._refresh([run_id]):
                refreshed.append(run_id)
                rest_s = _REST_FACTOR * (time.monotonic() - began)
                if rest_s > delay_s:
                    await self._put_off(run_id, rest_s)
        if refreshed:
            async with self._database.query() as connection:
                await connection.execute(_SQL["expire"], refreshed, self._lease_s)
        return Refresh(runs=len(refreshed), failed=len(due) - len(refreshed))

    async def _refresh(self, run_ids: Sequence[UUID]) -> list[UUID]:
        """Refresh runs in one transaction or, if that fails, in one each; return which were."""
        if not run_ids:
            return []
        try:
            async with (
                self._database.query(timeout_s=self._refresh_timeout_s) as connection,
                connection.transaction(),
            ):
                await refresh_run_metrics(connection, run_ids)
        except HeadraceError as error:
            if len(run_ids) > 1:
                return [done for run_id in run_ids for done in await self._refresh([run_id])]
            _LOG.warning("search rows not refreshed", run=run_ids[0].hex, error=error.message)
            await self._put_off(run_ids[0], self._lease_s)
            return []
        return list(run_ids)

    async def _put_off(self, run_id: UUID, seconds: float) -> None:
        async with self._database.query() as connection:
            await connection.execute(_SQL["put_off"], run_id, seconds)
