"""Long series: fast, bounded, and no trouble for anybody else."""

import asyncio
import time
from collections.abc import Callable

import asyncpg
import numpy as np
import pytest
from headrace.v1 import metric_service_pb2 as pb

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.reads import ReadQuery, SeriesPart
from gateway.store import connections, snapshot
from gateway.store.connections import Database
from gateway.store.reading import MetricReading
from tests.reading.reads import read_metrics, stream
from tests.support.chunks import StoredRun, StoredWriter, packed

POINTS = 1_000_000
CHUNK_POINTS = 128


async def a_long_run(
    connection: asyncpg.Connection, points: int = POINTS
) -> tuple[StoredRun, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Store one series of many chunks, quickly; return its values."""
    run = await StoredRun.create(connection)
    writer: StoredWriter = await run.writer()
    await run.commit(writer, [("loss", 0, 0, 0.0)])
    values = np.random.default_rng(3).normal(size=points)
    values[0] = 0.0
    begins = range(1, points, CHUNK_POINTS)
    chunks = [values[begin : begin + CHUNK_POINTS] for begin in begins]
    records = [
        (
            run.run_id,
            run.series["loss", 0],
            writer.writer_no,
            2,
            begin,
            begin + len(chunk) - 1,
            begin * 1_000,
            float(chunk.min()),
            float(chunk.max()),
            1,
            None,
            packed("i", range(0, len(chunk) * 1_000, 1_000)),
            packed("d", chunk.tolist()),
        )
        for begin, chunk in zip(begins, chunks, strict=True)
    ]
    await connection.copy_records_to_table("loose_chunks", records=records)
    await connection.execute("ANALYZE loose_chunks")
    return run, values


async def test_a_million_points_are_read_whole_and_down_sampled(
    connection: asyncpg.Connection,
    reading: MetricReading,
    record_property: Callable[[str, object], None],
) -> None:
    run, values = await a_long_run(connection)
    seconds = {}
    for name, max_points in (("whole", 0), ("down_sampled", 1_000)):
        best = np.inf
        for _ in range(3):
            start = time.perf_counter()
            messages = await read_metrics(reading, run.run_id, max_points=max_points)
            best = min(best, time.perf_counter() - start)
        seconds[name] = best
        record_property(f"read_1m_points_{name}_ms", round(best * 1_000, 1))
        value = np.concatenate([np.asarray(part.value) for part in messages])
        step = np.concatenate([np.asarray(part.step) for part in messages])
        assert (value == values[step]).all()
        assert (len(value) == POINTS) if max_points == 0 else (500 < len(value) <= 1_000)
        assert value.min() == values.min()
        assert value.max() == values.max()
    print(f"\n1M points: {seconds}")
    assert seconds["whole"] < 5.0  # loose, for loaded machines; make bench has the figures
    assert seconds["down_sampled"] < 2.0


async def test_outlines_and_a_full_read_choose_the_same_points(
    connection: asyncpg.Connection, reading: MetricReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = await a_long_run(connection, 100_000)
    outlined = await read_metrics(reading, run.run_id, max_points=100, first_step=77)
    monkeypatch.setattr(snapshot, "_OUTLINED_CHUNKS_MIN", 10**9)
    assert await read_metrics(reading, run.run_id, max_points=100, first_step=77) == outlined


async def test_a_cancelled_read_leaves_its_connection_to_others(
    connection: asyncpg.Connection, database_dsn: str
) -> None:
    run, _ = await a_long_run(connection, 400_000)
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=1)
    reading = MetricReading(database, reads_max=1)
    for _ in range(3):
        messages = stream(reading, run.run_id)
        await anext(messages)  # in the middle of its COPY
        await messages.aclose()
        columns = await asyncio.wait_for(read_metrics(reading, run.run_id, last_step=9), 30)
        assert [len(part.step) for part in columns] == [10]
    await database.close()


async def test_a_reader_that_takes_nothing_is_sent_away_and_its_connection_is_free(
    connection: asyncpg.Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_STALL_S", 0.2)
    run, _ = await a_long_run(connection, 600_000)
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=1)
    reading = MetricReading(database, reads_max=1)
    stalled = stream(reading, run.run_id)
    await anext(stalled)
    # Nobody asks for the next message; the only connection comes back all the same.
    async with asyncio.timeout(30), database.query() as other:
        assert await other.fetchval("SELECT 1") == 1
    with pytest.raises(HeadraceError) as refused:
        async for _ in stalled:
            pass
    assert refused.value.reason is Reason.OVERLOADED
    await database.close()


@pytest.mark.parametrize("max_points", [0, 599_999])
async def test_a_reader_that_is_slow_but_steady_reads_to_the_end(
    max_points: int,
    connection: asyncpg.Connection,
    reading: MetricReading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each message comes in time, though a page has many, and what is down-sampled is one part."""
    monkeypatch.setattr(snapshot, "_STALL_S", 0.5)
    run, values = await a_long_run(connection, 600_000)
    points = 0
    async for message in stream(reading, run.run_id, max_points=max_points):
        step = np.asarray(message.columns.step)
        assert (np.asarray(message.columns.value) == values[step]).all()
        points += len(step)
        await asyncio.sleep(0.2)  # the pace of a slow line
    assert points == 600_000 if max_points == 0 else 0.5 < points / 600_000 <= 1


@pytest.mark.parametrize("setting", ["tcp_user_timeout", "idle_in_transaction_session_timeout"])
async def test_postgresql_waits_for_a_slow_reader(
    setting: str,
    connection: asyncpg.Connection,
    database_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page of a thousand parts takes a slow reader longer than PostgreSQL waits for others."""
    monkeypatch.setitem(connections._SESSION_SETTINGS, setting, "1s")
    run = await StoredRun.create(connection)
    writer = await run.writer()
    await run.commit(writer, [("a", 0, 0, 0.0), ("b", 0, 0, 0.0)])
    chunks = 25_000  # 40 MB, more than the buffers of both sockets
    await connection.execute(
        "INSERT INTO loose_chunks SELECT $1, $2, $3, 2, 128 * n, 128 * n + 127, 0, 0, 0, 1,"
        " NULL, $4, $5 FROM generate_series(1, $6) n",
        *(run.run_id, run.series["a", 0], writer.writer_no),
        *(packed("i", [0] * 128), packed("d", [0.0] * 128), chunks),
    )
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=1)
    points = 0

    async def take(part: SeriesPart | None) -> None:
        nonlocal points
        assert part is not None
        if not points or part.key == "b":  # the first page of many, and the last part of the last
            await asyncio.sleep(3)
        points += len(part.points)

    async def patience() -> str:
        async with database.query() as other:
            return str(await other.fetchval("SELECT current_setting($1)", setting))

    try:
        query = ReadQuery(workspace_id=0, run_id=run.run_id)
        before = await patience()
        await MetricReading(database, reads_max=1).read(query, take)
        assert await patience() == before
    finally:
        await database.close()
    assert points == 128 * chunks + 2


async def test_a_read_sees_one_snapshot_while_points_are_committed(
    connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run = await StoredRun.create(connection)
    writer = await run.writer()
    keys = [f"k{number:04}" for number in range(1_500)]  # more than a page of series
    await run.commit(writer, [(key, 0, 0, 0.0) for key in keys])
    messages = stream(reading, run.run_id)
    first = await anext(messages)
    await run.commit(writer, [(key, 1, 1, 1.0) for key in [*keys, "z"]])
    rest = [message.columns async for message in messages]
    columns: list[pb.SeriesColumns] = [first.columns, *rest]
    assert [part.key for part in columns] == keys
    assert {tuple(part.step) for part in columns} == {(0,)}
