"""Steps of compaction tests: runs that end, compactors that never wait, exact contents."""

import struct
from collections import Counter
from uuid import UUID

import asyncpg

from gateway.store.compaction import CompactionStore
from gateway.store.connections import Database
from gateway.telemetry import METRICS
from gateway.upkeep.compactor import Compacted, Compactor
from gateway.upkeep.throttle import Throttle

RawPoint = tuple[str, int, int, int, object, bytes]
"""(key, rank, attempt, step, time, the bits of the value)."""


async def end_run(connection: asyncpg.Connection, run_id: UUID) -> None:
    await connection.execute(
        "UPDATE runs SET state = 2, ended_at = now() - interval '1 hour' WHERE run_id = $1", run_id
    )


async def make_live(connection: asyncpg.Connection, run_id: UUID) -> None:
    await connection.execute(
        "INSERT INTO run_heartbeats (run_id, heartbeat_at) VALUES ($1, now())", run_id
    )


async def _at_once(_seconds: float) -> None:
    """Rest not at all."""


def compactor(database: Database, *, idle_s: float = 0.0) -> Compactor:
    throttle = Throttle(time_share_max=1, seconds=METRICS.compaction_seconds, rest=_at_once)
    return Compactor(CompactionStore(database), idle_s=idle_s, throttle=throttle)


async def compact(database: Database) -> Compacted:
    """Look twice: the first settles, the second merges."""
    worker = compactor(database)
    await worker.compact_once()
    return await worker.compact_once()


async def raw_points(connection: asyncpg.Connection, run_id: UUID) -> Counter[RawPoint]:
    """Return every stored point, bit by bit."""
    rows = await connection.fetch(
        "SELECT key, rank, attempt, step, time, value FROM metric_points_raw WHERE run_id = $1",
        run_id,
    )
    return Counter((*tuple(row)[:5], struct.pack(">d", row["value"])) for row in rows)


async def chunk_lengths(connection: asyncpg.Connection, run_id: UUID) -> list[int]:
    """Return the points of each chunk, longest first."""
    rows = await connection.fetch(
        "SELECT length(point_values) / 8 AS points FROM metric_chunks WHERE run_id = $1"
        " ORDER BY 1 DESC",
        run_id,
    )
    return [row["points"] for row in rows]
