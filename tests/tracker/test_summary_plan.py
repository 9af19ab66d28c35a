"""A run's summary is refreshed at a cost that grows with its keys, not with their square."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import asyncpg

from gateway.store.queries import load
from tests.conftest import NewDatabase

WIDE_KEYS, NARROW_KEYS, NARROW_RUNS = 4_800, 20, 400

_RUN = """
INSERT INTO runs (run_id, workspace_id, experiment_id, name) VALUES ($1, 0, 0, 'run')
"""
_WRITER = """
INSERT INTO writers (run_id, writer_id, incarnation, rank, attempt) VALUES ($1, $1, $1, 0, 1)
RETURNING writer_no
"""
_SERIES = """
INSERT INTO series (run_id, rank, key) SELECT $1, 0, 'key ' || n FROM generate_series(1, $2) n
"""
_BLOCKS = """
INSERT INTO writer_summaries (run_id, writer_no, block, series_ids, point_counts, last_steps,
    last_times, last_values, min_values, max_values)
SELECT run_id, $2, block, array_agg(series_id), array_agg(1), array_agg(1), array_agg(1),
    array_agg(0.5), array_agg(0.5), array_agg(0.5)
FROM (
    SELECT run_id, series_id, (row_number() OVER (ORDER BY series_id) - 1) / 24 AS block
    FROM series WHERE run_id = $1
) AS numbered
GROUP BY run_id, block
"""


async def _run(connection: asyncpg.Connection, keys: int) -> uuid.UUID:
    run_id = uuid.uuid4()
    await connection.execute(_RUN, run_id)
    writer_no = await connection.fetchval(_WRITER, run_id)
    await connection.execute(_SERIES, run_id, keys)
    await connection.execute(_BLOCKS, run_id, writer_no)
    return run_id


async def test_a_wide_run_among_narrow_ones_reads_each_of_its_series_once(
    new_database: NewDatabase,
) -> None:
    with new_database() as dsn:
        connection = await asyncpg.connect(dsn)
        try:
            for _ in range(NARROW_RUNS):
                await _run(connection, NARROW_KEYS)
            await connection.execute("ANALYZE")  # which takes every run for narrow
            wide = await _run(connection, WIDE_KEYS)
            plan = json.loads(
                await connection.fetchval(
                    "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + load("run_metrics")["refresh"],
                    [wide],
                )
            )
            stored = await connection.fetchval(
                "SELECT count(*) FROM run_metrics WHERE run_id = $1", wide
            )
        finally:
            await connection.close()
    assert stored == WIDE_KEYS
    read = sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for node in _nodes(plan[0]["Plan"])
        if node.get("Relation Name") == "series"
    )
    assert read <= 2 * WIDE_KEYS, plan


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)
