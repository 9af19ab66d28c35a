"""What PostgreSQL takes without a gateway: rows of points by COPY and by executemany.

The baselines that the gateway is compared with, made as fast as one client can
make them: the binary COPY rows are built by numpy before the clock starts and
sorted by the index, one transaction holds all of a round, and the tables are
empty when it begins. One connection gives the figures that the ratios use; two
connections are measured too, where they do better. Row layout: run uuid,
series bigint, step bigint, time timestamptz, value float8.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

import asyncpg
import numpy as np
from numpy.typing import NDArray

from benchmarks.load import Load
from benchmarks.site import Site

TABLES: Final = {"unindexed": "copy_rows_unindexed", "indexed": "copy_rows_indexed"}
EXECUTEMANY_POINTS: Final = 100_000
"""Rows of an executemany round: about a second."""

_PIECE_BYTES: Final = 512 * 1024
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000
"""2000-01-01 in microseconds since 1970: where timestamptz counts from."""

_ROW: Final = np.dtype(
    [
        ("field_count", ">i2"),
        ("run_bytes", ">i4"),
        ("run", "V16"),
        ("series_bytes", ">i4"),
        ("series", ">i8"),
        ("step_bytes", ">i4"),
        ("step", ">i8"),
        ("time_bytes", ">i4"),
        ("time", ">i8"),
        ("value_bytes", ">i4"),
        ("value", ">f8"),
    ]
)


async def prepare(connection: asyncpg.Connection) -> None:
    """Create the baseline tables, empty."""
    columns = (
        "run_id uuid NOT NULL, series_id bigint NOT NULL, step bigint NOT NULL, "
        "time timestamptz NOT NULL, value float8 NOT NULL"
    )
    for name in TABLES.values():
        await connection.execute(f"DROP TABLE IF EXISTS {name}")
    await connection.execute(f"CREATE TABLE {TABLES['unindexed']} ({columns})")
    await connection.execute(
        f"CREATE TABLE {TABLES['indexed']} ({columns}, PRIMARY KEY (run_id, series_id, step))"
    )


def copy_rows(load: Load) -> NDArray[np.void]:
    """Return every point of a round as one binary COPY row, sorted by (run, series, step).

    Returns:
        Records of 70 bytes, shape (load.copy_points,).
    """
    parts = []
    for stream in range(load.streams):
        columns = load.plan(stream).columns(1, load.copy_steps)
        rows = np.zeros(len(columns), dtype=_ROW)
        rows["field_count"] = 5
        rows["run_bytes"] = 16
        for name in ("series", "step", "time", "value"):
            rows[f"{name}_bytes"] = 8
        run = uuid.UUID(int=(0xC0 << 120) + stream).bytes  # ascending, as the rows are
        rows["run"] = np.frombuffer(run, dtype="V16")[0]
        rows["series"] = columns.series_index.astype(np.int64) + stream * load.series + 1
        rows["step"] = columns.step
        rows["time"] = columns.time_us - _POSTGRES_EPOCH_US
        rows["value"] = columns.value
        parts.append(rows[np.lexsort((columns.step, columns.series_index))])
    return np.concatenate(parts, dtype=_ROW)  # without dtype: native byte order


async def _pieces(rows: NDArray[np.void]) -> AsyncIterator[bytes | memoryview]:
    view = rows.view(np.uint8).data
    yield _HEADER
    for start in range(0, len(view), _PIECE_BYTES):
        yield view[start : start + _PIECE_BYTES]
    yield _TRAILER


async def _copy(connections: list[asyncpg.Connection], table: str, rows: NDArray[np.void]) -> float:
    """Copy the rows over the connections, an equal part each; return points/s."""
    await connections[0].execute(f"TRUNCATE {table}")
    await connections[0].execute("CHECKPOINT")
    parts = np.array_split(rows, len(connections))
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for connection, part in zip(connections, parts, strict=True):
            group.create_task(
                connection.copy_to_table(table, source=_pieces(part), format="binary")
            )
    elapsed_s = time.perf_counter() - started
    stored = await connections[0].fetchval(f"SELECT count(*) FROM {table}")
    if stored != len(rows):
        raise RuntimeError(f"{table} holds {stored} of {len(rows)} rows")
    return len(rows) / elapsed_s


async def measure_copy(site: Site, load: Load) -> dict[str, float]:
    """Measure one round of COPY into both tables: points/s, and bytes/point stored."""
    rows = copy_rows(load)
    connections = [await asyncpg.connect(site.dsn) for _ in range(2)]
    try:
        await prepare(connections[0])
        figures: dict[str, float] = {}
        for label, table in TABLES.items():
            if not load.brief:
                two = await _copy(connections, table, rows)
                figures[f"copy_rows_{label}_2_connections_points_per_s"] = two
            one = await _copy(connections[:1], table, rows)
            size_bytes = await connections[0].fetchval(
                "SELECT pg_total_relation_size($1::regclass)", table
            )
            figures |= {
                f"copy_rows_{label}_points_per_s": one,
                f"copy_rows_{label}_bytes_per_point": size_bytes / len(rows),
            }
            await connections[0].execute(f"TRUNCATE {table}")
        return figures
    finally:
        for connection in connections:
            await connection.close()


async def measure_executemany(site: Site, load: Load) -> dict[str, float]:
    """Measure one round of asyncpg's executemany into the indexed table, one transaction."""
    columns = load.plan(0).columns(1, EXECUTEMANY_POINTS // load.series)
    run = uuid.UUID(int=0xC0 << 120)
    rows = [
        (run, series, step, datetime.fromtimestamp(time_us / 1e6, UTC), value)
        for series, step, time_us, value in zip(
            columns.series_index.tolist(),
            columns.step.tolist(),
            columns.time_us.tolist(),
            columns.value.tolist(),
            strict=True,
        )
    ]
    connection = await asyncpg.connect(site.dsn)
    try:
        await prepare(connection)
        started = time.perf_counter()
        await connection.executemany(
            f"INSERT INTO {TABLES['indexed']} VALUES ($1, $2, $3, $4, $5)", rows
        )
        return {"executemany_points_per_s": len(rows) / (time.perf_counter() - started)}
    finally:
        await connection.close()
