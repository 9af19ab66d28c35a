"""One history, three readers: the view, ReadMetrics and plain Python agree."""

import dataclasses
import datetime
import math
from uuid import UUID

import asyncpg
import hypothesis.strategies as st
import numpy as np
from headrace.v1 import metric_service_pb2 as pb
from hypothesis import HealthCheck, Phase, example, given, settings

from gateway.domain.policies import RankAggregation
from gateway.rpc.metric_read import MetricReadService
from gateway.store import outlines, snapshot
from gateway.store.reading import MetricReading
from tests.reading import naive
from tests.reading.histories import KEYS, Flush, Script, scripts, store
from tests.reading.naive import Row
from tests.reading.reads import read_metrics, rows_of

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MICROSECOND = datetime.timedelta(microseconds=1)
POLICIES = {1: "LAST", 2: "FIRST", 3: "ALL"}
property_test = settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def assert_same(actual: list[Row], expected: list[Row]) -> None:
    assert [row[:5] for row in actual] == [row[:5] for row in expected]
    np.testing.assert_allclose(
        [row[5] for row in actual], [row[5] for row in expected], rtol=1e-12, equal_nan=True
    )


async def read_view(connection: asyncpg.Connection, run_id: UUID) -> list[Row]:
    rows = await connection.fetch(
        'SELECT * FROM metric_points WHERE run_id = $1 ORDER BY key COLLATE "C", rank, step,'
        " attempt, time, value <> 'NaN', value",
        run_id,
    )
    return [
        (
            row["key"],
            row["rank"],
            0,
            row["step"],
            (row["time"] - EPOCH) // MICROSECOND,
            row["value"],
        )
        for row in rows
    ]


@property_test
@given(script=scripts())
async def test_the_view_and_a_read_and_plain_python_agree(
    script: Script, connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run, history = await store(connection, script)
    expected = naive.read(history, policy=POLICIES[script.step_policy])
    assert_same(rows_of(await read_metrics(reading, run.run_id)), expected)
    assert_same(await read_view(connection, run.run_id), expected)


@property_test
@given(
    script=scripts(),
    policy=st.integers(1, 3),
    keys=st.sets(st.sampled_from([*KEYS, "absent"])),
    ranks=st.sets(st.integers(0, 3)),
    first_step=st.one_of(st.none(), st.integers(-10, 40)),
    last_step=st.one_of(st.none(), st.integers(-10, 40)),
    include_hidden=st.booleans(),
    max_points=st.sampled_from([0, 4, 9, 16]),
    aggregation=st.sampled_from([None, "MEAN", "MIN", "MAX", "SUM"]),
)
async def test_every_choice_of_a_read_agrees_with_plain_python(
    *,
    script: Script,
    policy: int,
    keys: set[str],
    ranks: set[int],
    first_step: int | None,
    last_step: int | None,
    include_hidden: bool,
    max_points: int,
    aggregation: str | None,
    connection: asyncpg.Connection,
    reading: MetricReading,
) -> None:
    aggregation = None if policy == 3 else aggregation
    run, history = await store(connection, script)
    expected = naive.read(
        history,
        policy=POLICIES[policy],
        aggregation=aggregation,
        first_step=first_step,
        last_step=last_step,
        keys=keys,
        ranks=ranks,
        include_hidden=include_hidden,
    )
    messages = await read_metrics(
        reading,
        run.run_id,
        step_policy=policy,
        rank_aggregation=RankAggregation[aggregation] if aggregation else 0,
        first_step=first_step,
        last_step=last_step,
        keys=sorted(keys),
        ranks=sorted(ranks),
        include_hidden=include_hidden,
        max_points=max_points,
    )
    assert_same(rows_of(messages), naive.m4(expected, max_points) if max_points else expected)


# Of the chunk with steps 1 and 3 only the 3 is read: its least value, that of 1, must
# not stand for the span, whose least is that of 7.
CUT_CHUNK = Script(
    step_policy=1,
    resume_steps={1: None},
    exempt_keys=[],
    flushes=[
        Flush(
            rank=0,
            attempt=1,
            process=0,
            chunk_points=2,
            points=[
                ("a", 1 + 2 * i, 1_000 + i, value)
                for i, value in enumerate([-9.0, 1.0, 2.0, -3.0, *[float(n) for n in range(30)]])
            ],
        )
    ],
)


@property_test
@given(
    script=scripts(),
    max_points=st.sampled_from([4, 8, 20]),
    first_step=st.one_of(st.none(), st.integers(-10, 40)),
)
@example(script=CUT_CHUNK, max_points=4, first_step=3)
async def test_choosing_chunks_by_their_outlines_changes_nothing(
    script: Script,
    max_points: int,
    first_step: int | None,
    connection: asyncpg.Connection,
    reading: MetricReading,
) -> None:
    outlined, snapshot._OUTLINED_CHUNKS_MIN = snapshot._OUTLINED_CHUNKS_MIN, 1  # type: ignore[misc]
    share, outlines._SHARE_MAX = outlines._SHARE_MAX, 1.0  # type: ignore[misc]
    try:
        flushes = [dataclasses.replace(flush, chunk_points=2) for flush in script.flushes]
        run, history = await store(connection, dataclasses.replace(script, flushes=flushes))
        expected = naive.read(history, policy="LAST", first_step=first_step)
        messages = await read_metrics(
            reading, run.run_id, step_policy=1, first_step=first_step, max_points=max_points
        )
    finally:
        snapshot._OUTLINED_CHUNKS_MIN = outlined  # type: ignore[misc]
        outlines._SHARE_MAX = share  # type: ignore[misc]
    assert_same(rows_of(messages), naive.m4(expected, max_points))


@property_test
@given(script=scripts())
async def test_list_series_summarises_exactly_the_visible_points(
    script: Script, connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run, history = await store(connection, script)
    response = await MetricReadService(reading).list_series(
        pb.ListSeriesRequest(run_id=run.run_id.hex), None
    )
    expected = naive.summaries(history)
    names = [(series.key, series.rank) for series in response.series]
    assert names == sorted(expected, key=lambda name: (name[0].encode(), name[1]))
    for series in response.series:
        summary = expected[series.key, series.rank]
        assert series.point_count == summary.point_count
        assert (series.last_step, series.last_time_unix_us) == summary.last[:2]
        for actual, wanted in (
            (series.last_value, summary.last[2]),
            (series.min_value, summary.min_value),
            (series.max_value, summary.max_value),
        ):
            assert actual == wanted or (math.isnan(actual) and math.isnan(wanted))
