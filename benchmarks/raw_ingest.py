"""Ingest of raw streams: the gateway's own speed, its latency, its memory.

The load comes from `benchmarks.raw_streams` in a process of its own, on the
same machine. Every round audits the database: the points stored are the points
sent, counted by three witnesses that do not know of each other (what the
generator had acknowledged, the writers' counters, the chunks themselves).
"""

import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import asyncpg

from benchmarks.load import Load
from benchmarks.raw_streams import Traffic
from benchmarks.site import Site

IDLE_SETTLE_DEADLINE_S: Final = 30.0


async def measure_saturated(site: Site, load: Load) -> dict[str, float]:
    """Measure what 64 streams of 1,000-point batches reach, and what a point weighs on disk."""
    before_bytes = await site.stored_bytes()
    seed = new_seed()
    result = await generate(
        site,
        "--streams", load.streams, "--series", load.series, "--seed", seed,
        "--batch-points", load.batch_points, "--stream-points", load.raw_points // load.streams,
    )  # fmt: skip
    await audit(site, [Traffic(seed=seed).run_id(n) for n in range(load.streams)], result["points"])
    return {
        "ingest_raw_64x1000_points_per_s": result["points_per_s"],
        "ingest_raw_ack_p99_ms": result["ack_ms"]["p99"],
        "ingest_raw_generator_cpu_us_per_point": 1e6 * result["generator_cpu_s"] / result["points"],
        "bytes_per_point": (await site.stored_bytes() - before_bytes) / result["points"],
    }


async def measure_wide(site: Site, load: Load) -> dict[str, float]:
    """Measure one run that logs 50,000 keys at each step."""
    seed = new_seed()
    result = await generate(
        site,
        "--streams", 1, "--series", load.wide_series, "--seed", seed,
        "--batch-points", 8_192, "--stream-points", load.wide_points,
        # 14 MiB, under a stream's budget: one flush then holds several steps of every key.
        "--window-batches", 64,
    )  # fmt: skip
    await audit(site, [Traffic(seed=seed).run_id(0)], result["points"])
    return {
        "ingest_wide_points_per_s": result["points_per_s"],
        "ingest_wide_ack_p99_ms": result["ack_ms"]["p99"],
    }


async def measure_paced(site: Site, load: Load) -> dict[str, float]:
    """Measure the time from a due batch to its acknowledgement at a steady 100,000 points/s."""
    seed = new_seed()
    result = await generate(
        site,
        "--streams", load.streams, "--series", load.series, "--seed", seed,
        "--batch-points", 200, "--points-per-s", load.paced_points_per_s,
        "--duration-s", load.paced_s, "--warm-up-s", 1,
    )  # fmt: skip
    await audit(site, [Traffic(seed=seed).run_id(n) for n in range(load.streams)], result["points"])
    return {
        "ack_p50_ms_at_100k": result["ack_ms"]["p50"],
        "ack_p99_ms_at_100k": result["ack_ms"]["p99"],
        "ack_max_ms_at_100k": result["ack_ms"]["max"],
        "ack_offered_points_per_s": result["points_per_s"],
    }


@contextlib.asynccontextmanager
async def idle_streams(site: Site, count: int) -> AsyncIterator[float]:
    """Hold `count` open streams that send nothing; yield the seconds that opening them took.

    Raises:
        RuntimeError: they did not open.
    """
    started = time.monotonic()
    process = await _start(site, "--streams", count, "--idle")
    try:
        assert process.stderr is not None
        async with asyncio.timeout(IDLE_SETTLE_DEADLINE_S + count / 100):
            while (line := await process.stderr.readline()).strip() != b"ready":
                if not line:
                    raise RuntimeError("the idle streams did not open")
        opened_s = time.monotonic() - started
        await asyncio.sleep(1)
        yield opened_s
    finally:
        process.terminate()
        await _finish(process)


async def generate(site: Site, *arguments: str | int | float) -> dict[str, Any]:
    """Run the load generator to its end and return what it reports.

    Raises:
        RuntimeError: a stream failed.
    """
    return await _finish(await _start(site, *arguments))


async def audit(site: Site, run_ids: Sequence[str], points: int) -> None:
    """Compare the points sent with what the database holds of these runs.

    Raises:
        RuntimeError: points are missing, or there are more than were sent.
    """
    runs = [uuid.UUID(run_id) for run_id in run_ids]
    connection = await asyncpg.connect(site.dsn)
    try:
        chunks = await connection.fetchval(
            "SELECT coalesce(sum(length(point_values) / 8), 0) FROM metric_chunks"
            " WHERE run_id = ANY($1)",
            runs,
        )
        counted = await connection.fetchval(
            "SELECT coalesce(sum(accepted_points), 0) FROM writers WHERE run_id = ANY($1)", runs
        )
    finally:
        await connection.close()
    if not chunks == counted == points:
        raise RuntimeError(f"sent {points} points; chunks hold {chunks}, writers count {counted}")


async def _start(site: Site, *arguments: str | int | float) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.raw_streams",
        site.address,
        "--bare",
        *(str(argument) for argument in arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def _finish(process: asyncio.subprocess.Process) -> dict[str, Any]:
    output, complaints = await process.communicate()
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        raise RuntimeError(complaints.decode(errors="replace")[-500:]) from None
    if result["errors"]:
        raise RuntimeError(f"streams failed: {result['errors'][0]}")
    return result


def new_seed() -> int:
    """Return a seed that no other round has: run ids follow from it, and ascend as UUIDv7 do."""
    return time.time_ns() // 1_000_000
