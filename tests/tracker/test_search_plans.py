"""Typical searches stay on their indexes: their cost grows with the page, not with the runs."""

from collections.abc import Iterator

import asyncpg
import pytest

from benchmarks.tracker_data import make_runs
from gateway.domain.filters.parsing import parse_filter, parse_order
from gateway.store.queries import load
from gateway.store.search import RUN_ATTRIBUTES
from gateway.store.search_sql import RUNS, Compiler, compile_page, phases
from tests.conftest import NewDatabase, run_apart

RUN_COUNT = 8_000


@pytest.fixture(scope="module")
def many_runs(new_database: NewDatabase) -> Iterator[str]:
    with new_database() as dsn:
        run_apart(make_runs(dsn, RUN_COUNT))
        yield dsn


async def plan_of(dsn: str, text: str, order: str) -> str:
    connection = await asyncpg.connect(dsn)
    await connection.execute("SET plan_cache_mode = force_custom_plan")
    terms = parse_order([order], attributes=RUN_ATTRIBUTES)
    compiler = Compiler(target=RUNS, experiment_ids=[1000])
    statement = compile_page(
        compiler,
        restriction="r.purged_at IS NULL AND r.deleted_at IS NULL",
        expression=parse_filter(text, attributes=RUN_ATTRIBUTES),
        order=terms,
        phase=phases(terms)[0],
        after=None,
        limit=101,
    )
    rows = await connection.fetch("EXPLAIN (ANALYZE, BUFFERS) " + statement, *compiler.arguments)
    await connection.close()
    return "\n".join(row[0] for row in rows)


@pytest.mark.parametrize(
    ("text", "order", "index"),
    [
        ("", "start_time DESC", "runs_by_start"),
        ("metrics.m3 > 0.4 AND params.p0 = 'xgboost'", "start_time DESC", "runs_by_start"),
        ("params.p3 = '7'", "start_time DESC", "run_params_by_value"),
        ("params.p4 IN ('7', '8')", "metrics.m1", "run_params_by_value"),
        ("tags.t1 = '7'", "start_time DESC", "run_tags_by_value"),
        ("metrics.m3 > 0.9999", "start_time DESC", "run_metrics_by_last"),
        ("", "metrics.m3 DESC", "run_metrics_by_last"),
        ("", "params.p1 ASC", "run_params_by_value"),
        ("", "params.p9 DESC", "run_params_by_value"),
        ("", "tags.t1 ASC", "run_tags_by_value"),
        ("params.p0 = 'bert'", "metrics.m3.min ASC", "run_metrics_by_min"),
        ("", "metrics.m3.max DESC", "run_metrics_by_max"),
    ],
)
async def test_a_typical_search_reads_by_its_index(
    many_runs: str, text: str, order: str, index: str
) -> None:
    plan = await plan_of(many_runs, text, order)
    assert index in plan, plan
    for table in ("runs r", "run_params", "run_tags", "run_metrics"):
        assert f"Seq Scan on {table}" not in plan, plan


async def test_metrics_may_be_indexed_because_no_flush_touches_them() -> None:
    # What a flush updates has no index on anything that moves: updates stay heap-only.
    flush = load("metrics")
    for name in ("advance_writers", "store_summaries", "touch_runs"):
        assert "run_metrics" not in flush[name]
