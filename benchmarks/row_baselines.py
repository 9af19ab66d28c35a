"""Other ways to put rows into PostgreSQL: asyncpg's own COPY, and staging with ON CONFLICT.

The same points, table layout and server as `benchmarks.copy_baselines`; these
are what a program writes before it builds binary rows by hand. Points are
Python tuples that exist before the clock starts.
"""

import time
import uuid
from datetime import UTC, datetime
from typing import Final

import asyncpg

from benchmarks.copy_baselines import TABLES, prepare
from benchmarks.load import Load
from benchmarks.site import Site

POINTS: Final = 400_000
COLUMNS: Final = ("run_id", "series_id", "step", "time", "value")
Row = tuple[uuid.UUID, int, int, datetime, float]


async def measure_rows(site: Site, load: Load) -> dict[str, float]:
    """Measure `copy_records_to_table` into both tables, and staging + ON CONFLICT: points/s."""
    rows = _rows(load)
    connection = await asyncpg.connect(site.dsn)
    try:
        await prepare(connection)
        figures = {}
        for label, table in TABLES.items():
            started = time.perf_counter()
            await connection.copy_records_to_table(table, records=rows, columns=COLUMNS)
            figures[f"copy_records_{label}_points_per_s"] = POINTS / (time.perf_counter() - started)
        await connection.execute(f"TRUNCATE {TABLES['indexed']}")
        started = time.perf_counter()
        async with connection.transaction():
            await connection.execute(
                f"CREATE TEMPORARY TABLE staging (LIKE {TABLES['indexed']}) ON COMMIT DROP"
            )
            await connection.copy_records_to_table("staging", records=rows, columns=COLUMNS)
            await connection.execute(
                f"INSERT INTO {TABLES['indexed']} SELECT * FROM staging ON CONFLICT DO NOTHING"
            )
        figures["staging_on_conflict_points_per_s"] = POINTS / (time.perf_counter() - started)
        stored = await connection.fetchval(f"SELECT count(*) FROM {TABLES['indexed']}")
        if stored != POINTS:
            raise RuntimeError(f"{stored} of {POINTS} rows are stored")
        await connection.execute(f"TRUNCATE {TABLES['indexed']}, {TABLES['unindexed']}")
        return figures
    finally:
        await connection.close()


def _rows(load: Load) -> list[Row]:
    rows: list[Row] = []
    steps = POINTS // (load.streams * load.series) + 1
    for stream in range(load.streams):
        columns = load.plan(stream).columns(1, steps)
        run = uuid.UUID(int=(0xC0 << 120) + stream)
        rows += [
            (run, series, step, datetime.fromtimestamp(time_us / 1e6, UTC), value)
            for series, step, time_us, value in zip(
                columns.series_index.tolist(),
                columns.step.tolist(),
                columns.time_us.tolist(),
                columns.value.tolist(),
                strict=True,
            )
        ]
    return rows[:POINTS]
