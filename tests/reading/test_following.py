"""A following read delivers each point exactly once, whoever commits it."""

import asyncio
import math
import random
from collections import Counter
from uuid import UUID

import asyncpg
import pytest
from headrace.v1 import metric_service_pb2 as pb

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.reads import ReadQuery, SeriesPart
from gateway.store import reading as reading_module
from gateway.store.connections import Database
from gateway.store.reading import MetricReading
from tests.reading.naive import Row
from tests.reading.reads import rows_of, stream
from tests.support.chunks import StoredRun

DEADLINE_S = 60.0


class Collector:
    """Follows a run and keeps what it was given."""

    def __init__(self, reading: MetricReading, run_id: UUID, **fields: object) -> None:
        self.rows: list[Row] = []
        self.caught_up = asyncio.Event()
        self._arrived = asyncio.Condition()
        self._stream = stream(reading, run_id, follow=True, **fields)
        self.task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for message in self._stream:
            async with self._arrived:
                if message.WhichOneof("message") == "caught_up":
                    self.caught_up.set()
                else:
                    assert list(message.columns.step) == sorted(message.columns.step)
                    self.rows += rows_of([message.columns])
                self._arrived.notify_all()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S), self._arrived:
            await self._arrived.wait_for(lambda: len(self.rows) >= count)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        await self._stream.aclose()


def counted(rows: list[Row]) -> Counter[Row]:
    return Counter((*row[:5], "nan" if math.isnan(row[5]) else row[5]) for row in rows)  # type: ignore[misc]


async def test_each_point_comes_once_while_writers_commit_in_any_order(
    connection: asyncpg.Connection, database_dsn: str, reading: MetricReading
) -> None:
    chance = random.Random(7)
    run = await StoredRun.create(connection, step_policy=3)
    writers = [
        await run.writer(rank=rank, attempt=attempt) for rank in (0, 1) for attempt in (1, 2)
    ]
    expected: list[Row] = []
    numbers = iter(range(10**6))

    async def commit() -> None:
        writer = chance.choice(writers)
        points = []
        for _ in range(chance.randint(1, 30)):
            # Mostly forward, sometimes late, in few series, never twice the same value.
            number = next(numbers)
            step = number if chance.random() < 0.7 else chance.randint(0, number)
            value = math.nan if chance.random() < 0.05 else float(number)
            points.append((chance.choice("abc"), step, number, value))
        await run.commit(writer, points, chunk_points=chance.choice([1, 7, 100]))
        expected.extend((k, writer.rank, writer.attempt, *rest) for k, *rest in points)  # type: ignore[misc]

    for _ in range(10):
        await commit()
    follower = Collector(reading, run.run_id)
    for _ in range(60):
        await commit()
    await asyncio.wait_for(follower.caught_up.wait(), DEADLINE_S)
    for _ in range(20):
        await commit()
    await follower.until(len(expected))
    await follower.stop()
    assert counted(follower.rows) == counted(expected)


async def test_a_follower_is_told_of_new_series_and_only_of_those_it_asked_for(
    connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run = await StoredRun.create(connection)
    writers = [await run.writer(rank=rank) for rank in (0, 1)]
    follower = Collector(
        reading, run.run_id, keys=["loss", "later"], ranks=[1], first_step=5, last_step=9
    )
    await asyncio.wait_for(follower.caught_up.wait(), DEADLINE_S)
    for writer in writers:
        await run.commit(writer, [("loss", step, step, 1.0) for step in range(12)])
        await run.commit(writer, [("other", 6, 6, 2.0)])
        await run.commit(writer, [("later", 7, 7, 3.0)])
    await follower.until(6)
    await follower.stop()
    expected = [("loss", 1, 1, step, step, 1.0) for step in range(5, 10)]
    assert sorted(follower.rows) == [("later", 1, 1, 7, 7, 3.0), *expected]


async def test_an_idle_follower_holds_no_connection(
    connection: asyncpg.Connection, database_dsn: str
) -> None:
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=1)
    reading = MetricReading(database, reads_max=1, poll_min_ms=5, poll_max_ms=20)
    run = await StoredRun.create(connection)
    writer = await run.writer()
    followers = [Collector(reading, run.run_id) for _ in range(20)]
    for follower in followers:
        await asyncio.wait_for(follower.caught_up.wait(), DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S), database.query() as other:
        assert await other.fetchval("SELECT 1") == 1
    await run.commit(writer, [("loss", 1, 1, 1.0)])
    for follower in followers:
        await follower.until(1)
        await follower.stop()
    assert reading.followers == 0
    await database.close()


async def test_a_follower_waits_while_others_hold_every_snapshot(
    connection: asyncpg.Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "_TURN_S", 0.1)
    reading = MetricReading(database, reads_max=1, poll_min_ms=5, poll_max_ms=20)
    run = await StoredRun.create(connection)
    writer = await run.writer()
    follower = Collector(reading, run.run_id)
    await asyncio.wait_for(follower.caught_up.wait(), DEADLINE_S)
    await run.commit(writer, [("loss", 1, 1, 1.0)])
    await follower.until(1)

    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_part: SeriesPart | None) -> None:
        held.set()
        await go_on.wait()

    query = ReadQuery(workspace_id=0, run_id=run.run_id)
    other = asyncio.create_task(reading.read(query, hold))
    await asyncio.wait_for(held.wait(), DEADLINE_S)
    await run.commit(writer, [("loss", 2, 2, 2.0)])
    ended, _ = await asyncio.wait([follower.task], timeout=0.5)  # several turns
    assert not ended
    assert len(follower.rows) == 1
    go_on.set()
    await other
    await follower.until(2)
    await follower.stop()


async def test_more_followers_than_allowed_are_refused_with_a_reason(
    connection: asyncpg.Connection, database: Database
) -> None:
    reading = MetricReading(database, followers_max=1)
    run = await StoredRun.create(connection)
    follower = Collector(reading, run.run_id)
    await asyncio.wait_for(follower.caught_up.wait(), DEADLINE_S)
    with pytest.raises(HeadraceError) as refused:
        async for _ in stream(reading, run.run_id, follow=True):
            pass
    assert refused.value.reason is Reason.OVERLOADED
    assert refused.value.metadata["limit"] == "1"
    await follower.stop()


async def test_following_ends_when_the_run_is_purged(
    connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run = await StoredRun.create(connection)
    writer = await run.writer()
    messages = stream(reading, run.run_id, follow=True)
    assert (await anext(messages)).WhichOneof("message") == "caught_up"
    await connection.execute("UPDATE runs SET purged_at = now() WHERE run_id = $1", run.run_id)
    await run.commit(writer, [("loss", 1, 1, 1.0)])
    with pytest.raises(HeadraceError) as ended:
        await asyncio.wait_for(anext(messages), DEADLINE_S)
    assert ended.value.reason is Reason.RUN_PURGED


async def test_the_snapshot_of_a_follower_keeps_attempts_apart(
    connection: asyncpg.Connection, reading: MetricReading
) -> None:
    run = await StoredRun.create(connection)
    await run.attempt(1)
    await run.attempt(2, resume_step=3)
    for attempt in (1, 2):
        writer = await run.writer(attempt=attempt)
        await run.commit(writer, [("loss", step, attempt, 1.0) for step in range(3 * attempt)] * 2)
    columns = []
    messages = stream(reading, run.run_id, follow=True)
    async for message in messages:
        if message.WhichOneof("message") == "caught_up":
            break
        columns.append(message.columns)
    await messages.aclose()
    assert [(part.attempt, list(part.step)) for part in columns] == [
        (1, [0, 1, 2]),
        (2, [0, 1, 2, 3, 4, 5]),
    ]
    assert all(isinstance(part, pb.SeriesColumns) for part in columns)
