"""A purge takes everything of a run, nothing of any other, and leaves a tombstone."""

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest
from headrace.v1 import metric_service_pb2 as metrics_pb
from headrace.v1 import metric_service_pb2_grpc as metrics_grpc
from headrace.v1 import run_service_pb2 as pb

from gateway.domain.errors import StoreUnavailableError
from gateway.store import purge as purge_module
from gateway.store.connections import Database
from gateway.store.purge import PurgeStore
from gateway.store.queries import load
from gateway.telemetry import METRICS
from gateway.upkeep.purger import Purged, Purger
from gateway.upkeep.throttle import Throttle
from tests.support.chunks import StoredRun
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import eventually_async
from tests.support.writer_stream import WriterStream, batch, keys, opening
from tests.tracker.conftest import failure, param, stubs
from tests.upkeep.compaction import compactor, make_live, raw_points

DEADLINE_S = 60.0


def purger(database: Database, *, grace_s: float = 60.0) -> Purger:
    throttle = Throttle(time_share_max=1, seconds=METRICS.purge_seconds)
    return Purger(PurgeStore(database), grace_s=grace_s, throttle=throttle)


async def fill(connection: asyncpg.Connection, points: int = 50) -> StoredRun:
    """A run with rows in every table."""
    run = await StoredRun.create(connection)
    run_id = run.run_id
    await make_live(connection, run_id)
    writer = await run.writer()
    for step in range(points):
        await run.commit(writer, [(key, step, step, 1.0) for key in "ab"])
    owned = {
        "late_marks": "(run_id, series_id, attempt, last_step) VALUES ($1, 1, 1, 1)",
        "run_params": "(run_id, experiment_id, key, value) VALUES ($1, 0, 'k', 'v')",
        "run_tags": "(run_id, experiment_id, key, value) VALUES ($1, 0, 'k', 'v')",
        "run_summary": "(run_id, key, number) VALUES ($1, 'k', 1)",
        "run_facts": "(run_id, name, value) VALUES ($1, 'k', 'v')",
        "run_notes": "(run_id, notes) VALUES ($1, 'n')",
        "run_metrics": "VALUES ($1, 0, 'a', 0, 1, 1, 1, 1, 1, 1)",
        "run_datasets": "(run_id, name, digest, context, source_type, source, schema, profile)"
        " VALUES ($1, 'd', '', '', '', '', '', '')",
        "artifacts": "(run_id, path, experiment_id, digest, size, content_type)"
        " VALUES ($1, 'f', 0, '\\x01', 1, '')",
        "uploads": "(run_id, upload_id, path, experiment_id, digest, size, content_type,"
        " part_sha256s, object_key, resumable)"
        " VALUES ($1, $1, 'u', 0, '\\x02', 1, '', '', 'upload/' || $1::uuid, true)",
        "upload_parts": "(run_id, upload_id, part_number, etag) VALUES ($1, $1, 1, '')",
    }
    await connection.execute(
        "INSERT INTO merged_chunks SELECT * FROM loose_chunks WHERE run_id = $1 LIMIT 1", run_id
    )
    for table, values in owned.items():
        await connection.execute(f"INSERT INTO {table} {values}", run_id)
    await connection.execute(
        "INSERT INTO blobs (experiment_id, digest, size, object_key, part_sha256s, reference_count)"
        " VALUES (0, '\\x01', 1, 'blob', '', 1)"
        " ON CONFLICT (experiment_id, digest, size) DO UPDATE SET"
        " reference_count = blobs.reference_count + 1"
    )
    return run


async def delete(connection: asyncpg.Connection, run_id: UUID, *, days: int = 1) -> None:
    await connection.execute(
        "UPDATE runs SET state = 2, ended_at = now() - make_interval(days => $2),"
        " deleted_at = now() - make_interval(days => $2) WHERE run_id = $1",
        run_id,
        days,
    )


async def waits_for_a_lock(database: Database) -> bool:
    async with database.query() as connection:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )


async def rows_of(connection: asyncpg.Connection, run_id: UUID) -> dict[str, int]:
    """Return how many rows each table has of a run."""
    tables = await connection.fetch(
        "SELECT c.table_name FROM information_schema.columns c"
        " JOIN information_schema.tables t USING (table_schema, table_name)"
        " WHERE c.column_name = 'run_id' AND t.table_type = 'BASE TABLE'"
        " AND c.table_schema = 'public'"
    )
    return {
        table: await connection.fetchval(f"SELECT count(*) FROM {table} WHERE run_id = $1", run_id)
        for (table,) in tables
    }


async def test_everything_of_a_run_goes_and_nothing_of_another(
    connection: asyncpg.Connection, database: Database
) -> None:
    gone, kept = await fill(connection), await fill(connection)
    before = await rows_of(connection, gone.run_id)
    assert all(before.values()), before
    await delete(connection, gone.run_id)
    progress: list[int] = []
    done = await purger(database).purge(progress=lambda so_far: progress.append(so_far.rows))
    assert done.runs == 1
    # The writer went in the first transaction, the upload with its part in one step.
    assert done.rows == sum(before.values()) - before["runs"] - before["writers"] - 1
    assert progress == sorted(progress)
    after = await rows_of(connection, gone.run_id)
    assert after.pop("runs") == 1
    assert not any(after.values()), after
    assert await rows_of(connection, kept.run_id) == before
    tombstone = await connection.fetchrow("SELECT * FROM runs WHERE run_id = $1", gone.run_id)
    assert tombstone["purged_at"] is not None
    assert (tombstone["purge_started_at"], tombstone["name"]) == (None, "")
    # The other run still refers to the content; the upload's object is to be deleted.
    deletions = await connection.fetch("SELECT object_key FROM blob_deletions")
    assert [row["object_key"] for row in deletions] == [f"upload/{gone.run_id}"]
    await delete(connection, kept.run_id)
    await purger(database).purge()
    assert await connection.fetchval("SELECT count(*) FROM blobs") == 0
    assert await connection.fetchval("SELECT true FROM blob_deletions WHERE object_key = 'blob'")


async def test_only_what_was_deleted_long_enough_ago_goes(
    connection: asyncpg.Connection, database: Database
) -> None:
    spared = {
        name: await StoredRun.create(connection)
        for name in (
            "not deleted",
            "deleted just now",
            "deleted long ago, ended just now",
            "running",
            "protected",
            "parent of a run that stays",
        )
    }
    for run in spared.values():
        await delete(connection, run.run_id)
    ids = {name: run.run_id for name, run in spared.items()}
    await connection.execute(
        "UPDATE runs SET deleted_at = NULL WHERE run_id = $1", ids["not deleted"]
    )
    await connection.execute(
        "UPDATE runs SET deleted_at = now() WHERE run_id = $1", ids["deleted just now"]
    )
    await connection.execute(
        "UPDATE runs SET ended_at = now() WHERE run_id = $1",
        ids["deleted long ago, ended just now"],
    )
    await connection.execute(
        "UPDATE runs SET state = 1, ended_at = NULL WHERE run_id = $1", ids["running"]
    )
    await connection.execute(
        "INSERT INTO run_tags VALUES ($1, 0, 'headrace.protected', '')", ids["protected"]
    )
    child = await StoredRun.create(connection)
    await connection.execute(
        "UPDATE runs SET parent_run_id = $2 WHERE run_id = $1",
        child.run_id,
        ids["parent of a run that stays"],
    )
    assert (await purger(database).purge()).runs == 0
    for run_id in ids.values():  # nor by who looked before it changed
        assert not await PurgeStore(database).begin(run_id, grace_s=60)
    await delete(connection, child.run_id)
    assert (await purger(database).purge()).runs == 2  # first the nested one


async def test_a_job_whose_run_was_deleted_has_the_whole_grace_period_from_its_end(
    connection: asyncpg.Connection, database: Database
) -> None:
    run = await fill(connection)
    await delete(connection, run.run_id, days=31)
    days_30 = purger(database, grace_s=30 * 86_400)
    ended = "UPDATE runs SET ended_at = now() - make_interval(days => $2) WHERE run_id = $1"
    for days in (0, 29):
        await connection.execute(ended, run.run_id, days)
        assert await days_30.purge() == Purged()
    await connection.execute(ended, run.run_id, 30)
    assert (await days_30.purge()).runs == 1


async def test_a_kill_between_batches_loses_no_place(
    connection: asyncpg.Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge_module, "_ROWS_MAX", 7)
    run = await fill(connection)
    await delete(connection, run.run_id)

    def stop_after_20_rows(so_far: Purged) -> None:
        if so_far.rows > 20:
            raise StoreUnavailableError("gone")

    with pytest.raises(StoreUnavailableError):
        await purger(database).purge(progress=stop_after_20_rows)
    left = await rows_of(connection, run.run_id)
    assert 0 < left["loose_chunks"] < 100
    assert await PurgeStore(database).begun() == [run.run_id]
    assert (await purger(database).purge()).runs == 1
    after = await rows_of(connection, run.run_id)
    assert (after.pop("runs"), sum(after.values())) == (1, 0)


async def test_who_waited_for_another_purge_does_not_end_it(
    connection: asyncpg.Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge_module, "_ROWS_MAX", 10)
    run = await fill(connection, 150)  # 300 chunks
    await delete(connection, run.run_id)
    assert await PurgeStore(database).begin(run.run_id, grace_s=60)
    async with asyncio.timeout(DEADLINE_S):
        async with connection.transaction():
            await connection.execute(load("purge")["delete_loose_chunks"], run.run_id, 10)
            second = asyncio.create_task(purger(database).purge())
            await eventually_async(lambda: waits_for_a_lock(database))
        # The first one stops here. The second found its ten rows gone and left the rest to it.
        assert (await second).runs == 0
    assert (await rows_of(connection, run.run_id))["loose_chunks"] == 290
    assert await PurgeStore(database).begun() == [run.run_id]
    assert (await purger(database).purge()).runs == 1
    after = await rows_of(connection, run.run_id)
    assert (after.pop("runs"), sum(after.values())) == (1, 0)


async def test_a_purge_ends_once_and_not_while_any_table_has_a_row(
    connection: asyncpg.Connection, database: Database
) -> None:
    run = await fill(connection)
    await delete(connection, run.run_id)
    store = PurgeStore(database)
    assert await store.begin(run.run_id, grace_s=60)
    left = {table for table, count in (await rows_of(connection, run.run_id)).items() if count}
    left.remove("runs")
    assert len(left) >= 17
    for table in left:
        rolled_back = connection.transaction()
        await rolled_back.start()
        for other in left - {table}:
            await connection.execute(f"DELETE FROM {other} WHERE run_id = $1", run.run_id)
        assert await connection.fetchval(load("purge")["end"], run.run_id) is None, table
        await rolled_back.rollback()
    async for _ in store.remove(run.run_id):
        assert await store.begun() == [run.run_id]
    assert await asyncio.gather(*(store.end(run.run_id) for _ in range(2))) in (
        [True, False],
        [False, True],
    )
    assert await store.begun() == []


async def test_two_purges_a_compactor_and_other_runs_keep_out_of_each_others_way(
    connection: asyncpg.Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge_module, "_ROWS_MAX", 10)
    doomed = [await fill(connection, 30) for _ in range(6)]
    kept = await fill(connection, 300)
    before = await raw_points(connection, kept.run_id)
    for run in doomed:
        await delete(connection, run.run_id)
    await connection.execute(
        "UPDATE runs SET state = 2, ended_at = now() - interval '1 day' WHERE run_id = $1",
        kept.run_id,
    )

    async def compact() -> None:
        for _ in range(5):
            await compactor(database).compact_once()

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(purger(database).purge(), purger(database).purge(), compact())
    await purger(database).purge()  # whoever was locked out
    for run in doomed:
        after = await rows_of(connection, run.run_id)
        assert (after.pop("runs"), sum(after.values())) == (1, 0)
    assert await raw_points(connection, kept.run_id) == before
    assert await connection.fetchval("SELECT reference_count FROM blobs") == 1


async def test_whoever_comes_late_meets_the_tombstone(
    gateway: GatewayProcess, database: Database
) -> None:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        tracker = stubs(channel)
        run_id = await tracker.create_run("team/tests/purged")
        async with WriterStream(channel) as stream:
            await stream.send(opening(run_id), keys("loss"), batch(1))
            await stream.read_until(1)
            await tracker.runs.FinishRun(pb.FinishRunRequest(run_id=run_id))
            await tracker.runs.DeleteRun(pb.DeleteRunRequest(run_id=run_id))
            assert (await purger(database, grace_s=0).purge()).runs == 1
            # A stream that was open all the while stores nothing more ...
            await stream.send(keys("new", first=1), batch(2, series_index=[1]))
            ended = await stream.failure()
        assert ended.reason == "STORE_UNAVAILABLE"  # which lets it open again
        async with database.query() as connection:
            after = await rows_of(connection, UUID(run_id))
        assert (after.pop("runs"), sum(after.values())) == (1, 0), after
        # ... and whatever asks for the run is told what became of it.
        async with WriterStream(channel) as late:
            await late.send(opening(run_id))
            assert (await late.failure()).reason == "RUN_PURGED"
        calls: list[Any] = [
            tracker.runs.CreateRun(
                pb.CreateRunRequest(run_id=run_id, experiment="team/tests/purged")
            ),
            tracker.runs.GetRun(pb.GetRunRequest(run_id=run_id)),
            tracker.runs.UpdateRun(_renaming(run_id)),
            tracker.runs.FinishRun(pb.FinishRunRequest(run_id=run_id)),
            tracker.runs.ReopenRun(pb.ReopenRunRequest(run_id=run_id)),
            tracker.runs.HeartbeatRun(pb.HeartbeatRunRequest(run_id=run_id)),
            tracker.write(run_id, param("a", "1")),
            tracker.runs.DeleteRun(pb.DeleteRunRequest(run_id=run_id)),
            tracker.runs.RestoreRun(pb.RestoreRunRequest(run_id=run_id)),
            metrics_grpc.MetricServiceStub(channel).ListSeries(
                metrics_pb.ListSeriesRequest(run_id=run_id)
            ),
        ]
        for call in calls:
            assert (await failure(call)).reason == "RUN_PURGED"
        assert not await tracker.search(
            experiments=["team/tests/purged"], visibility=pb.VISIBILITY_ALL
        )


def _renaming(run_id: str) -> pb.UpdateRunRequest:
    request = pb.UpdateRunRequest(run_id=run_id, run=pb.Run(name="new"))
    request.update_mask.paths.append("name")
    return request
