"""A run's summary is refreshed at a cost that grows with its keys, not with their square."""

import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg

from gateway.store.queries import load
from gateway.store.run_metrics import refresh_run_metrics
from tests.conftest import NewDatabase

WIDE_KEYS, NARROW_KEYS, NARROW_RUNS = 4_800, 20, 400
RESUMED_KEYS = 5_000

_RUN = """
INSERT INTO runs (run_id, workspace_id, experiment_id, name) VALUES ($1, 0, 0, 'run')
"""
_WRITER = """
INSERT INTO writers (run_id, writer_id, incarnation, rank, attempt)
VALUES ($1, gen_random_uuid(), $1, 0, $2)
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


# Three chunks of each series, and in each two points: at steps 1 and 2, 3 and 4, 5 and 6.
_CHUNKS = """
INSERT INTO loose_chunks (run_id, series_id, writer_no, last_sequence, first_step, last_step,
    first_time, min_value, max_value, attempt, time_offsets, point_values)
SELECT run_id, series_id, $2, 1, step, step + 1, 1, 0.5, 0.5, 1, int4send(0) || int4send(0),
    float8send(0.5) || float8send(0.5)
FROM series, unnest(ARRAY[1, 3, 5]) AS step
WHERE run_id = $1
"""
_LAST_STEPS = """
UPDATE writer_summaries
SET last_steps = array_fill($2::bigint, ARRAY[cardinality(series_ids)])
WHERE run_id = $1
RETURNING writer_no
"""


async def _run(connection: asyncpg.Connection, keys: int) -> uuid.UUID:
    run_id = uuid.uuid4()
    await connection.execute(_RUN, run_id)
    writer_no = await connection.fetchval(_WRITER, run_id, 1)
    await connection.execute(_SERIES, run_id, keys)
    await connection.execute(_BLOCKS, run_id, writer_no)
    return run_id


@contextlib.asynccontextmanager
async def among_narrow_runs(new_database: NewDatabase) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a database whose statistics take every run for narrow."""
    with new_database() as dsn:
        connection = await asyncpg.connect(dsn)
        try:
            for _ in range(NARROW_RUNS):
                await _run(connection, NARROW_KEYS)
            await connection.execute("ANALYZE")
            yield connection
        finally:
            await connection.close()


async def test_a_wide_run_among_narrow_ones_reads_each_of_its_series_once(
    new_database: NewDatabase,
) -> None:
    async with among_narrow_runs(new_database) as connection:
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
    assert stored == WIDE_KEYS
    read = sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for node in _nodes(plan[0]["Plan"])
        if node.get("Relation Name") == "series"
    )
    assert read <= 2 * WIDE_KEYS, plan


async def test_a_resumed_run_is_refreshed_at_a_cost_that_is_linear_in_its_series(
    new_database: NewDatabase,
) -> None:
    async with among_narrow_runs(new_database) as connection:
        resumed = await _run(connection, RESUMED_KEYS)
        first = await connection.fetchval(_LAST_STEPS, resumed, 6)
        await connection.execute(_CHUNKS, resumed, first)
        await connection.execute("INSERT INTO attempts VALUES ($1, 1, NULL), ($1, 2, 4)", resumed)
        second = await connection.fetchval(_WRITER, resumed, 2)
        await connection.execute(_BLOCKS, resumed, second)
        nodes = await _nodes_of_refresh(connection, resumed)
        stored = await connection.fetch(
            "SELECT point_count, last_step, count(*) FROM run_metrics WHERE run_id = $1"
            " GROUP BY 1, 2",
            resumed,
        )
    # Of the first attempt steps 1 to 3, of the second one point.
    assert [tuple(row) for row in stored] == [(4, 3, RESUMED_KEYS)]

    def rows(kind: str) -> int:
        return sum(
            node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
            for node in nodes
            if kind in (node.get("Relation Name"), node["Node Type"])
            and node.get("Function Name") != "generate_series"  # of the points of one chunk
        )

    assert rows("series") <= 2 * 2 * RESUMED_KEYS
    # Its chunks are walked once, and the last one is looked up.
    assert rows("loose_chunks") <= 3 * RESUMED_KEYS
    # The series of both attempts; for those cut, their names; one row of each for the table.
    assert rows("Function Scan") <= (2 + 1 + 1) * RESUMED_KEYS + 100


async def _nodes_of_refresh(
    connection: asyncpg.Connection, run_id: uuid.UUID
) -> list[dict[str, Any]]:
    """Refresh a run, explain all that was asked for it, and return the plans' nodes."""
    asked: list[tuple[str, Any]] = []
    with connection.query_logger(lambda record: asked.append((record.query, record.args))):
        await refresh_run_metrics(connection, [run_id])
    nodes = []
    for query, arguments in asked:
        text = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *arguments)
        nodes += list(_nodes(json.loads(text)[0]["Plan"]))
    return nodes


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)
