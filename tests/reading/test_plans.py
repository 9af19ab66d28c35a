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


def scans(node: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (kind of scan, table) of a plan."""
    found = [(node["Node Type"], node["Relation Name"])] if "Relation Name" in node else []
    return found + [item for child in node.get("Plans", []) for item in scans(child)]


async def plan(
    connection: asyncpg.Connection, query: str, *arguments: object
) -> list[tuple[str, str]]:
    text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query}", *arguments)
    return scans(json.loads(text)[0]["Plan"])


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
