"""Each bad request fails with a reason that names field, value and limit."""

import uuid
from typing import Any

import asyncpg
import pytest
from headrace.v1 import metric_service_pb2 as pb

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.identity import Identity, set_identity
from gateway.rpc.metric_read import MetricReadService, read_query, series_query
from gateway.store.reading import MetricReading
from tests.reading.reads import read_metrics
from tests.support.chunks import StoredRun

RUN = uuid.uuid4().hex


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"run_id": ""}, Reason.FIELD_REQUIRED, "run_id"),
        ({"run_id": "xyz"}, Reason.FIELD_INVALID, "run_id"),
        ({"keys": ["k"] * 10_001}, Reason.LIMIT_EXCEEDED, "keys"),
        ({"keys": [""]}, Reason.FIELD_INVALID, "keys"),
        ({"keys": ["k" * 251]}, Reason.FIELD_INVALID, "keys"),
        ({"keys": ["a\0b"]}, Reason.FIELD_INVALID, "keys"),
        ({"ranks": [-1]}, Reason.FIELD_INVALID, "ranks"),
        ({"rank_aggregation": 9}, Reason.FIELD_INVALID, "rank_aggregation"),
        ({"step_policy": 4}, Reason.FIELD_INVALID, "step_policy"),
        ({"max_points": 1}, Reason.FIELD_INVALID, "max_points"),
        ({"max_points": 3}, Reason.FIELD_INVALID, "max_points"),
        ({"max_points": 8, "follow": True}, Reason.FIELD_INVALID, "max_points"),
        ({"rank_aggregation": 1, "follow": True}, Reason.FIELD_INVALID, "rank_aggregation"),
        ({"rank_aggregation": 1, "step_policy": 3}, Reason.FIELD_INVALID, "rank_aggregation"),
    ],
)
def test_a_bad_read_is_refused(fields: dict[str, Any], reason: Reason, field: str) -> None:
    request = pb.ReadMetricsRequest(**{"run_id": RUN, **fields})
    with pytest.raises(HeadraceError) as refused:
        read_query(request, workspace_id=0)
    assert refused.value.reason is reason
    assert refused.value.metadata["field"] == field


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"run_id": ""}, Reason.FIELD_REQUIRED, "run_id"),
        ({"page_size": -1}, Reason.FIELD_INVALID, "page_size"),
        ({"key_prefix": "k" * 251}, Reason.FIELD_INVALID, "key_prefix"),
        ({"key_prefix": "\0"}, Reason.FIELD_INVALID, "key_prefix"),
        ({"page_token": "x"}, Reason.PAGE_TOKEN_INVALID, "page_token"),
    ],
)
def test_a_bad_listing_is_refused(fields: dict[str, Any], reason: Reason, field: str) -> None:
    request = pb.ListSeriesRequest(**{"run_id": RUN, **fields})
    with pytest.raises(HeadraceError) as refused:
        series_query(request, workspace_id=0)
    assert refused.value.reason is reason
    assert refused.value.metadata["field"] == field


def test_page_sizes_above_the_maximum_are_taken_as_the_maximum() -> None:
    sizes = {0: 1_000, 10_000: 10_000, 2_000_000_000: 10_000}
    for asked, given in sizes.items():
        request = pb.ListSeriesRequest(run_id=RUN, page_size=asked)
        assert series_query(request, workspace_id=0).limit == given


async def test_runs_that_are_absent_foreign_or_purged_are_not_read(
    connection: asyncpg.Connection, reading: MetricReading
) -> None:
    service = MetricReadService(reading)
    foreign = await StoredRun.create(connection)
    purged = await StoredRun.create(connection)
    await connection.execute("UPDATE runs SET purged_at = now() WHERE run_id = $1", purged.run_id)
    set_identity(Identity(workspace_id=0, name="somebody", can_write=False))
    await connection.execute("INSERT INTO workspaces (workspace_id, name) VALUES (7, 'other')")
    await connection.execute("UPDATE runs SET workspace_id = 7 WHERE run_id = $1", foreign.run_id)
    for run_id, reason in (
        (uuid.uuid4(), Reason.RUN_NOT_FOUND),
        (foreign.run_id, Reason.RUN_NOT_FOUND),
        (purged.run_id, Reason.RUN_PURGED),
    ):
        with pytest.raises(HeadraceError) as refused:
            await read_metrics(reading, run_id)
        assert refused.value.reason is reason
        with pytest.raises(HeadraceError) as refused:
            await service.list_series(pb.ListSeriesRequest(run_id=run_id.hex), None)
        assert refused.value.reason is reason


async def test_aggregating_a_run_whose_policy_is_all_asks_for_another_policy(
    connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run = await StoredRun.create(connection, step_policy=3)
    with pytest.raises(HeadraceError) as refused:
        await read_metrics(reading, run.run_id, rank_aggregation=1)
    assert refused.value.metadata["field"] == "step_policy"
    assert await read_metrics(reading, run.run_id, rank_aggregation=1, step_policy=1) == []
