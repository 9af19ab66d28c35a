"""What a gateway does by itself goes on after whatever goes wrong."""

import asyncio

from gateway.domain.errors import StoreUnavailableError
from gateway.housekeeping import Job, run_jobs


async def test_an_hourly_job_does_not_wait_an_hour_for_a_database_that_was_away() -> None:
    calls, done = 0, asyncio.Event()

    async def work() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise StoreUnavailableError("it restarts")
        done.set()

    jobs = asyncio.create_task(run_jobs([Job(name="hourly", period_s=3_600.0, do=work)]))
    async with asyncio.timeout(20):
        await done.wait()
    jobs.cancel()
    await asyncio.wait([jobs])
    assert calls == 2
