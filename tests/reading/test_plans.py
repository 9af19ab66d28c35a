"""A predicate on the run reaches the indexes: no query reads the points of other runs."""

import json
import re
from typing import Any

import asyncpg
import pytest

from gateway.domain.limits import STEP_MAX, STEP_MIN
from gateway.store.queries import load
from tests.support.chunks import StoredRun

_SQL = load("reading")


@pytest.fixture
async def run(connection: asyncpg.Connection) -> StoredRun:
    """One of many runs, so that a scan of a whole table would cost."""
    for _ in range(30):
        run = await StoredRun.create(connection)
        writer = await run.writer()
        points = [(key, step, step, 1.0) for key in ("a", "b", "c") for step in range(200)]
        await run.commit(writer, points, chunk_points=2)
    await connection.execute(
        "WITH merged AS (DELETE FROM loose_chunks WHERE first_step % 4 = 0 RETURNING *)"
        " INSERT INTO merged_chunks SELECT * FROM merged"
    )
    await connection.execute(
        "INSERT INTO series (run_id, rank, key)"
        " SELECT gen_random_uuid(), 0, 'x' FROM generate_series(1, 20000)"
    )
    await connection.execute("ANALYZE")
    return run


def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all nodes of a plan."""
    return [node, *(found for child in node.get("Plans", []) for found in nodes(child))]


async def explain(
    connection: asyncpg.Connection, query: str, *arguments: object, options: str = ""
) -> list[dict[str, Any]]:
    text = await connection.fetchval(f"EXPLAIN (FORMAT JSON {options}) {query}", *arguments)
    return nodes(json.loads(text)[0]["Plan"])


async def plan(
    connection: asyncpg.Connection, query: str, *arguments: object
) -> list[tuple[str, str]]:
    """Return (kind of scan, table) of a plan."""
    found = await explain(connection, query, *arguments)
    return [(node["Node Type"], node["Relation Name"]) for node in found if "Relation Name" in node]


def assert_by_index(found: list[tuple[str, str]], *tables: str) -> None:
    assert {table for _, table in found} >= set(tables)
    for kind, table in found:
        if table in {"loose_chunks", "merged_chunks", "series", "writer_summaries"}:
            assert "Index" in kind or "Bitmap" in kind, (kind, table)


@pytest.mark.parametrize("view", ["metric_points", "metric_points_raw"])
async def test_points_of_a_run_and_key_are_found_by_index(
    view: str, connection: asyncpg.Connection, run: StoredRun
) -> None:
    query = f"SELECT * FROM {view} WHERE run_id = $1 AND key = $2"
    found = await plan(connection, query, run.run_id, "a")
    assert_by_index(found, "loose_chunks", "merged_chunks", "series")


@pytest.mark.parametrize("view", ["metric_points", "metric_points_raw"])
async def test_points_of_a_run_are_found_by_index(
    view: str, connection: asyncpg.Connection, run: StoredRun
) -> None:
    found = await plan(connection, f"SELECT * FROM {view} WHERE run_id = $1", run.run_id)
    assert_by_index(found, "loose_chunks", "merged_chunks")


async def test_summaries_of_a_run_are_found_by_index(
    connection: asyncpg.Connection, run: StoredRun
) -> None:
    await connection.execute("SET enable_seqscan = off")  # two blocks a run: a scan is cheap
    query = "SELECT * FROM metric_summaries WHERE run_id = $1 AND key = $2"
    assert_by_index(await plan(connection, query, run.run_id, "a"), "writer_summaries", "series")


async def test_every_query_of_a_read_finds_its_chunks_by_index(
    connection: asyncpg.Connection, run: StoredRun
) -> None:
    ids = list(run.series.values())
    groups, ranks, bounds = [0, 1, 2], [0, 0, 0], (STEP_MIN, STEP_MAX)
    arguments: dict[str, tuple[object, ...]] = {
        "extents": (run.run_id, ids, groups, [False] * 3, *bounds, [1], [5], False),
        "chunks_by_series": (run.run_id, ids, groups, ranks, *bounds),
        "chunks_by_group": (run.run_id, ids, groups, ranks, *bounds, False),
        "chunk_outlines": (run.run_id, ids[0], *bounds),
        "chunks_at_steps": (run.run_id, ids[0], 0, 0, [1, 5, 9]),
        "chunks_since": (run.run_id, ids, groups, ranks, [1] * 3, [0] * 3, [5] * 3, [9] * 3),
        "cut_summaries": (run.run_id, ids, [1] * 3, [9] * 3),
    }
    chunk_queries = {
        name for name, text in _SQL.items() if re.search(r"\b(metric|loose|merged)_chunks\b", text)
    }
    assert chunk_queries == set(arguments)
    for name, values in arguments.items():
        found = await plan(connection, _SQL[name].rstrip(";"), *values)
        merged = () if name == "chunks_since" else ("merged_chunks",)
        assert_by_index(found, "loose_chunks", *merged)


@pytest.mark.parametrize("name", ["chunks_by_series", "chunks_by_group", "chunk_outlines"])
async def test_the_newest_steps_are_found_without_fetching_the_older_chunks(
    name: str, connection: asyncpg.Connection, run: StoredRun
) -> None:
    ids, bounds = list(run.series.values()), (197, STEP_MAX)  # of 200 steps
    arguments: dict[str, tuple[object, ...]] = {
        "chunks_by_series": (run.run_id, ids, [0, 1, 2], [0] * 3, *bounds),
        "chunks_by_group": (run.run_id, ids, [0, 1, 2], [0] * 3, *bounds, True),
        "chunk_outlines": (run.run_id, ids[0], *bounds),
    }
    query = _SQL[name].rstrip(";")
    found = await explain(connection, query, *arguments[name], options=", ANALYZE")
    chunks = [node for node in found if node.get("Relation Name", "").endswith("_chunks")]
    assert {node["Relation Name"] for node in chunks} == {"loose_chunks", "merged_chunks"}
    for node in chunks:
        assert not node.get("Rows Removed by Filter"), node
        assert node["Actual Rows"] <= 1, node  # a loop: 196 to 197 and 198 to 199
    series = 1 if name == "chunk_outlines" else 3
    assert found[0]["Actual Rows"] * found[0]["Actual Loops"] == 2 * series


@pytest.mark.parametrize("apart", [False, True])
async def test_chunks_are_sorted_a_group_at_a_time_and_in_memory(
    apart: bool, connection: asyncpg.Connection, run: StoredRun
) -> None:
    """Whatever a page holds: all its chunks at once would go by the database's disk."""
    writer = await run.writer(attempt=2)
    keys = [f"k{number:02}" for number in range(60)]
    points = [(key, step, step, 1.0) for key in keys for step in range(20 * 100)]
    await run.commit(writer, points)  # 30 kB a key, 1.8 MB in all
    await connection.execute("ANALYZE")
    await connection.execute("SET work_mem = '256kB'")
    ids = [run.series[key, 0] for key in keys]
    arguments = (run.run_id, ids, [n // 2 for n in range(60)], [0] * 60, STEP_MIN, STEP_MAX, apart)
    query = _SQL["chunks_by_group"].rstrip(";")
    found = await explain(connection, query, *arguments, options=", ANALYZE, BUFFERS")
    assert found[0]["Actual Rows"] == 60 * 20
    assert found[0]["Temp Written Blocks"] == 0


async def test_compaction_takes_chunks_out_by_their_places(
    connection: asyncpg.Connection, run: StoredRun
) -> None:
    """By the index it would look at every chunk of a series for each batch of them."""
    series = list(run.series.values())
    arguments = (run.run_id, series, [1] * len(series), [0] * len(series), 79, 2_048)
    query = load("compaction")["take_loose"].rstrip(";")
    found = await plan(connection, query, *arguments)
    chunks = [kind for kind, table in found if table == "loose_chunks"]
    assert chunks == ["ModifyTable", "Index Scan", "Tid Scan"], found
