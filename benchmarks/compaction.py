"""Compaction: bytes a point and reads, before and after.

A job that logs one point a second commits every point by itself: chunks of one point.
A million of them (a quarter in a short run) are laid down here in parts; the compactor
comes after each, and a vacuum, as in life, where both come far more often. The same
without either is the comparison. Reads of the whole series go through the gateway.
"""

import time
import uuid
from typing import Final

import asyncpg
import grpc
from headrace.v1 import metric_service_pb2 as pb
from headrace.v1 import metric_service_pb2_grpc as metric_grpc
from prometheus_client import CollectorRegistry, Counter

from benchmarks.load import Load
from benchmarks.site import Site
from gateway.store.compaction import CompactionStore
from gateway.store.connections import Database
from gateway.upkeep.compactor import Compactor
from gateway.upkeep.throttle import Throttle

_PART_POINTS: Final = 33_334
_WARM_POINTS: Final = 10_000
_SIZE: Final = (
    "SELECT pg_total_relation_size('loose_chunks') + pg_total_relation_size('merged_chunks')"
)

# One point a chunk, a second apart, some microseconds late, as a client's clock says.
_LOG: Final = """
INSERT INTO loose_chunks (run_id, series_id, writer_no, last_sequence, first_step, last_step,
    first_time, min_value, max_value, attempt, step_offsets, time_offsets, point_values)
SELECT $1, $2, 1, step + 1, step, step, 1767225600000000 + step * 1000000 + step * 7919 % 2000,
    v, v, 1, NULL, int4send(0), float8send(v)
FROM generate_series($3::bigint, $4::bigint - 1) AS step,
    LATERAL (SELECT 2 / sqrt(step + 1) + sin(step * 12.9898) / 20 AS v) AS value
ORDER BY step
"""


async def measure_compaction(_site: Site, load: Load) -> dict[str, float]:
    """Store many points one by one, twice; compact one of them as it grows."""
    points = load.compaction_points
    size = f"{points // 1_000_000}m" if points >= 1_000_000 else f"{points // 1_000}k"
    parts = -(-points // _PART_POINTS)
    async with Site.open() as site:
        connection = await asyncpg.connect(site.dsn)
        database = await Database.connect(site.dsn, ingest_connections=0, query_connections=1)
        try:
            seconds = Counter("seconds", "unused", registry=CollectorRegistry())
            compactor = Compactor(
                CompactionStore(database),
                idle_s=0,
                throttle=Throttle(time_share_max=1, seconds=seconds),
            )
            warm = await _new_run(connection)
            await _log(connection, warm, 0, _WARM_POINTS)
            await _read_ms(site, warm[0], _WARM_POINTS)
            await connection.execute("TRUNCATE loose_chunks, merged_chunks")

            loose = await _new_run(connection)
            await _log(connection, loose, 0, points)
            await connection.execute("VACUUM ANALYZE loose_chunks")
            loose_bytes = await _bytes(connection)
            loose_ms = await _read_ms(site, loose[0], points)
            await connection.execute("TRUNCATE loose_chunks, merged_chunks")

            compacted = await _new_run(connection)
            compaction_s = 0.0
            for part in range(parts):
                first, last = points * part // parts, points * (part + 1) // parts
                await _log(connection, compacted, first, last)
                ended = part == parts - 1
                await _settle(connection, compacted[0], last, ended=ended)
                began = time.perf_counter()
                await compactor.compact_once()
                await compactor.compact_once()
                compaction_s += time.perf_counter() - began
                await connection.execute("VACUUM loose_chunks, merged_chunks")
            compacted_bytes = await _bytes(connection)
            compacted_ms = await _read_ms(site, compacted[0], points)
        finally:
            await database.close()
            await connection.close()
    return {
        "loose_bytes_per_point": loose_bytes / points,
        "compacted_bytes_per_point": compacted_bytes / points,
        f"read_{size}_points_ms": loose_ms,
        f"read_{size}_points_compacted_ms": compacted_ms,
        "compaction_points_per_s": points / compaction_s,
    }


async def _new_run(connection: asyncpg.Connection) -> tuple[uuid.UUID, int]:
    """Make a run with one series; return both ids."""
    run_id = uuid.uuid4()
    await connection.execute(
        "INSERT INTO runs (run_id, workspace_id, experiment_id, name) VALUES ($1, 0, 0, 'slow')",
        run_id,
    )
    await connection.execute(
        "INSERT INTO writers (run_id, writer_id, writer_no, incarnation, rank, attempt)"
        " OVERRIDING SYSTEM VALUE VALUES ($1, $1, 1, $1, 0, 1)",
        run_id,
    )
    series_id: int = await connection.fetchval(
        "INSERT INTO series (run_id, rank, key) VALUES ($1, 0, 'loss') RETURNING series_id", run_id
    )
    return run_id, series_id


async def _log(
    connection: asyncpg.Connection, run: tuple[uuid.UUID, int], first: int, last: int
) -> None:
    await connection.execute(_LOG, *run, first, last, timeout=120)


async def _settle(
    connection: asyncpg.Connection, run_id: uuid.UUID, committed: int, *, ended: bool
) -> None:
    """Say that the writer has committed so much, and that the run goes on or has ended."""
    await connection.execute(
        "UPDATE writers SET committed_sequence = $2 WHERE run_id = $1", run_id, committed
    )
    await connection.execute(
        "INSERT INTO run_heartbeats (run_id, heartbeat_at) VALUES ($1, now())"
        " ON CONFLICT DO NOTHING",
        run_id,
    )
    if ended:
        await connection.execute(
            "UPDATE runs SET state = 2, ended_at = now() - interval '1 minute' WHERE run_id = $1",
            run_id,
        )


async def _bytes(connection: asyncpg.Connection) -> int:
    found: int = await connection.fetchval(_SIZE)
    return found


async def _read_ms(site: Site, run_id: uuid.UUID, points: int) -> float:
    async with grpc.aio.insecure_channel(site.address) as channel:
        stub = metric_grpc.MetricServiceStub(channel)
        began, count = time.perf_counter(), 0
        async for message in stub.ReadMetrics(pb.ReadMetricsRequest(run_id=run_id.hex)):
            count += len(message.columns.step)
        took_ms = 1_000 * (time.perf_counter() - began)
    assert count == points
    return took_ms
