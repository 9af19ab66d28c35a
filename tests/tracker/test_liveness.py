"""A run that falls silent is LOST, comes back when it speaks, and no outage counts against it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from headrace.v1 import run_service_pb2 as pb

from gateway.domain.runs import RunState
from gateway.embedded import EmbeddedPostgres
from gateway.store import liveness, run_metrics, summaries
from gateway.store.connections import Database
from gateway.store.liveness import LivenessStore, Refresh
from gateway.store.migrate import migrate
from gateway.store.runs import RunStore
from tests.conftest import NewDatabase, run_apart
from tests.support.chunks import StoredRun, StoredWriter
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import eventually_async
from tests.support.writer_stream import WriterStream, batch, finish, keys, opening
from tests.tracker.conftest import stubs

LEASE_S = 100.0
GAP_MAX_S = 20.0


class Clock:
    """Moves the database's memory instead of waiting."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def heard(self, run_id: uuid.UUID, seconds_ago: float) -> None:
        await self._connection.execute(
            "UPDATE run_heartbeats SET heartbeat_at = now() - make_interval(secs => $2)"
            " WHERE run_id = $1",
            run_id,
            seconds_ago,
        )

    async def swept(self, seconds_ago: float, *, leases_from: float = 10_000) -> None:
        await self._connection.execute(
            "UPDATE sweeps SET swept_at = now() - make_interval(secs => $1),"
            " leases_from = now() - make_interval(secs => $2)",
            seconds_ago,
            leases_from,
        )

    async def run(self) -> uuid.UUID:
        run_id = uuid.uuid4()
        await self._connection.execute(
            "INSERT INTO runs (run_id, workspace_id, experiment_id, name) VALUES ($1, 0, 0, '')",
            run_id,
        )
        await self._connection.execute("INSERT INTO run_heartbeats VALUES ($1, now())", run_id)
        return run_id

    async def logged(self, *, resumed: bool = False) -> tuple[StoredRun, StoredWriter]:
        """A live run that logs `k`; where it is resumed, at step 5 of 9."""
        run = await StoredRun.create(self._connection)
        await self._connection.execute("INSERT INTO run_heartbeats VALUES ($1, now())", run.run_id)
        writer = await run.writer()
        await run.commit(writer, [("k", step, step, float(step)) for step in range(10)])
        if resumed:
            await run.attempt(2, resume_step=5)
            writer = await run.writer(attempt=2)
        return run, writer

    async def due(self, run_id: uuid.UUID) -> None:
        """Let a run be the next that is refreshed."""
        await self._connection.execute(
            "UPDATE run_heartbeats SET refreshed_at = '-infinity' WHERE run_id = $1", run_id
        )

    async def row(self, run_id: uuid.UUID) -> tuple[int, int, float, float]:
        """What searches know of `k`: its points, last step, last and greatest value."""
        row = await self._connection.fetchrow(
            "SELECT point_count, last_step, last_value, max_value FROM run_metrics"
            " WHERE run_id = $1 AND key = 'k'",
            run_id,
        )
        return tuple(row)

    async def waiting(self) -> bool:
        """Whether a statement waits for a lock."""
        return bool(
            await self._connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )

    async def state(self, run_id: uuid.UUID) -> RunState:
        return RunState(
            await self._connection.fetchval("SELECT state FROM runs WHERE run_id = $1", run_id)
        )

    async def live(self) -> int:
        return int(
            await self._connection.fetchval("SELECT count(*) FROM run_heartbeats WHERE live")
        )


@pytest.fixture
async def clock(database_dsn: str) -> AsyncIterator[Clock]:
    connection = await asyncpg.connect(database_dsn)
    yield Clock(connection)
    await connection.close()


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=3)
    yield database
    await database.close()


@pytest.fixture
def leases(database: Database) -> LivenessStore:
    return LivenessStore(database, lease_s=LEASE_S, gap_max_s=GAP_MAX_S)


@pytest.fixture
def hasty(database: Database) -> LivenessStore:
    """The same, and a refresh may take half a second."""
    return LivenessStore(database, lease_s=LEASE_S, gap_max_s=GAP_MAX_S, refresh_timeout_s=0.5)


async def finish_run(database: Database, run: StoredRun, *, attempt: int = 1) -> None:
    _, applied = await RunStore(database).finish(
        run.run_id, workspace_id=0, attempt=attempt, state=RunState.FINISHED
    )
    assert applied


async def with_news(clock: Clock, leases: LivenessStore, *, resumed: bool) -> list[StoredRun]:
    """Make two runs that searches know, and commit to each what they do not know yet."""
    logged = [await clock.logged(resumed=resumed) for _ in range(2)]
    await leases.refresh_some(delay_s=0)
    for run, writer in logged:
        await run.commit(writer, [("k", 10, 10, 10.0)])
        await clock.due(run.run_id)
    return [run for run, _ in logged]


@contextlib.asynccontextmanager
async def held(dsn: str, run: StoredRun) -> AsyncIterator[None]:
    """Lock a run's search rows, so that no refresh of it comes to its end."""
    other = await asyncpg.connect(dsn)
    try:
        async with other.transaction():
            locked = "SELECT FROM run_metrics WHERE run_id = $1 FOR UPDATE"
            assert await other.fetch(locked, run.run_id)
            yield
    finally:
        await other.close()


async def test_a_run_is_lost_when_its_lease_is_over_and_not_before(
    clock: Clock, leases: LivenessStore
) -> None:
    silent, speaking = await clock.run(), await clock.run()
    await clock.heard(silent, LEASE_S + 1)
    await clock.heard(speaking, LEASE_S - 1)
    await clock.swept(5)
    sweep = await leases.sweep()
    assert sweep is not None
    assert (sweep.lost, sweep.restarted) == (1, False)
    assert await clock.state(silent) is RunState.LOST
    assert await clock.state(speaking) is RunState.RUNNING
    await leases.refresh_some(delay_s=0)
    assert await clock.live() == 1  # the next sweep looks at the speaking one only


async def test_an_outage_lets_every_lease_begin_anew(clock: Clock, leases: LivenessStore) -> None:
    run_id = await clock.run()
    await clock.heard(run_id, 86_400)
    await clock.swept(86_400)
    sweep = await leases.sweep()
    assert sweep is not None
    assert (sweep.lost, sweep.restarted) == (0, True)
    # From then on it has the whole lease.
    await clock.swept(5, leases_from=LEASE_S - 1)
    assert (await leases.sweep()) is not None
    assert await clock.state(run_id) is RunState.RUNNING
    await clock.swept(5, leases_from=LEASE_S + 1)
    await leases.sweep()
    assert await clock.state(run_id) is RunState.LOST


async def test_runs_that_ended_are_never_lost(clock: Clock, leases: LivenessStore) -> None:
    run_id = await clock.run()
    await clock._connection.execute("UPDATE runs SET state = 2, ended_at = now()")
    await clock.heard(run_id, 86_400)
    await clock.swept(5)
    await leases.sweep()
    await leases.refresh_some(delay_s=0)
    assert await clock.state(run_id) is RunState.FINISHED
    assert await clock.live() == 0


async def test_a_run_is_looked_at_until_it_is_lost(clock: Clock, leases: LivenessStore) -> None:
    run_id = await clock.run()
    await clock.heard(run_id, LEASE_S + 1)
    await clock.swept(5)
    await leases.refresh_some(delay_s=0)  # before the sweep that will find it silent
    assert await clock.live() == 1
    await leases.sweep()
    assert await clock.state(run_id) is RunState.LOST
    assert await leases.refresh_some(delay_s=0) == Refresh(runs=1, failed=0)
    assert await clock.live() == 0


@pytest.mark.parametrize("resumed", [False, True])
async def test_runs_are_lost_whatever_becomes_of_their_last_refresh(
    *,
    resumed: bool,
    clock: Clock,
    database_dsn: str,
    leases: LivenessStore,
    hasty: LivenessStore,
) -> None:
    stuck, other = await with_news(clock, leases, resumed=resumed)
    for run in (stuck, other):
        await clock.heard(run.run_id, LEASE_S + 1)
    async with held(database_dsn, stuck):
        for _ in range(2):
            await clock.swept(5)
            sweep = await hasty.sweep()
            assert sweep is not None
            assert not sweep.restarted
            await hasty.refresh_some(delay_s=0)
        for run in (stuck, other):
            assert await clock.state(run.run_id) is RunState.LOST
        points = 6 if resumed else 11
        assert await clock.row(other.run_id) == (points, 10, 10.0, 10.0)
        assert (await clock.row(stuck.run_id))[0] < points
        assert await clock.live() == 1  # the stuck one
    await clock.due(stuck.run_id)
    assert await leases.refresh_some(delay_s=0) == Refresh(runs=1, failed=0)
    assert await clock.row(stuck.run_id) == (points, 10, 10.0, 10.0)
    assert await clock.live() == 0


async def test_of_two_gateways_one_sweeps(database_dsn: str, leases: LivenessStore) -> None:
    connection = await asyncpg.connect(database_dsn)
    async with connection.transaction():
        await connection.fetch("SELECT FROM sweeps FOR UPDATE")
        assert await leases.sweep() is None
    assert await leases.sweep() is not None
    await connection.close()


async def test_of_two_gateways_one_refreshes_a_run(
    clock: Clock, database_dsn: str, leases: LivenessStore
) -> None:
    run_id = await clock.run()
    other = await asyncpg.connect(database_dsn)
    async with other.transaction():
        await other.fetch("SELECT FROM run_heartbeats WHERE run_id = $1 FOR UPDATE", run_id)
        assert await leases.refresh_some(delay_s=0) == Refresh(runs=0, failed=0)
    assert await leases.refresh_some(delay_s=0) == Refresh(runs=1, failed=0)
    assert await leases.refresh_some(delay_s=0) == Refresh(runs=0, failed=0)
    await other.close()


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_run_that_cannot_be_refreshed_keeps_no_other_from_it(
    *,
    resumed: bool,
    clock: Clock,
    database_dsn: str,
    leases: LivenessStore,
    hasty: LivenessStore,
) -> None:
    stuck, other = await with_news(clock, leases, resumed=resumed)
    async with held(database_dsn, stuck):
        assert await hasty.refresh_some(delay_s=0) == Refresh(runs=1, failed=1)
        assert (await clock.row(other.run_id))[1:] == (10, 10.0, 10.0)
        # Put off: it does not take the time of others again and again.
        await clock.heard(stuck.run_id, 0)
        assert await hasty.refresh_some(delay_s=0) == Refresh(runs=0, failed=0)
    await clock.heard(stuck.run_id, -LEASE_S - 1)
    await clock.due(stuck.run_id)
    assert await hasty.refresh_some(delay_s=0) == Refresh(runs=1, failed=0)
    assert (await clock.row(stuck.run_id))[1:] == (10, 10.0, 10.0)


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_run_ends_whatever_becomes_of_its_last_refresh(
    *,
    resumed: bool,
    clock: Clock,
    database: Database,
    database_dsn: str,
    leases: LivenessStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_metrics, "_AT_THE_END_S", 0.5)
    run, writer = await clock.logged(resumed=resumed)
    await leases.refresh_some(delay_s=0)
    await run.commit(writer, [("k", 10, 10, 10.0)])
    async with held(database_dsn, run):
        await finish_run(database, run, attempt=writer.attempt)
        assert await clock.state(run.run_id) is RunState.FINISHED
        assert (await clock.row(run.run_id))[1] < 10
    assert await leases.refresh_some(delay_s=0) == Refresh(runs=1, failed=0)
    assert await clock.row(run.run_id) == (6 if resumed else 11, 10, 10.0, 10.0)


async def test_an_older_refresh_does_not_undo_what_the_end_of_a_run_has_stored(
    clock: Clock, database: Database, database_dsn: str, leases: LivenessStore
) -> None:
    (earlier, _), (later, writer) = sorted(
        [await clock.logged(), await clock.logged()], key=lambda made: made[0].run_id
    )
    await leases.refresh_some(delay_s=0)
    for run in (earlier, later):
        await clock.due(run.run_id)
    async with held(database_dsn, earlier):
        older = asyncio.create_task(leases.refresh_some(delay_s=0))
        await eventually_async(clock.waiting)  # it has read both runs
        await later.commit(writer, [("k", 10, 10, 10.0)])
        await finish_run(database, later)
        assert await clock.row(later.run_id) == (11, 10, 10.0, 10.0)
    assert await older == Refresh(runs=2, failed=0)
    assert await clock.row(later.run_id) == (11, 10, 10.0, 10.0)


async def test_a_resumed_run_whose_refresh_takes_long_is_refreshed_less_often(
    clock: Clock, leases: LivenessStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, writer = await clock.logged(resumed=True)
    await run.commit(writer, [("k", 5, 5, 5.0)])
    monkeypatch.setattr(liveness, "_REST_FACTOR", 10_000)  # of some milliseconds
    assert await leases.refresh_some(delay_s=0) == Refresh(runs=1, failed=0)
    await clock.heard(run.run_id, 0)
    assert await leases.refresh_some(delay_s=0) == Refresh(runs=0, failed=0)
    assert await clock.row(run.run_id) == (6, 5, 5.0, 5.0)


async def test_where_points_are_hidden_the_newer_refresh_waits_for_the_older(
    clock: Clock, database: Database, leases: LivenessStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, writer = await clock.logged(resumed=True)
    has_read, go_on = asyncio.Event(), asyncio.Event()
    read = summaries.cut_summaries

    async def read_and_dawdle(*arguments: Any) -> Any:
        found = await read(*arguments)
        has_read.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(run_metrics, "cut_summaries", read_and_dawdle)
    older = asyncio.create_task(leases.refresh_some(delay_s=0))
    await has_read.wait()
    await run.commit(writer, [("k", 5, 5, -1.0)])
    newer = asyncio.create_task(finish_run(database, run, attempt=2))
    await eventually_async(clock.waiting)
    go_on.set()
    await asyncio.gather(older, newer)
    assert await clock.row(run.run_id) == (6, 5, -1.0, 4.0)


async def test_a_sweep_reads_live_runs_only(database_dsn: str, leases: LivenessStore) -> None:
    connection = await asyncpg.connect(database_dsn)
    await connection.execute(
        "INSERT INTO run_heartbeats (run_id, heartbeat_at, live)"
        " SELECT gen_random_uuid(), now() - interval '1 day', n % 1000 = 0"
        " FROM generate_series(1, 20000) n"
    )
    await connection.execute("ANALYZE run_heartbeats")
    plan = await connection.fetch(
        "EXPLAIN SELECT run_id FROM run_heartbeats WHERE live AND heartbeat_at < now() LIMIT 500"
    )
    assert "run_heartbeats_live" in "\n".join(row[0] for row in plan)
    await connection.close()


@pytest.fixture(scope="module")
def impatient(
    new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    arguments = ["--set", "lease_s=2", "--set", "search_refresh_s=0.4"]
    directory = tmp_path_factory.mktemp("impatient")
    with new_database() as dsn, GatewayProcess(dsn, directory, arguments=arguments) as process:
        yield process


async def test_a_lost_run_returns_when_it_is_heard_of(impatient: GatewayProcess) -> None:
    async with grpc.aio.insecure_channel(impatient.address) as channel:
        tracker = stubs(channel)
        run_id = await tracker.create_run()

        async def lost() -> bool:
            return bool((await tracker.run(run_id)).state == pb.RUN_STATE_LOST)

        await eventually_async(lost)
        run = await tracker.run(run_id)
        assert run.end_time == run.heartbeat_time
        await tracker.runs.HeartbeatRun(pb.HeartbeatRunRequest(run_id=run_id))
        run = await tracker.run(run_id)
        assert run.state == pb.RUN_STATE_RUNNING
        assert not run.HasField("end_time")
        await eventually_async(lost)
        # Points on a stream say so too.
        async with WriterStream(channel) as stream:
            await stream.send(opening(run_id), keys("k"), batch(1))
            await stream.read_until(1)

            async def running() -> bool:
                return bool((await tracker.run(run_id)).state == pb.RUN_STATE_RUNNING)

            await eventually_async(running)


async def test_an_outage_of_the_gateway_loses_no_run(database_dsn: str, tmp_path: Path) -> None:
    arguments = ["--set", "lease_s=3"]
    with GatewayProcess(database_dsn, tmp_path, arguments=arguments) as process:
        async with grpc.aio.insecure_channel(process.address) as channel:
            run_id = await stubs(channel).create_run()
        process.kill()
        await asyncio.sleep(4)  # the outage itself: longer than the lease
        process.start()
        async with grpc.aio.insecure_channel(process.address) as channel:
            tracker = stubs(channel)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                assert (await tracker.run(run_id)).state == pb.RUN_STATE_RUNNING
                await asyncio.sleep(0.05)


async def test_an_outage_of_the_database_loses_no_run(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # noqa: ASYNC240
    with EmbeddedPostgres(tmp_path / "pg") as postgres:
        run_apart(migrate(postgres.dsn))
        with GatewayProcess(postgres.dsn, tmp_path, arguments=["--set", "lease_s=3"]) as process:
            async with grpc.aio.insecure_channel(process.address) as channel:
                tracker = stubs(channel)
                run_id = await tracker.create_run()
                postgres.stop()
                await asyncio.sleep(4)  # the outage itself
                postgres.start()

                async def reachable() -> bool:
                    try:
                        await tracker.run(run_id)
                    except grpc.aio.AioRpcError:
                        return False
                    return True

                await eventually_async(reachable)
                deadline = time.monotonic() + 1.5
                while time.monotonic() < deadline:
                    assert (await tracker.run(run_id)).state == pb.RUN_STATE_RUNNING
                    await asyncio.sleep(0.05)


async def test_searches_see_metrics_within_the_delay_and_exactly_at_the_end(
    impatient: GatewayProcess,
) -> None:
    async with grpc.aio.insecure_channel(impatient.address) as channel:
        tracker = stubs(channel)
        run_id = await tracker.create_run()
        async with WriterStream(channel) as stream:
            await stream.send(opening(run_id, rank=1), keys("k"), batch(1, value=[7.0]))
            await stream.read_until(1)

            async def seen() -> bool:
                await tracker.runs.HeartbeatRun(pb.HeartbeatRunRequest(run_id=run_id))
                found = await tracker.search(filter="metrics.k = 7", include_data=True)
                return [run.run_id for run in found] == [run_id]

            await eventually_async(seen)
            await stream.send(batch(2, value=[3.0]), finish(2))
            assert (await stream.failure()).code is grpc.StatusCode.OK
        await tracker.runs.FinishRun(pb.FinishRunRequest(run_id=run_id))
        (metric,) = (await tracker.run(run_id)).metrics
        assert (metric.last, metric.min, metric.max) == (3.0, 3.0, 7.0)
        assert (metric.last_step, metric.point_count, metric.rank) == (2, 2, 1)
        assert await tracker.search(filter="metrics.k.max = 7 AND metrics.k.step = 2")


async def test_hidden_points_do_not_count(impatient: GatewayProcess) -> None:
    async with grpc.aio.insecure_channel(impatient.address) as channel:
        tracker = stubs(channel)
        run_id = await tracker.create_run()
        for attempt, columns in (
            (1, {"step": [1, 2, 3], "value": [1.0, 9.0, 9.0]}),
            (2, {"step": [2, 3, 4], "value": [2.0, 2.5, 2.25]}),
        ):
            async with WriterStream(channel) as stream:
                resume = {"resume_step": 2} if attempt == 2 else {}
                await stream.send(
                    opening(run_id, attempt=attempt, **resume),
                    keys("k"),
                    batch(1, points=3, **columns),
                    finish(1),
                )
                assert (await stream.failure()).code is grpc.StatusCode.OK
        await tracker.runs.FinishRun(pb.FinishRunRequest(run_id=run_id, attempt=2))
        (metric,) = (await tracker.run(run_id)).metrics
        assert (metric.min, metric.max, metric.last, metric.point_count) == (1.0, 2.5, 2.25, 4)
