"""Compaction changes how points are stored and nothing else."""

import asyncio
import itertools
import math
import random
import struct
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from headrace.v1 import metric_service_pb2 as pb
from hypothesis import HealthCheck, Phase, given, settings

from gateway.domain.compaction import GOING_ON_POINTS_MIN
from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.policies import RankAggregation
from gateway.domain.reads import ReadQuery, SeriesPart
from gateway.ingest.merge import merge
from gateway.store import reading as reading_module
from gateway.store import snapshot
from gateway.store.compaction import CompactionStore
from gateway.store.connections import Database
from gateway.store.reading import MetricReading
from tests.reading.histories import Script, scripts, store
from tests.reading.reads import read_metrics, stream
from tests.support.chunks import StoredRun
from tests.support.waiting import eventually_async
from tests.upkeep.compaction import (
    chunk_lengths,
    compact,
    compactor,
    end_run,
    make_live,
    raw_points,
)

SECOND_US = 1_000_000
DEADLINE_S = 60.0

READS: list[dict[str, Any]] = [
    {"step_policy": policy, **more}
    for policy in (1, 2, 3)
    for more in (
        {},
        {"include_hidden": True},
        {"max_points": 9},
        {"first_step": 3, "last_step": 17},
        {"keys": ["a"], "ranks": [0, 2]},
    )
] + [
    {"step_policy": policy, "rank_aggregation": aggregation}
    for policy in (1, 2)
    for aggregation in (RankAggregation.MEAN, RankAggregation.MAX)
]


async def all_reads(reading: MetricReading, run_id: UUID) -> list[list[tuple[object, ...]]]:
    """Return what every kind of read gives, values by their bits."""
    answers = []
    for choice in READS:
        rows: list[tuple[object, ...]] = []
        for columns in await read_metrics(reading, run_id, **choice):
            # 0.0 and -0.0 at one step count as equal: which of them is read is open.
            values = [struct.pack(">d", value + 0.0) for value in columns.value]
            points = zip(columns.step, columns.time_unix_us, values, strict=True)
            rows += [(columns.key, columns.rank, columns.attempt, *point) for point in points]
        answers.append(rows)
    return answers


@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=scripts())
async def test_reads_are_the_same_before_and_after(
    script: Script, connection: asyncpg.Connection, database: Database, reading: MetricReading
) -> None:
    run, _ = await store(connection, script)
    before, stored = await all_reads(reading, run.run_id), await raw_points(connection, run.run_id)
    await end_run(connection, run.run_id)
    await compact(database)
    assert await raw_points(connection, run.run_id) == stored
    assert await all_reads(reading, run.run_id) == before
    assert await connection.fetchval(
        "SELECT compacted_at IS NOT NULL FROM runs WHERE run_id = $1", run.run_id
    )


async def one_point_each(
    run: StoredRun, keys: str, points: int, *, every_us: int = SECOND_US, jitter_us: int = 0
) -> None:
    """Log as a slow job does: each flush has one point of each key."""
    writer = await run.writer()
    chance = random.Random(5)
    for step in range(points):
        time_us = step * every_us + chance.randint(0, jitter_us)
        await run.commit(writer, [(key, step, time_us, chance.random()) for key in keys])


async def test_a_slow_job_ends_in_full_chunks(
    connection: asyncpg.Connection, database: Database
) -> None:
    run = await StoredRun.create(connection)
    await one_point_each(run, "ab", 300, jitter_us=900)
    await end_run(connection, run.run_id)
    before = await raw_points(connection, run.run_id)
    done = await compact(database)
    assert (done.runs, done.chunks_before, done.points) == (1, 600, 600)
    assert await chunk_lengths(connection, run.run_id) == [150] * 4
    assert await raw_points(connection, run.run_id) == before


async def test_a_run_that_goes_on_is_merged_when_chunks_fill(
    connection: asyncpg.Connection, database: Database
) -> None:
    run = await StoredRun.create(connection)
    await make_live(connection, run.run_id)
    await one_point_each(run, "a", GOING_ON_POINTS_MIN - 1)
    assert (await compact(database)).chunks_before == 0
    await one_point_each(run, "b", GOING_ON_POINTS_MIN)
    done = await compact(database)
    assert (done.chunks_before, done.chunks_after) == (GOING_ON_POINTS_MIN, 2)
    # Nothing new, nothing to do: what was merged stays as it is.
    assert (await compact(database)).chunks_before == 0


async def test_a_backlog_deeper_than_a_look_is_merged_too(
    connection: asyncpg.Connection, database: Database
) -> None:
    run = await StoredRun.create(connection)
    await make_live(connection, run.run_id)
    await one_point_each(run, "a", 700)
    assert (await compact(database)).chunks_before == 700


async def test_points_too_far_apart_for_one_chunk_are_looked_at_once(
    connection: asyncpg.Connection, database: Database
) -> None:
    run = await StoredRun.create(connection)
    await make_live(connection, run.run_id)
    await one_point_each(run, "a", GOING_ON_POINTS_MIN, every_us=3_600 * SECOND_US)
    before = await raw_points(connection, run.run_id)
    done = await compact(database)
    assert (done.chunks_before, done.chunks_after) == (GOING_ON_POINTS_MIN,) * 2
    assert (await compact(database)).chunks_before == 0
    assert await raw_points(connection, run.run_id) == before


async def test_fresh_points_are_left_alone(
    connection: asyncpg.Connection, database: Database
) -> None:
    run = await StoredRun.create(connection)
    await make_live(connection, run.run_id)
    await one_point_each(run, "a", GOING_ON_POINTS_MIN)
    assert (await compactor(database).compact_once()).chunks_before == 0
    assert (await compactor(database, idle_s=3_600).compact_once()).chunks_before == 0


async def test_late_points_of_an_ended_run_are_merged_when_they_have_settled(
    connection: asyncpg.Connection, database: Database
) -> None:
    run = await StoredRun.create(connection)
    await one_point_each(run, "a", 3)
    await end_run(connection, run.run_id)
    await compactor(database).compact_once()
    await one_point_each(run, "a", 3)
    assert (await compactor(database).compact_once()).runs == 0
    assert (await compactor(database).compact_once()).runs == 1
    assert await chunk_lengths(connection, run.run_id) == [3, 3]


@pytest.mark.parametrize("column", ["purged_at", "purge_started_at", "deleted_at"])
async def test_a_run_that_goes_is_left_alone(
    connection: asyncpg.Connection, database: Database, column: str
) -> None:
    run = await StoredRun.create(connection)
    await one_point_each(run, "a", 3)
    await end_run(connection, run.run_id)
    await connection.execute(f"UPDATE runs SET {column} = now() WHERE run_id = $1", run.run_id)
    assert (await compact(database)).chunks_before == 0


async def test_a_locked_run_is_left_for_later(
    connection: asyncpg.Connection, database: Database
) -> None:
    run = await StoredRun.create(connection)
    await one_point_each(run, "a", 3)
    await end_run(connection, run.run_id)
    store = CompactionStore(database)
    await store.settle(run.run_id, idle_s=0)
    await store.settle(run.run_id, idle_s=0)
    groups = await store.loose_groups(run.run_id, list(run.series.values()), newest=None)
    async with connection.transaction():
        await connection.execute("SELECT FROM runs WHERE run_id = $1 FOR UPDATE", run.run_id)
        assert await store.rewrite(run.run_id, groups, merge) is None
        assert await store.settle(run.run_id, idle_s=0) is None
    assert (await compactor(database).compact_once()).chunks_before == 3


async def test_a_kill_in_the_middle_leaves_the_points_as_they_were(
    connection: asyncpg.Connection, database: Database
) -> None:
    run = await StoredRun.create(connection)
    await one_point_each(run, "ab", 200)
    await end_run(connection, run.run_id)
    before = await raw_points(connection, run.run_id)
    store = CompactionStore(database)
    for _ in range(2):
        await store.settle(run.run_id, idle_s=0)
    groups = await store.loose_groups(run.run_id, list(run.series.values()), newest=None)

    class Killed(BaseException):
        pass

    def die(_loose: object) -> Any:
        raise Killed

    with pytest.raises(Killed):  # taken out, not yet put back
        await store.rewrite(run.run_id, groups, die)
    assert await raw_points(connection, run.run_id) == before

    merging = asyncio.create_task(compactor(database).compact_once())
    async with asyncio.timeout(DEADLINE_S):  # a backend killed in whatever it does
        while not merging.done():
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND state <> 'idle'"
            )
            await asyncio.sleep(0)
    assert await raw_points(connection, run.run_id) == before
    await merging if merging.exception() is None else None
    await compact(database)
    assert await raw_points(connection, run.run_id) == before
    assert await chunk_lengths(connection, run.run_id) == [100] * 4


async def test_a_follower_that_was_stalled_past_a_merge_is_told(
    connection: asyncpg.Connection, database: Database, reading: MetricReading
) -> None:
    run = await StoredRun.create(connection)
    await make_live(connection, run.run_id)
    writer = await run.writer()
    await run.commit(writer, [("a", 0, 0, 0.0)])
    messages = stream(reading, run.run_id, follow=True)
    async for message in messages:
        if message.WhichOneof("message") == "caught_up":
            break
    # Nobody takes the next message, so the gateway does not look either.
    for step in range(1, 300):
        await run.commit(writer, [("a", step, step, 0.0)])
    await compact(database)

    async def exhaust() -> None:
        async for _ in messages:
            pass

    with pytest.raises(HeadraceError) as refused:
        await asyncio.wait_for(exhaust(), DEADLINE_S)
    assert refused.value.reason is Reason.FOLLOWER_LAGGED
    await messages.aclose()


class SlowFollower:
    """Follows a run; of what it is given, it takes the part with a certain step when told to."""

    def __init__(self, reading: MetricReading, run_id: UUID, *, slow_at_step: int) -> None:
        self.steps: list[int] = []
        self.caught_up = asyncio.Event()
        self.slow = asyncio.Event()
        self.go_on = asyncio.Event()
        self._slow_at_step = slow_at_step
        query = ReadQuery(workspace_id=0, run_id=run_id, follow=True)
        self.task = asyncio.create_task(reading.read(query, self._take))

    async def _take(self, part: SeriesPart | None) -> None:
        if part is None:
            self.caught_up.set()
            return
        self.steps += part.points.step.tolist()
        if self._slow_at_step in self.steps and not self.slow.is_set():
            self.slow.set()
            await self.go_on.wait()

    async def until(self, happened: asyncio.Event) -> None:
        waiting = asyncio.create_task(happened.wait())
        await asyncio.wait([waiting, self.task], timeout=DEADLINE_S, return_when="FIRST_COMPLETED")
        waiting.cancel()
        assert happened.is_set(), self.task

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.mark.parametrize("slow_in", ["the snapshot", "news"])
async def test_a_follower_that_is_slow_but_steady_loses_no_place_to_merges(
    slow_in: str,
    connection: asyncpg.Connection,
    database: Database,
    reading: MetricReading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        reading_module, "_HELD_POINTS_MAX", 0
    )  # passed on while the snapshot is held
    run = await StoredRun.create(connection)
    await make_live(connection, run.run_id)
    writer = await run.writer()
    await run.commit(writer, [("a", 0, 0, 0.0)])
    follower = SlowFollower(reading, run.run_id, slow_at_step=0 if slow_in == "the snapshot" else 1)
    if slow_in == "news":
        await follower.until(follower.caught_up)
        await run.commit(writer, [("a", 1, 1, 0.0)])
    await follower.until(follower.slow)
    for step in range(2, 2 + 2 * GOING_ON_POINTS_MIN):
        await run.commit(writer, [("a", step, step, 0.0)])
        if step % GOING_ON_POINTS_MIN == 0:
            assert (await compact(database)).chunks_before == 0
    follower.go_on.set()
    await eventually_async(lambda: follower.task.done() or step in follower.steps)
    await follower.stop()
    assert sorted(follower.steps) == [
        *range(1 if slow_in == "the snapshot" else 2),
        *range(2, step + 1),
    ]
    assert (await compact(database)).chunks_before > 0  # and what was put off is done


async def test_a_follower_that_takes_nothing_does_not_put_merges_off_for_long(
    connection: asyncpg.Connection,
    database: Database,
    reading: MetricReading,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot, "_STALL_S", 0.3)
    run = await StoredRun.create(connection)
    await make_live(connection, run.run_id)
    writer = await run.writer()
    await run.commit(writer, [("a", 0, 0, 0.0)])
    store = CompactionStore(database)
    follower = SlowFollower(reading, run.run_id, slow_at_step=0)
    await follower.until(follower.slow)
    assert await store.settle(run.run_id, idle_s=0) is None
    with pytest.raises(HeadraceError) as refused:
        await asyncio.wait_for(follower.task, DEADLINE_S)
    assert refused.value.reason is Reason.OVERLOADED
    assert await store.settle(run.run_id, idle_s=0) is not None


async def test_writers_readers_followers_and_two_compactors_at_once(
    connection: asyncpg.Connection, database_dsn: str, reading: MetricReading
) -> None:
    run = await StoredRun.create(connection, step_policy=3)
    await make_live(connection, run.run_id)
    sent: list[tuple[str, int, int, float]] = []
    followed: list[tuple[str, int, int, float]] = []
    writing = asyncio.Event()
    merged = 0

    async def write() -> None:
        chance = random.Random(11)
        writer = await run.writer()
        for number in itertools.count():
            if number >= 700 and merged:  # on a fast machine there was no second look yet
                break
            step = number if chance.random() < 0.9 else chance.randint(0, number)
            points = [(key, step, number, math.nan if number % 50 == 0 else number) for key in "ab"]
            await run.commit(writer, points)
            sent.extend(points)
        writing.set()

    async def read() -> None:
        seen = 0
        while not writing.is_set():
            floor = len(sent)
            count = sum(len(c.step) for c in await read_metrics(reading, run.run_id))
            assert count >= max(floor, seen)  # nothing vanishes, not even for a moment
            seen = count

    async def follow() -> None:
        messages = stream(reading, run.run_id, follow=True)
        async for message in messages:
            if message.WhichOneof("message") == "columns":
                columns: pb.SeriesColumns = message.columns
                followed.extend(
                    (columns.key, *point)
                    for point in zip(columns.step, columns.time_unix_us, columns.value, strict=True)
                )
            if writing.is_set() and len(followed) >= len(sent):
                break
        await messages.aclose()

    async def compact_on() -> None:
        nonlocal merged
        database = await Database.connect(database_dsn, ingest_connections=0, query_connections=1)
        try:
            # A second without a look: what a follower that is awake needs.
            worker = compactor(database, idle_s=0.5)
            while not writing.is_set():
                done = await worker.compact_once()
                merged += done.chunks_before  # apart: `+=` reads before it awaits
        finally:
            await database.close()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        for task in (write, read, follow, compact_on, compact_on):
            group.create_task(task())

    def by_bits(points: list[tuple[str, int, int, float]]) -> list[tuple[object, ...]]:
        return sorted((*point[:3], struct.pack(">d", point[3])) for point in points)

    assert merged > 0
    assert by_bits(followed) == by_bits(sent)
    found = await raw_points(connection, run.run_id)
    assert sorted((key, step, bits) for key, _, _, step, _, bits in found.elements()) == sorted(
        (key, step, bits) for key, step, _, bits in by_bits(sent)
    )
