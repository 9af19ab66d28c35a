"""What a gateway does by itself, at intervals: leases, search refreshes, and more.

Each job is a task of its own that never ends by an error: a database that is away
is waited for, anything else is logged. Jobs of several gateways keep out of each
other's way by row locks, so every gateway runs them all.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.domain.cleanup import CleanupRule
from gateway.domain.errors import HeadraceError, Reason, StoreUnavailableError
from gateway.store.liveness import LivenessStore
from gateway.telemetry import METRICS
from gateway.upkeep.cleaner import Cleaner
from gateway.upkeep.compactor import Compactor
from gateway.upkeep.purger import Purger
from gateway.upkeep.throttle import Throttle

_LOG = structlog.get_logger(__name__)

SWEEPS_PER_LEASE: Final = 24
"""A lease of 120 seconds is swept every 5."""
SWEEP_PERIOD_MAX_S: Final = 15.0
_COMPACTION_PERIOD_MAX_S: Final = 5.0
_PURGE_PERIOD_S: Final = 60.0
_RETRY_PERIOD_S: Final = 1.0
"""The database was away: an hourly job does not wait for its next hour."""


def sweep_period_s(lease_s: float) -> float:
    """Return the seconds between two sweeps."""
    return min(SWEEP_PERIOD_MAX_S, lease_s / SWEEPS_PER_LEASE)


def gap_max_s(lease_s: float) -> float:
    """Return from how many seconds between two sweeps on nobody could be heard.

    Three periods, and a tenth of the lease for a slow sweep: the most that an
    outage can take from a lease unnoticed.
    """
    return 3 * sweep_period_s(lease_s) + lease_s / 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Something to do again and again."""

    name: str
    period_s: float
    do: Callable[[], Awaitable[object]]


async def run_jobs(jobs: list[Job]) -> None:
    """Do the jobs until cancelled."""
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(_repeat(job), name=f"housekeeping-{job.name}")


def liveness_jobs(
    liveness: LivenessStore, *, lease_s: float, refresh_s: float, throttle: Throttle
) -> list[Job]:
    """Return the jobs that keep leases, and what searches know of metrics."""

    async def sweep() -> None:
        done = await liveness.sweep()
        if done is None:
            return
        METRICS.runs_lost.inc(done.lost)
        if done.restarted:
            _LOG.info("leases begin anew after an outage", gap_s=round(done.gap_s, 1))
        if done.lost:
            _LOG.warning("runs lost", runs=done.lost)

    async def refresh() -> None:
        # A few at a time: flushes get their turn in between.
        while True:
            done = await throttle(liveness.refresh_some(delay_s=refresh_s * 0.5))
            METRICS.runs_refreshed.inc(done.runs)
            METRICS.refreshes_failed.inc(done.failed)
            if not done.runs + done.failed:
                return

    return [
        Job(name="sweep", period_s=sweep_period_s(lease_s), do=sweep),
        # A run waits half the delay at least and, looked at so often, never all of it.
        Job(name="refresh", period_s=refresh_s * 0.25, do=refresh),
    ]


def compaction_job(compactor: Compactor, *, idle_s: float) -> Job:
    """Return the job that merges small chunks."""

    async def compact() -> None:
        done = await compactor.compact_once()
        if done.chunks_before:
            _LOG.debug(
                "compacted",
                runs_ended=done.runs,
                chunks_before=done.chunks_before,
                chunks_after=done.chunks_after,
            )

    return Job(name="compaction", period_s=min(idle_s / 4, _COMPACTION_PERIOD_MAX_S), do=compact)


def cleanup_job(cleaner: Cleaner, rules: Sequence[CleanupRule], *, period_s: float) -> Job:
    """Return the job that applies cleanup rules."""

    async def clean_up() -> None:
        for rule in rules:
            try:
                deleted = await cleaner.delete((await cleaner.decide(rule)).plan)
            except HeadraceError as error:
                if error.reason is Reason.STORE_UNAVAILABLE:
                    raise
                _LOG.warning("cleanup failed", experiment=rule.experiment, error=error.message)
                continue
            if deleted:
                _LOG.info("cleaned up", experiment=rule.experiment, runs=len(deleted))

    return Job(name="cleanup", period_s=period_s, do=clean_up)


def purge_job(purger: Purger, *, let_go: Callable[[], None]) -> Job:
    """Return the job that purges; `let_go` hears that objects may be deleted."""

    async def purge() -> None:
        done = await purger.purge()
        if done.runs:
            _LOG.info("purged", runs=done.runs, rows=done.rows)
            let_go()

    return Job(name="purge", period_s=_PURGE_PERIOD_S, do=purge)


async def _repeat(job: Job) -> None:
    while True:
        pause_s = job.period_s
        try:
            await job.do()
        except StoreUnavailableError:
            _LOG.debug("job waits for the database", job=job.name)
            pause_s = min(pause_s, _RETRY_PERIOD_S)
        except Exception:
            _LOG.exception("job failed", job=job.name)
        await asyncio.sleep(pause_s)
