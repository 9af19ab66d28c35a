"""What searches know of a run is what plain Python makes of its points."""

import math

import asyncpg
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings

from gateway.store.run_metrics import refresh_run_metrics
from tests.reading import naive
from tests.reading.histories import Flush, Script, scripts, store
from tests.support.chunks import StoredRun

Row = tuple[str, int, int, int, int, float, float, float]
"""(key, rank, points, last step, last time, last, least and greatest value)."""


async def stored_rows(connection: asyncpg.Connection, run: StoredRun) -> list[Row]:
    rows = await connection.fetch(
        "SELECT key, rank, point_count, last_step, last_time, last_value, min_value, max_value"
        " FROM run_metrics WHERE run_id = $1 ORDER BY key",
        run.run_id,
    )
    return [tuple(row) for row in rows]


def rows_of(history: naive.History) -> list[Row]:
    """Return of each key the lowest rank that has visible points."""
    lowest: dict[str, Row] = {}
    for (key, rank), seen in sorted(naive.summaries(history).items(), key=lambda item: item[0]):
        if seen.point_count and key not in lowest:
            step, time_us, value = seen.last
            lowest[key] = (
                *(key, rank, seen.point_count, step, time_us, value),
                *(seen.min_value, seen.max_value),
            )
    return sorted(lowest.values(), key=lambda row: row[0].encode())


def assert_same(actual: list[Row], expected: list[Row]) -> None:
    assert [row[:5] for row in actual] == [row[:5] for row in expected]
    np.testing.assert_array_equal(
        [row[5:] for row in actual], [row[5:] for row in expected], strict=True
    )


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=scripts())
async def test_a_refresh_says_of_each_key_what_its_lowest_visible_rank_shows(
    script: Script, connection: asyncpg.Connection
) -> None:
    run, history = await store(connection, script)
    for _ in range(2):  # the second finds everything as it is
        await refresh_run_metrics(connection, [run.run_id])
        assert_same(await stored_rows(connection, run), rows_of(history))


async def test_where_the_lower_ranks_are_hidden_the_next_one_counts(
    connection: asyncpg.Connection,
) -> None:
    """Until the resumed attempt has logged a key, only chunks tell which ranks still show."""
    flushes = [
        Flush(rank=rank, attempt=1, process=0, chunk_points=2, points=points)
        for rank, points in enumerate(
            [
                [("a", 7, 7, 7.0), ("b", 8, 8, math.nan)],
                [("a", 9, 9, 9.0)],
                [("a", step, step, float(step)) for step in (1, 3, 5, 9, 11)],
                [("a", 2, 2, 2.0)],
            ]
        )
    ]
    flushes.append(Flush(rank=5, attempt=2, process=0, chunk_points=2, points=[("b", 8, 8, 1.0)]))
    script = Script(step_policy=1, resume_steps={1: None, 2: 6}, exempt_keys=[], flushes=flushes)
    run, history = await store(connection, script)
    await refresh_run_metrics(connection, [run.run_id])
    found = await stored_rows(connection, run)
    assert_same(found, rows_of(history))
    assert [(row[0], row[1], row[2]) for row in found] == [("a", 2, 3), ("b", 5, 1)]


async def test_what_a_resume_step_hides_goes(connection: asyncpg.Connection) -> None:
    run = await StoredRun.create(connection)
    writer = await run.writer()
    points = [("a", step, step, float(step)) for step in range(10)]
    await run.commit(writer, [*points, ("b", 9, 9, 1.0)])
    await refresh_run_metrics(connection, [run.run_id])
    await run.attempt(2, resume_step=4)
    await refresh_run_metrics(connection, [run.run_id])
    assert await stored_rows(connection, run) == [("a", 0, 4, 3, 3, 3.0, 0.0, 3.0)]
