"""Ingest by real Python clients: training processes, spools, sender processes.

Everything runs on this machine: 64 training processes, their 64 senders, the
gateway and PostgreSQL share its cores, so this is a floor. The clock runs from
the start signal, when all senders are connected, until the database has
committed the last point.
"""

import asyncio
import os
import sys
import tempfile
import time
import uuid
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Final

import asyncpg

from benchmarks import log_call
from benchmarks.load import Load
from benchmarks.raw_ingest import audit
from benchmarks.site import Site

START_DEADLINE_S: Final = 90.0
COMMIT_DEADLINE_S: Final = 120.0
POLL_S: Final = 0.02

COMMITTED_POINTS: Final = """
    SELECT coalesce(sum(accepted_points), 0) FROM writers WHERE run_id = ANY($1)
"""


async def measure_clients(site: Site, load: Load) -> dict[str, float]:
    """Measure how fast the points of 64 training processes become durable."""
    run_ids = [uuid.uuid4().hex for _ in range(load.streams)]
    records = load.client_points // load.series
    points = load.streams * load.series * records
    connection = await asyncpg.connect(site.dsn)
    with tempfile.TemporaryDirectory(prefix="headrace-spools-") as spools:
        environment = {
            **os.environ,
            "HEADRACE_ADDRESS": site.address,
            "HEADRACE_SPOOL_DIR": spools,
            "HEADRACE_QUIET": "1",
            "HEADRACE_SYSTEM_METRICS": "0",
        }
        processes = [await _start(run_id, load.series, records, environment) for run_id in run_ids]
        try:
            await _all_ready(processes)
            await _committed(
                connection, run_ids, load.streams * load.series, deadline_s=START_DEADLINE_S
            )
            started = time.perf_counter()
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(b"go\n")
            await _committed(connection, run_ids, points, deadline_s=COMMIT_DEADLINE_S)
            elapsed_s = time.perf_counter() - started
            for process in processes:
                await process.communicate()
        finally:
            await connection.close()
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
    await audit(site, run_ids, points)
    return {
        "ingest_clients_64_points_per_s": (points - load.streams * load.series) / elapsed_s,
    }


async def measure_log_call(site: Site, load: Load) -> dict[str, float]:
    """Measure what a log call of 10 scalars costs, with the gateway up and down: us."""
    up = await asyncio.to_thread(log_call.measure, site.address)
    down = await asyncio.to_thread(log_call.measure)
    return {
        "log_call_10_scalars_us": up["median_us"],
        "log_call_10_scalars_p999_us": up["p999_us"],
        "log_call_10_scalars_longest_us": up["max_us"],
        "log_call_10_scalars_paced_us": up["paced_median_us"],
        "log_call_10_scalars_gateway_down_us": down["median_us"],
        "log_call_10_scalars_gateway_down_p999_us": down["p999_us"],
    }


async def _start(run_id: str, series: int, records: int, environment: dict[str, str]) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.client_process",
        run_id,
        str(series),
        str(records),
        stdin=PIPE,
        stdout=PIPE,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )


async def _all_ready(processes: list[Process]) -> None:
    async with asyncio.timeout(START_DEADLINE_S):
        for process in processes:
            assert process.stdout is not None
            line = await process.stdout.readline()
            if line.strip() != b"ready":
                raise RuntimeError("a client did not start")


async def _committed(
    connection: asyncpg.Connection, run_ids: list[str], points: int, *, deadline_s: float
) -> None:
    runs = [uuid.UUID(run_id) for run_id in run_ids]
    deadline = time.monotonic() + deadline_s
    while (stored := await connection.fetchval(COMMITTED_POINTS, runs)) < points:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{stored} of {points} points were committed in {deadline_s:.0f} s")
        await asyncio.sleep(POLL_S)
