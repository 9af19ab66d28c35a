"""ListSeries pages to the end, whatever happens meanwhile."""

import asyncpg
import pytest
from headrace.v1 import metric_service_pb2 as pb

from gateway.domain.errors import HeadraceError, Reason
from gateway.rpc.metric_read import MetricReadService
from gateway.store import summaries
from gateway.store.reading import MetricReading
from tests.support.chunks import StoredRun

KEYS = ["A", "a", "a/b", "a/c", "a0", "b", "ä", "\U0001f600"]


async def list_all(
    reading: MetricReading, run: StoredRun, *, page_size: int, key_prefix: str = ""
) -> list[list[pb.Series]]:
    pages: list[list[pb.Series]] = []
    request = pb.ListSeriesRequest(
        run_id=run.run_id.hex, page_size=page_size, key_prefix=key_prefix
    )
    while True:
        response = await MetricReadService(reading).list_series(request, None)
        pages.append(list(response.series))
        if not response.next_page_token:
            return pages
        request.page_token = response.next_page_token


async def a_run(connection: asyncpg.Connection, keys: list[str], ranks: int = 2) -> StoredRun:
    run = await StoredRun.create(connection)
    for rank in range(ranks):
        writer = await run.writer(rank=rank)
        await run.commit(writer, [(key, step, step, 1.0) for key in keys for step in range(3)])
    return run


@pytest.mark.parametrize("page_size", [1, 3, 7, 16, 17])
async def test_pages_hold_every_series_once_in_order(
    page_size: int, connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run = await a_run(connection, KEYS)
    pages = await list_all(reading, run, page_size=page_size)
    assert all(len(page) <= page_size for page in pages)
    listed = [(series.key, series.rank) for page in pages for series in page]
    assert listed == [
        (key, rank) for key in sorted(KEYS, key=lambda key: key.encode()) for rank in (0, 1)
    ]


async def test_series_that_appear_while_paging_disturb_no_others(
    connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run = await a_run(connection, ["b", "d"], ranks=1)
    service = MetricReadService(reading)
    request = pb.ListSeriesRequest(run_id=run.run_id.hex, page_size=1)
    first = await service.list_series(request, None)
    await run.commit(await run.writer(), [("a", 0, 0, 1.0), ("c", 0, 0, 1.0)])
    request.page_token, request.page_size = first.next_page_token, 0
    rest = await service.list_series(request, None)
    assert [series.key for series in (*first.series, *rest.series)] == ["b", "c", "d"]
    assert rest.next_page_token == ""


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("a", ["a", "a/b", "a/c", "a0"]), ("a/", ["a/b", "a/c"]), ("z", []), ("ä", ["ä"])],
)
async def test_a_prefix_is_compared_literally(
    prefix: str, expected: list[str], connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run = await a_run(connection, [*KEYS, "%", "_"], ranks=1)
    pages = await list_all(reading, run, page_size=2, key_prefix=prefix)
    assert [series.key for page in pages for series in page] == expected


async def test_a_page_that_needs_much_recomputing_ends_early(
    connection: asyncpg.Connection, reading: MetricReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "_RECOMPUTED_POINTS_MAX", 7)
    run = await a_run(connection, ["a", "b", "c", "d"], ranks=1)
    await run.attempt(2, resume_step=1)
    pages = await list_all(reading, run, page_size=100)
    assert [[series.key for series in page] for page in pages] == [["a", "b"], ["c", "d"]]
    assert {series.point_count for page in pages for series in page} == {1}


async def test_a_token_serves_only_the_request_it_was_issued_for(
    connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run = await a_run(connection, KEYS)
    other = await a_run(connection, KEYS)
    service = MetricReadService(reading)
    page = await service.list_series(pb.ListSeriesRequest(run_id=run.run_id.hex, page_size=1), None)
    token = page.next_page_token
    for run_id, prefix, wrong in (
        (other.run_id.hex, "", token),
        (run.run_id.hex, "a", token),
        (run.run_id.hex, "", token[:-4]),
        (run.run_id.hex, "", "nonsense"),
        (run.run_id.hex, "", "é"),
    ):
        request = pb.ListSeriesRequest(run_id=run_id, key_prefix=prefix, page_token=wrong)
        with pytest.raises(HeadraceError) as refused:
            await service.list_series(request, None)
        assert refused.value.reason is Reason.PAGE_TOKEN_INVALID
        assert refused.value.metadata["field"] == "page_token"
