"""Purges the runs whose grace period is over, one after another.

It begins when a run is deleted, or when it ends if that is later.
"""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from gateway.store.purge import PurgeStore
from gateway.telemetry import METRICS
from gateway.upkeep.throttle import Throttle


@dataclass(slots=True, kw_only=True)
class Purged:
    """What a purge has done so far: runs it finished, rows of tables, runs it was kept from."""

    runs: int = 0
    rows: int = 0
    kept: int = 0


class Purger:
    """Purges in one database. Several share the work; where one stopped, the next goes on."""

    def __init__(self, store: PurgeStore, *, grace_s: float, throttle: Throttle) -> None:
        """Prepare.

        Args:
            store: the purges.
            grace_s: how long a deleted run that has ended can be restored, in seconds.
            throttle: does each batch and rests.
        """
        self._store = store
        self._grace_s = grace_s
        self._throttled = throttle

    async def purge(
        self,
        experiment_id: int | None = None,
        *,
        progress: Callable[[Purged], None] = lambda _: None,
    ) -> Purged:
        """Finish what was begun, then purge what is due, of one experiment or of all.

        Args:
            experiment_id: None means all.
            progress: is called after each batch.

        Raises:
            StoreUnavailableError: what was purged stays so.
        """
        done = Purged()
        for run_id in await self._store.begun(experiment_id):
            await self._remove(run_id, done, progress)
        tried: set[UUID] = set()
        while due := await self._store.due(
            grace_s=self._grace_s, experiment_id=experiment_id, tried=frozenset(tried)
        ):
            for run_id in due:
                tried.add(run_id)
                if await self._throttled(self._store.begin(run_id, grace_s=self._grace_s)):
                    await self._remove(run_id, done, progress)
                else:
                    done.kept += 1
        return done

    async def _remove(self, run_id: UUID, done: Purged, progress: Callable[[Purged], None]) -> None:
        batches = self._store.remove(run_id)
        while (rows := await self._throttled(anext(batches, None))) is not None:
            done.rows += rows
            METRICS.rows_purged.inc(rows)
            progress(done)
        if await self._throttled(self._store.end(run_id)):  # else another purge is at it too
            done.runs += 1
            METRICS.runs_purged.inc()
        progress(done)
