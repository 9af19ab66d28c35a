"""Long series: fast, bounded, and no trouble for anybody else."""

import asyncio
import time
from collections.abc import Callable

import asyncpg
import numpy as np
import pytest
from headrace.v1 import metric_service_pb2 as pb

from gateway.domain.errors import HeadraceError, Reason
from gateway.store import snapshot
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
