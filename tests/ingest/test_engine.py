"""The engine over a real store: what is acknowledged is stored, and each fate is told."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from headrace.v1 import metric_service_pb2 as pb

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.flush import OpenRequest
from gateway.domain.identity import ANONYMOUS, set_identity
from gateway.domain.limits import CHUNK_POINTS_MAX, CHUNK_POINTS_MAX_IRREGULAR
from gateway.domain.metadata import TAG_CHARACTERS_MAX, Tag
from gateway.ingest.engine import (
    _SMALL_POINTS,
    _SMALL_SESSIONS,
    IngestEngine,
    IngestSettings,
)
from gateway.ingest.session import Session
from gateway.rpc import metric_write
from gateway.rpc.metric_write import MetricWriteService
from gateway.store.connections import Database
from gateway.store.writers import WriterStore, _agree_on_resume_step, _open_refusal
from tests.ingest.streams import Point, batch
from tests.support.waiting import eventually_async

_START = 1_700_000_000_000_000
_DEADLINE_S = 20.0


@dataclass
class Bench:
    """An engine, its database, and a connection of the test's own."""

    engine: IngestEngine
    database: Database
    admin: asyncpg.Connection

    async def run(self, *, late_policy: int = 1, workspace_id: int = 0) -> UUID:
        """Insert a run."""
        run_id = uuid4()
        await self.admin.execute(
            "INSERT INTO runs (run_id, workspace_id, experiment_id, name, late_policy)"
            " VALUES ($1, $2, 0, 'r', $3)",
            run_id,
            workspace_id,
            late_policy,
        )
        return run_id

    async def open(self, request: OpenRequest) -> "Stream":
        """Open a session with the keys k0, k1, k2."""
        changed = asyncio.Event()
        session = await self.engine.open(request, on_change=changed.set)
        for index in range(3):
            session.keys.define(index, f"k{index}")
        return Stream(self.engine, session, changed)

    async def points(self, run_id: UUID) -> list[tuple[str, int, float]]:
        """Return what is stored, by the view."""
        rows = await self.admin.fetch(
            "SELECT key, step, value FROM metric_points_raw WHERE run_id = $1"
            " ORDER BY key, step, time, value",
            run_id,
        )
        return [(row["key"], row["step"], row["value"]) for row in rows]


@dataclass
class Stream:
    """A session as a client sees it."""

    engine: IngestEngine
    session: Session
    changed: asyncio.Event

    def send(self, sequence: int, points: list[Point]) -> None:
        """Send one record."""
        self.engine.admit(self.session, batch(sequence, points))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, within a deadline."""
        async with asyncio.timeout(_DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def acknowledged(self, sequence: int) -> None:
        """Wait until the watermark has reached a record."""
        await self.until(lambda: self.session.committed_sequence >= sequence)

    async def ended(self) -> HeadraceError | None:
        """Wait for the end and return its error."""
        await self.until(lambda: self.session.ending is not None)
        assert self.session.ending is not None
        return self.session.ending.error


@pytest.fixture
async def bench(database_dsn: str) -> AsyncIterator[Bench]:
    database = await Database.connect(database_dsn, ingest_connections=2, query_connections=2)
    engine = IngestEngine(WriterStore(database), settings=IngestSettings())
    await engine.start()
    admin = await asyncpg.connect(database_dsn)
    yield Bench(engine, database, admin)
    await engine.close()
    await admin.close()
    await database.close()


def _request(run_id: UUID, **changes: Any) -> OpenRequest:
    request = OpenRequest(
        workspace_id=0,
        run_id=run_id,
        writer_id=uuid4(),
        incarnation=uuid4(),
        rank=0,
        attempt=1,
        resume_step=None,
        resume_exempt_keys=(),
    )
    return replace(request, **changes)


async def _refusal(bench: Bench, request: OpenRequest) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        await bench.open(request)
    return caught.value


async def test_acknowledged_records_are_stored(bench: Bench) -> None:
    run_id = await bench.run()
    stream = await bench.open(_request(run_id))
    stream.send(1, [(0, 1, _START, 0.5), (1, 1, _START, 1.5)])
    stream.send(2, [(0, 2, _START, 0.25)])
    await stream.acknowledged(2)
    assert await bench.points(run_id) == [("k0", 1, 0.5), ("k0", 2, 0.25), ("k1", 1, 1.5)]
    assert stream.session.counters.accepted_points == 3


async def test_the_longest_chunks_stay_whole_in_their_rows(bench: Bench) -> None:
    """A longer row would be compressed or cut in pieces: an insert that costs eight times more."""
    rng = random.Random(1)
    run_id = await bench.run()
    stream = await bench.open(_request(run_id))
    points: list[Point] = []
    for index, length in ((0, CHUNK_POINTS_MAX), (1, CHUNK_POINTS_MAX_IRREGULAR)):
        steps = range(4 * length) if index == 0 else sorted(rng.sample(range(2**31), 4 * length))
        points += [(index, step, _START + rng.randrange(2**31), rng.random()) for step in steps]
    stream.send(1, points)
    await stream.acknowledged(1)
    rows = await bench.admin.fetch(
        "SELECT length(point_values) / 8 AS points, pg_column_size(c.*) AS bytes,"
        " count(*) AS chunks FROM loose_chunks c WHERE run_id = $1 GROUP BY 1, 2 ORDER BY 1",
        run_id,
    )
    # The sizes that gateway.domain.limits gives.
    assert [tuple(row) for row in rows] == [(119, 2_024, 4), (158, 2_020, 4)]
    toast = "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE relname = 'loose_chunks'"
    assert await bench.admin.fetchval(toast) == 0


async def test_how_long_batches_waited_can_be_asked(bench: Bench) -> None:
    stream = await bench.open(_request(await bench.run()))
    async with bench.admin.transaction():
        await bench.admin.execute("LOCK TABLE loose_chunks IN ACCESS EXCLUSIVE MODE")
        arrived = time.perf_counter()
        bench.engine.admit(
            stream.session, replace(batch(1, [(0, 1, _START, 1.0)]), arrived=arrived)
        )
        async with asyncio.timeout(_DEADLINE_S):
            while bench.engine.longest_wait_s() < 0.1:  # noqa: ASYNC110 - time has no event
                await asyncio.sleep(0.005)
    await stream.acknowledged(1)
    assert 0.1 < bench.engine.longest_wait_s() <= time.perf_counter() - arrived
    async with asyncio.timeout(_DEADLINE_S):
        while bench.engine.longest_wait_s():  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("streams", "points"), [(_SMALL_SESSIONS, 1), (1, _SMALL_POINTS)], ids=["streams", "points"]
)
async def test_small_flushes_wait_for_their_turn_and_larger_ones_do_not(
    bench: Bench, streams: int, points: int
) -> None:
    run_id = await bench.run()
    first = await bench.open(_request(run_id))
    others = [await bench.open(_request(run_id, rank=rank)) for rank in range(1, streams + 1)]
    first.send(1, [(0, 1, _START, 0.5)])
    await first.acknowledged(1)
    bench.engine._pace_s = _DEADLINE_S  # as after a flush that took long
    first.send(2, [(0, 2, _START, 0.5)])
    await asyncio.sleep(0.1)
    assert first.session.committed_sequence == 1
    for other in others:
        other.send(1, [(0, step, _START, 0.5) for step in range(points)])
    await first.acknowledged(2)
    for other in others:
        await other.acknowledged(1)


async def test_a_newer_stream_fences_the_older_and_continues_after_its_commits(
    bench: Bench,
) -> None:
    run_id = await bench.run()
    request = _request(run_id)
    old = await bench.open(request)
    old.send(1, [(0, 1, _START, 1.0)])
    await old.acknowledged(1)
    new = await bench.open(request)
    error = await old.ended()
    assert error is not None
    assert error.reason is Reason.WRITER_FENCED
    assert (new.session.committed_sequence, new.session.writer.epoch) == (1, 2)
    old.send(2, [(0, 2, _START, 666.0)])
    new.send(2, [(0, 2, _START, 2.0)])
    await new.acknowledged(2)
    assert await bench.points(run_id) == [("k0", 1, 1.0), ("k0", 2, 2.0)]


async def test_a_zombie_of_another_gateway_is_fenced_at_its_flush_and_alone(
    bench: Bench, database_dsn: str
) -> None:
    run_id = await bench.run()
    request = _request(run_id)
    zombie = await bench.open(request)
    bystander = await bench.open(_request(run_id, rank=1))
    async with contextlib.AsyncExitStack() as stack:
        other = await Database.connect(database_dsn, ingest_connections=1, query_connections=1)
        stack.push_async_callback(other.close)
        await WriterStore(other).open_writer(request)
    # Admitted before any writer task runs, so both are in one flush.
    zombie.send(1, [(0, 1, _START, 666.0)])
    bystander.send(1, [(0, 1, _START, 1.0)])
    await bystander.acknowledged(1)
    error = await zombie.ended()
    assert error is not None
    assert error.reason is Reason.WRITER_FENCED
    assert await bench.points(run_id) == [("k0", 1, 1.0)]


@pytest.mark.parametrize(
    "loss",
    [
        "UPDATE writers SET committed_sequence = 1 WHERE run_id = $1 AND rank = 0",
        "UPDATE writers SET epoch = epoch - 1 WHERE run_id = $1 AND rank = 0",
        "DELETE FROM writers WHERE run_id = $1 AND rank = 0",
    ],
    ids=["commits", "the open", "the writer"],
)
async def test_a_stream_that_the_store_lost_commits_of_opens_again_and_alone(
    bench: Bench, loss: str
) -> None:
    """After a failover to a standby that lacked the last commits, nobody is fenced."""
    run_id = await bench.run()
    request = _request(run_id)
    stream = await bench.open(request)
    bystander = await bench.open(_request(run_id, rank=1))
    for sequence in (1, 2):
        stream.send(sequence, [(0, sequence, _START, 1.0)])
        await stream.acknowledged(sequence)
    await bench.admin.execute(loss, run_id)
    stream.send(3, [(0, 3, _START, 3.0)])
    bystander.send(1, [(1, 1, _START, 1.0)])
    await bystander.acknowledged(1)
    error = await stream.ended()
    assert error is not None
    assert error.reason is Reason.STORE_UNAVAILABLE
    bench.engine.leave(stream.session)
    again = await bench.open(request)
    if again.session.committed_sequence < 2:
        await bench.engine.resync(again.session, 3)
    again.send(3, [(0, 3, _START, 3.0)])
    await again.acknowledged(3)
    assert ("k0", 3, 3.0) in await bench.points(run_id)


async def test_a_finish_that_the_store_lost_commits_of_opens_again(bench: Bench) -> None:
    stream = await bench.open(_request(await bench.run()))
    stream.send(1, [(0, 1, _START, 1.0)])
    await stream.acknowledged(1)
    await bench.admin.execute("UPDATE writers SET committed_sequence = 0")
    stream.session.finish(1)
    with pytest.raises(HeadraceError) as caught:
        await bench.engine.finish(stream.session)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE


async def test_a_reopened_writer_goes_on_with_its_counters_and_summary(bench: Bench) -> None:
    run_id = await bench.run()
    request = _request(run_id)
    first = await bench.open(request)
    first.send(1, [(0, 5, _START, 5.0), (1, 5, _START, 1.0)])
    await first.acknowledged(1)
    second = await bench.open(request)
    second.send(2, [(1, 4, _START, -3.0), (2, 1, _START, 7.0)])
    await second.acknowledged(2)
    assert second.session.counters.late_points == 1
    rows = await bench.admin.fetch(
        "SELECT s.key, m.point_count, m.last_step, m.last_value, m.min_value, m.max_value"
        " FROM metric_summaries m JOIN series s USING (run_id, series_id)"
        " WHERE run_id = $1 ORDER BY s.key",
        run_id,
    )
    assert [tuple(row.values()) for row in rows] == [
        ("k0", 1, 5, 5.0, 5.0, 5.0),
        ("k1", 2, 5, 1.0, -3.0, 1.0),
        ("k2", 1, 1, 7.0, 7.0, 7.0),
    ]


async def test_late_steps_are_rejected_across_writers_when_the_run_says_so(bench: Bench) -> None:
    run_id = await bench.run(late_policy=2)
    ahead = await bench.open(_request(run_id))
    behind = await bench.open(_request(run_id))
    ahead.send(1, [(0, 10, _START, 1.0)])
    await ahead.acknowledged(1)
    behind.send(1, [(0, 10, _START, 2.0), (0, 11, _START, 3.0), (1, 1, _START, 4.0)])
    await behind.acknowledged(1)
    assert await bench.points(run_id) == [("k0", 10, 1.0), ("k0", 11, 3.0), ("k1", 1, 4.0)]
    (sample,) = behind.session.take_ack() or ()
    assert (sample.reason, sample.key, sample.step) == (Reason.STEP_LATE, "k0", 10)
    # The mark is of an attempt: the next one may begin below.
    restarted = await bench.open(_request(run_id, attempt=2))
    restarted.send(1, [(0, 3, _START, 5.0)])
    await restarted.acknowledged(1)
    assert restarted.session.counters.rejected_points == 0


async def test_rejections_are_durable(bench: Bench) -> None:
    run_id = await bench.run()
    request = _request(run_id)
    stream = await bench.open(request)
    stream.send(1, [(0, 2**62, _START, 1.0), (0, 1, _START, 1.0)])
    await stream.acknowledged(1)
    again = await bench.open(request)
    assert again.session.counters.rejected_points == 1
    (sample,) = again.session.rejections
    assert (sample.reason, sample.step) == (Reason.STEP_OUT_OF_RANGE, 2**62)


async def test_a_broken_connection_delays_a_flush_and_loses_nothing(bench: Bench) -> None:
    run_id = await bench.run()
    stream = await bench.open(_request(run_id))
    sent = 0
    for _ in range(5):
        await bench.admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'headrace%' AND datname = current_database()"
        )
        for _ in range(3):
            sent += 1
            stream.send(sent, [(0, sent, _START, float(sent))])
        await stream.acknowledged(sent)
    assert await bench.points(run_id) == [("k0", n, float(n)) for n in range(1, sent + 1)]


async def test_a_series_that_a_failover_lost_before_its_points_is_made_again(
    bench: Bench,
) -> None:
    run_id = await bench.run()
    stream = await bench.open(_request(run_id))
    async with bench.admin.transaction():
        await bench.admin.execute("LOCK TABLE loose_chunks IN ACCESS EXCLUSIVE MODE")
        stream.send(1, [(0, 1, _START, 1.0)])
        pid = await eventually_async(
            lambda: bench.admin.fetchval(
                "SELECT pid FROM pg_locks WHERE relation = 'loose_chunks'::regclass AND NOT granted"
            ),
            "the flush waits to copy",
        )
        assert await bench.admin.fetchval("DELETE FROM series RETURNING 1")
        await bench.admin.execute("SELECT pg_terminate_backend($1)", pid)
    await stream.acknowledged(1)
    assert await bench.points(run_id) == [("k0", 1, 1.0)]


async def test_content_beyond_a_limit_of_the_store_is_rejected_by_name(bench: Bench) -> None:
    await bench.admin.execute("CREATE INDEX ON run_tags (value)")  # of entries up to 2,704 bytes
    stream = await bench.open(_request(await bench.run()))
    bystander = await bench.open(_request(await bench.run()))
    text = random.Random(1).randbytes(TAG_CHARACTERS_MAX // 2).hex()
    bench.engine.admit(
        stream.session, replace(batch(1, []), metadata=(Tag(key="long", value=text),))
    )
    bystander.send(1, [(0, 1, _START, 1.0)])
    await bystander.acknowledged(1)
    await stream.acknowledged(1)
    assert stream.session.counters.rejected_entries == 1
    (sample,) = stream.session.take_ack() or ()
    assert sample.reason is Reason.STORE_REFUSED


async def test_what_fails_for_no_known_reason_fails_alone_and_is_not_rejected(
    bench: Bench,
) -> None:
    await bench.admin.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE 'invalid page' USING ERRCODE = 'XX001'; END $$;"
        "CREATE TRIGGER fail BEFORE INSERT ON loose_chunks FOR EACH ROW"
        " WHEN (NEW.max_value = 666) EXECUTE FUNCTION fail()"
    )
    run_id = await bench.run()
    request = _request(run_id)
    stream = await bench.open(request)
    bystander = await bench.open(_request(run_id, rank=1))
    stream.send(1, [(0, 1, _START, 666.0)])
    bystander.send(1, [(0, 1, _START, 1.0)])
    await bystander.acknowledged(1)
    error = await stream.ended()
    assert error is not None
    assert error.reason is Reason.INTERNAL
    await bench.admin.execute("DROP TRIGGER fail ON loose_chunks")
    again = await bench.open(request)
    again.send(1, [(0, 1, _START, 666.0)])
    await again.acknowledged(1)
    assert again.session.counters.accepted_points == 1


async def test_a_defect_that_one_writer_meets_ends_its_stream_alone(bench: Bench) -> None:
    run_id = await bench.run()
    stream = await bench.open(_request(run_id))
    bystander = await bench.open(_request(run_id, rank=1))
    impossible = batch(2**63, [(0, 1, _START, 1.0)])  # past what `admit` would let through
    stream.session.pending.append(impossible)
    bench.engine._budget.admit(impossible.size_bytes)
    bench.engine._coalescer.admitted(stream.session, 1)
    bystander.send(1, [(0, 1, _START, 1.0)])
    await bystander.acknowledged(1)
    error = await stream.ended()
    assert error is not None
    assert error.reason is Reason.INTERNAL


async def test_who_shared_an_isolated_flush_hears_when_it_is_over(bench: Bench) -> None:
    await bench.admin.execute(
        "ALTER TABLE loose_chunks ADD CONSTRAINT no_poison CHECK (max_value <> 666)"
    )
    run_id = await bench.run()
    waiting, draining, poisoner = [
        await bench.open(_request(run_id, rank=rank)) for rank in range(3)
    ]
    for stream, value in ((waiting, 1.0), (draining, 1.0), (poisoner, 666.0)):
        stream.send(1, [(0, 1, _START, value)])
    await draining.acknowledged(1)
    assert draining.session.in_flight, "the poisoner is not through yet"
    draining.session.drain()
    await waiting.until(lambda: waiting.session.idle)
    assert await draining.ended() is None
    await poisoner.acknowledged(1)


async def test_a_flush_that_takes_too_long_is_tried_again_in_halves(database_dsn: str) -> None:
    """Repeated as it was, it would take too long for ever."""
    database = await Database.connect(
        database_dsn, ingest_connections=1, query_connections=1, ingest_timeout_s=0.5
    )
    admin = await asyncpg.connect(database_dsn)
    await admin.execute(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END';"
        "CREATE TRIGGER linger BEFORE INSERT ON loose_chunks"
        " FOR EACH ROW EXECUTE FUNCTION linger()"
    )
    engine = IngestEngine(WriterStore(database), settings=IngestSettings())
    await engine.start()
    slow = Bench(engine, database, admin)
    run_id = await slow.run()
    # Admitted before any writer task runs, so all are in one flush, of twelve rows.
    streams = [await slow.open(_request(run_id)) for _ in range(2)]
    for stream in streams:
        for index in range(6):
            stream.session.keys.define(3 + index, f"slow{index}")
            stream.send(1 + index, [(3 + index, 1, _START, 1.0)])
    for stream in streams:
        await stream.acknowledged(6)
    assert len(await slow.points(run_id)) == 12
    await engine.close()
    await admin.close()
    await database.close()


async def test_open_refuses_what_cannot_be_written_to(bench: Bench) -> None:
    run_id = await bench.run()
    request = _request(run_id, resume_step=100, attempt=2)
    await bench.open(request)

    assert (await _refusal(bench, _request(uuid4()))).reason is Reason.RUN_NOT_FOUND
    elsewhere = await _refusal(bench, _request(run_id, workspace_id=5))
    assert elsewhere.reason is Reason.RUN_NOT_FOUND
    claimed = await _refusal(bench, replace(request, incarnation=uuid4()))
    assert claimed.reason is Reason.WRITER_CLAIMED
    mismatch = await _refusal(bench, replace(request, rank=3))
    assert (mismatch.reason, mismatch.metadata["limit"]) == (Reason.WRITER_MISMATCH, "0")
    resume = await _refusal(bench, _request(run_id, attempt=2, rank=1, resume_step=90))
    assert resume.reason is Reason.RESUME_STEP_MISMATCH
    assert (resume.metadata["value"], resume.metadata["announced"]) == ("90", "100")
    await bench.admin.execute("UPDATE runs SET purged_at = now() WHERE run_id = $1", run_id)
    assert (await _refusal(bench, request)).reason is Reason.RUN_PURGED


async def test_a_new_attempt_restarts_a_run_that_somebody_ends_just_then(
    bench: Bench, database_dsn: str
) -> None:
    run_id = await bench.run()
    await bench.open(_request(run_id))
    other = await asyncpg.connect(database_dsn)
    async with other.transaction():
        # As FinishRun does.
        await other.execute("SELECT FROM runs WHERE run_id = $1 FOR UPDATE", run_id)
        await other.execute("UPDATE runs SET state = 2, ended_at = now() WHERE run_id = $1", run_id)
        opening = asyncio.create_task(bench.open(_request(run_id, attempt=2)))
        await eventually_async(
            lambda: bench.admin.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ),
            "opening waits for the run's row",
        )
    await opening
    await other.close()
    found = await bench.admin.fetchrow("SELECT state, ended_at FROM runs WHERE run_id = $1", run_id)
    assert (found["state"], found["ended_at"]) == (1, None)


async def test_a_restarted_run_has_a_lease_before_its_first_heartbeat(bench: Bench) -> None:
    """A gateway that dies just after must not leave it RUNNING for ever."""
    run_id = await bench.run()
    await bench.open(_request(run_id))
    await bench.admin.execute("UPDATE runs SET state = 2, ended_at = now()")
    await bench.admin.execute(
        "INSERT INTO run_heartbeats (run_id, heartbeat_at, live)"
        " VALUES ($1, now() - interval '1 day', false)",
        run_id,
    )
    await bench.open(_request(run_id, attempt=2))
    heard = await bench.admin.fetchrow(
        "SELECT live, now() - heartbeat_at < interval '1 minute' AS lately FROM run_heartbeats"
    )
    assert tuple(heard) == (True, True)


async def test_of_two_ranks_that_announce_steps_at_once_the_second_is_told(
    bench: Bench, database_dsn: str
) -> None:
    run_id = await bench.run()
    await bench.open(_request(run_id, attempt=2))
    other = await asyncpg.connect(database_dsn)
    async with bench.database.query() as connection:
        async with other.transaction():
            await other.execute("UPDATE attempts SET resume_step = 100 WHERE run_id = $1", run_id)
            # Both have seen that there is an attempt without one.
            request = _request(run_id, attempt=2, rank=1, resume_step=90)
            agreeing = asyncio.create_task(_agree_on_resume_step(connection, request))
            await eventually_async(
                lambda: bench.admin.fetchval(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                ),
                "the second waits for the attempt's row",
            )
        with pytest.raises(HeadraceError) as caught:
            await agreeing
    await other.close()
    assert caught.value.reason is Reason.RESUME_STEP_MISMATCH
    assert caught.value.metadata["announced"] == "100"


async def test_a_refusal_that_a_purge_has_overtaken_names_it(bench: Bench) -> None:
    async with bench.database.query() as connection:
        refusal = await _open_refusal(connection, _request(await bench.run()))
    assert refusal.reason is Reason.RUN_PURGED


async def test_a_refused_open_fences_nobody(bench: Bench) -> None:
    run_id = await bench.run()
    request = _request(run_id)
    stream = await bench.open(request)
    await _refusal(bench, replace(request, incarnation=uuid4()))
    stream.send(1, [(0, 1, _START, 1.0)])
    await stream.acknowledged(1)


async def test_finish_is_durable_and_idempotent(bench: Bench) -> None:
    run_id = await bench.run()
    request = _request(run_id)
    stream = await bench.open(request)
    stream.send(1, [(0, 1, _START, 1.0)])
    await stream.acknowledged(1)
    stream.session.finish(1)
    await bench.engine.finish(stream.session)
    again = await bench.open(request)
    assert again.session.finished
    await bench.engine.finish(again.session)
    with pytest.raises(HeadraceError) as caught:
        again.send(2, [(0, 2, _START, 1.0)])
    assert caught.value.reason is Reason.WRITER_FINISHED


async def test_resync_skips_lost_records_and_counts_them(bench: Bench) -> None:
    run_id = await bench.run()
    request = _request(run_id)
    stream = await bench.open(request)
    await bench.engine.resync(stream.session, 11)
    stream.send(11, [(0, 1, _START, 1.0)])
    await stream.acknowledged(11)
    again = await bench.open(request)
    assert again.session.committed_sequence == 11
    assert again.session.counters.lost_records == 10


async def test_drain_commits_what_was_admitted_and_admits_no_more(bench: Bench) -> None:
    run_id = await bench.run()
    streams = [await bench.open(_request(run_id, rank=rank)) for rank in range(5)]
    for stream in streams:
        stream.send(1, [(0, 1, _START, 1.0)])
    drained = asyncio.create_task(bench.engine.drain(_DEADLINE_S))
    for stream in streams:
        assert await stream.ended() is None
        stream.send(2, [(0, 2, _START, 2.0)])
        bench.engine.leave(stream.session)
    assert await drained
    assert len(await bench.points(run_id)) == 5
    assert (await _refusal(bench, _request(run_id))).reason is Reason.DRAINING


@pytest.mark.parametrize("slow", ["opened", "finished"])
async def test_one_message_is_written_at_a_time_whenever_the_gateway_drains(
    slow: str, bench: Bench
) -> None:
    """gRPC refuses a second write while one is under way: the stream would end with INTERNAL."""
    set_identity(ANONYMOUS)
    wire = _SlowWire(slow)
    run_id = await bench.run()
    opening = pb.OpenWriter(run_id=run_id.hex, writer_id=uuid4().hex, incarnation=uuid4().hex)
    wire.say(pb.WriteMetricsRequest(open=opening))
    wire.say(pb.WriteMetricsRequest(finish=pb.FinishWriter()))
    stream = asyncio.create_task(MetricWriteService(bench.engine).write_metrics(None, wire))
    async with asyncio.timeout(_DEADLINE_S):
        await wire.reached.wait()
        draining = asyncio.create_task(bench.engine.drain(_DEADLINE_S))
        await asyncio.sleep(0)  # `drain` tells the streams before it waits,
        await asyncio.sleep(0)  # and what that woke has run
        wire.free.set()
        await stream
        assert await draining
    assert (
        wire.heard == {"opened": ["opened", "reconnect"], "finished": ["opened", "finished"]}[slow]
    )


async def test_a_call_that_does_not_open_counts_as_a_stream_and_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_write, "_OPEN_TIMEOUT_S", 0.2)
    set_identity(ANONYMOUS)
    engine = IngestEngine(WriterStore(bench.database), settings=IngestSettings(streams_max=1))
    service = MetricWriteService(engine)
    async with asyncio.timeout(_DEADLINE_S):
        silent = asyncio.create_task(service.write_metrics(None, _SlowWire("")))
        await asyncio.sleep(0)  # it has begun
        with pytest.raises(HeadraceError) as caught:
            await service.write_metrics(None, _SlowWire(""))
        assert caught.value.reason is Reason.OVERLOADED
        with pytest.raises(HeadraceError) as caught:
            await silent
        assert caught.value.reason is Reason.TRANSFER_STALLED
        wire = _SlowWire("")  # to which the place of the silent one is free
        run_id = await bench.run()
        opening = pb.OpenWriter(run_id=run_id.hex, writer_id=uuid4().hex, incarnation=uuid4().hex)
        wire.say(pb.WriteMetricsRequest(open=opening))
        wire.say(pb.WriteMetricsRequest(finish=pb.FinishWriter()))
        await service.write_metrics(None, wire)
    assert wire.heard == ["opened", "finished"]


class _SlowWire:
    """A StreamContext that takes one write at a time, and one kind of message only when free."""

    def __init__(self, slow: str) -> None:
        self._slow = slow
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self._writing = False
        self.reached, self.free = asyncio.Event(), asyncio.Event()
        self.heard: list[str | None] = []

    def say(self, message: pb.WriteMetricsRequest) -> None:
        self._said.put_nowait(message.SerializeToString())

    async def read(self) -> object:
        return await self._said.get()

    async def write(self, message: pb.WriteMetricsResponse) -> None:
        assert not self._writing, "a second write"
        self._writing = True
        kind = message.WhichOneof("message")
        if kind == self._slow:
            self.reached.set()
            await self.free.wait()
        self._writing = False
        self.heard.append(kind)


async def test_two_writers_that_create_the_same_series_share_it(bench: Bench) -> None:
    run_id = await bench.run()
    streams = [await bench.open(_request(run_id)) for _ in range(8)]
    for number, stream in enumerate(streams):
        stream.send(1, [(index, number, _START, 1.0) for index in range(3)])
    for stream in streams:
        await stream.acknowledged(1)
    count = await bench.admin.fetchval("SELECT count(*) FROM series WHERE run_id = $1", run_id)
    assert count == 3
    assert len(await bench.points(run_id)) == 24
