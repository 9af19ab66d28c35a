"""Nothing is paid for twice, nothing that anybody needs is deleted."""

import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from gateway.artifacts.wiring import Artifacts, open_artifacts
from gateway.blobs.errors import UploadForgottenError
from gateway.domain.artifacts import Content, part_range
from gateway.domain.errors import HeadraceError, Reason
from gateway.store.artifacts import ArtifactStore, Target
from gateway.store.connections import Database
from tests.artifacts.conftest import MIB, BucketAccess
from tests.support.s3_faults import Fault, S3Faults

Parts = tuple[Artifacts, Database]
WORKSPACE = 0


@pytest.fixture
async def parts(database_dsn: str, bucket: BucketAccess) -> AsyncIterator[Parts]:
    """The gateway's artifacts in process."""
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=2)
    settings = bucket.settings(database_dsn, artifact_upload_expiry_s=1.0)
    try:
        async with open_artifacts(settings, database) as artifacts:
            assert artifacts is not None
            yield artifacts, database
    finally:
        await database.close()


@pytest.fixture
async def behind_faults(
    parts: Parts, database_dsn: str, bucket: BucketAccess, faults: S3Faults
) -> AsyncIterator[Parts]:
    """The same, whose S3 fails as `faults` says."""
    _, database = parts
    settings = replace(bucket, endpoint_url=faults.url).settings(database_dsn)
    async with open_artifacts(settings, database) as artifacts:
        assert artifacts is not None
        yield artifacts, database


async def target(database: Database, path: str) -> Target:
    """Make a run for an artifact."""
    run_id = uuid4()
    async with database.query() as connection:
        await connection.execute(
            "INSERT INTO runs (run_id, workspace_id, experiment_id, name) VALUES ($1, 0, 0, 'r')",
            run_id,
        )
    return Target(workspace_id=WORKSPACE, run_id=run_id, path=path, content_type="text/plain")


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 262_144):
        yield data[start : start + 262_144]


def content_of(data: bytes) -> Content:
    ranges = [part_range(len(data), n) for n in range(1, -(-len(data) // (16 * MIB)) + 1)]
    digests = [hashlib.sha256(data[at : at + size]).digest() for at, size in ranges]
    return Content(size=len(data), part_sha256s=b"".join(digests))


async def keys(artifacts: Artifacts, namespace: str) -> list[str]:
    found = []
    async with aclosing(artifacts.bucket.list_objects(namespace)) as pages:  # type: ignore[type-var]
        async for page in pages:
            found += [item.key for item in page]
    return found


async def lists_uploads_below_a_prefix(artifacts: Artifacts) -> bool:
    """Whether the server does; MinIO lists those of one whole key."""
    folder = f"{artifacts.bucket.key_prefix}listed/"
    begun = await artifacts.bucket.begin_multipart(f"{folder}x", content_type="text/plain")
    found = [item async for page in artifacts.bucket.list_multiparts(folder) for item in page]
    await artifacts.bucket.abort_multipart(f"{folder}x", begun)
    return bool(found)


async def store(artifacts: Artifacts, where: Target, data: bytes) -> None:
    await artifacts.uploads.put_small(where, content_of(data), chunks(data))


async def test_the_last_delete_takes_the_content_with_it(parts: Parts) -> None:
    artifacts, database = parts
    prefix = artifacts.bucket.key_prefix
    first, second = await target(database, "a"), await target(database, "b")
    await store(artifacts, first, b"shared")
    await store(artifacts, second, b"shared")
    assert len(await keys(artifacts, prefix)) == 1
    await artifacts.store.delete(WORKSPACE, first.run_id, "a", recursive=False)
    assert await artifacts.cleanup.sweep() == 0
    assert len(await keys(artifacts, prefix)) == 1
    await artifacts.store.delete(WORKSPACE, second.run_id, "b", recursive=False)
    assert await artifacts.cleanup.sweep() == 1
    assert await keys(artifacts, prefix) == []


async def test_replaced_content_is_deleted(parts: Parts) -> None:
    artifacts, database = parts
    where = await target(database, "a")
    for data in (b"one", b"two", b"two", b"three"):
        await store(artifacts, where, data)
    assert await artifacts.cleanup.sweep() == 2
    found = await artifacts.store.get(WORKSPACE, where.run_id, "a")
    assert await keys(artifacts, artifacts.bucket.key_prefix) == [found.object_key]


async def test_what_s3_refuses_to_delete_does_not_keep_the_rest(
    behind_faults: Parts, bucket: BucketAccess, faults: S3Faults
) -> None:
    artifacts, database = behind_faults
    found = []
    for data in (b"one", b"other"):
        where = await target(database, "a")
        await store(artifacts, where, data)
        found.append((await artifacts.store.get(WORKSPACE, where.run_id, "a")).object_key)
        await artifacts.store.delete(WORKSPACE, where.run_id, "a", recursive=False)
    # They go by key: the smaller one's comes first.
    faults.faults.append(Fault(method="DELETE", status=403, code="AccessDenied", times=1))
    with pytest.raises(HeadraceError) as caught:
        await artifacts.cleanup.sweep()
    assert caught.value.reason is Reason.BLOB_STORE_DENIED
    assert await keys(artifacts, bucket.key_prefix) == [min(found)]
    assert await artifacts.cleanup.sweep() == 1
    assert await keys(artifacts, bucket.key_prefix) == []


async def test_an_s3_that_is_away_is_not_asked_for_each_deletion(
    behind_faults: Parts, bucket: BucketAccess, faults: S3Faults
) -> None:
    artifacts, database = behind_faults
    async with database.query() as connection:
        await connection.execute(
            "INSERT INTO blob_deletions (object_key) SELECT $1 || n"
            " FROM generate_series(1, 9) AS n",
            bucket.key_prefix,
        )
    faults.faults.append(Fault(method="DELETE", status=503, code="SlowDown"))
    with pytest.raises(HeadraceError) as caught:
        await artifacts.cleanup.sweep()
    assert caught.value.reason is Reason.BLOB_STORE_UNAVAILABLE
    assert len({each.path for each in faults.requests("DELETE")}) == 1


async def test_a_folder_of_any_size_is_deleted_by_as_many_statements(database_dsn: str) -> None:
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=1)
    manifest, counts = ArtifactStore(database), []
    statements: list[str] = []
    try:
        async with database.query() as connection:
            connection.add_query_logger(lambda query: statements.append(query.query))
        for files in (50, 5_000):
            where, other = await target(database, "a"), await target(database, "b")
            await fill_folder(database, where, other, files)
            statements.clear()
            assert await manifest.delete(WORKSPACE, where.run_id, "folder", recursive=True) == files
            counts.append(len(statements))
            async with database.query() as connection:
                left = await connection.fetch(
                    "SELECT object_key, reference_count FROM blobs WHERE size = $1", files
                )
                due = await connection.fetchval(
                    "SELECT count(*) FROM blob_deletions WHERE object_key LIKE $1::bigint || '/%'",
                    files,
                )
            assert [tuple(row) for row in left] == [(f"{files}/0", 1)]
            assert due == files / 2 - 1
    finally:
        await database.close()
    assert counts[1] <= counts[0] < 20  # the first delete asks for the types of arrays too


async def fill_folder(database: Database, where: Target, other: Target, files: int) -> None:
    """Make artifacts of which every two share content; another run has the first of it."""
    async with database.query() as connection:
        await connection.execute(
            """
            INSERT INTO blobs
                (experiment_id, digest, size, object_key, part_sha256s, reference_count)
            SELECT 0, sha256(n::text::bytea), $1, $1 || '/' || n, '', 2 + (n = 0)::int
            FROM generate_series(0, $1::bigint / 2 - 1) AS n
            """,
            files,
        )
        for run_id, count in ((where.run_id, files), (other.run_id, 1)):
            await connection.execute(
                """
                INSERT INTO artifacts (run_id, path, experiment_id, digest, size, content_type)
                SELECT $1, 'folder/' || n, 0, sha256((n / 2)::text::bytea), $2, 'text/plain'
                FROM generate_series(0, $3::bigint - 1) AS n
                """,
                run_id,
                files,
                count,
            )


async def test_an_expired_upload_is_ended_with_its_parts(parts: Parts) -> None:
    artifacts, database = parts
    data = bytes(20 * MIB)
    begun = await artifacts.uploads.begin(await target(database, "a"), content_of(data))
    upload = begun.upload  # type: ignore[union-attr]
    await artifacts.uploads.put_part(
        WORKSPACE, upload.run_id, upload.upload_id, 2, chunks(data[16 * MIB :])
    )
    async with database.query() as connection:
        await connection.execute("UPDATE uploads SET progressed_at = now() - interval '2 s'")
    assert await artifacts.cleanup.sweep() == 1
    assert [page async for page in artifacts.bucket.list_multiparts(upload.object_key)] in (
        [],
        [[]],
    )
    async with database.query() as connection:
        assert await connection.fetchval("SELECT count(*) FROM uploads") == 0
        assert await connection.fetchval("SELECT count(*) FROM upload_parts") == 0


async def test_the_reconciler_shows_orphans_and_spares_what_is_under_way(parts: Parts) -> None:
    artifacts, database = parts
    namespace = await artifacts.store.namespace()
    stored = await target(database, "a")
    await store(artifacts, stored, b"kept")
    under_way = await artifacts.uploads.begin(
        await target(database, "b"), content_of(bytes(20 * MIB))
    )
    orphan = f"{artifacts.bucket.key_prefix}{namespace}/{uuid4().hex}/{uuid4().hex}"
    data = b"nobody knows me"
    await artifacts.bucket.put(
        orphan, chunks(data), size=len(data), sha256=hashlib.sha256(data).digest()
    )
    lost = f"{orphan}-parts"
    await artifacts.bucket.begin_multipart(lost, content_type="text/plain")
    foreign = f"{artifacts.bucket.key_prefix}another-database/x/y"
    await artifacts.bucket.put(
        foreign, chunks(data), size=len(data), sha256=hashlib.sha256(data).digest()
    )

    young = await artifacts.cleanup.reconcile(dry_run=True, older_than_s=3_600)
    assert (young.orphan_object_count, young.orphan_upload_count) == (0, 0)
    shown = await artifacts.cleanup.reconcile(dry_run=True, older_than_s=-60)
    lost_uploads = (lost,) if await lists_uploads_below_a_prefix(artifacts) else ()
    assert (shown.orphan_objects, shown.orphan_uploads) == ((orphan,), lost_uploads)
    assert shown.missing_object_count == 0
    assert await artifacts.bucket.size(orphan) is not None
    removed = await artifacts.cleanup.reconcile(dry_run=False, older_than_s=-60)
    assert removed.removed
    assert await artifacts.bucket.size(orphan) is None
    again = await artifacts.cleanup.reconcile(dry_run=True, older_than_s=-60)
    assert (again.orphan_object_count, again.orphan_upload_count) == (0, 0)
    assert await artifacts.bucket.size(foreign) == len(data)
    # What is under way was left alone, and can still be finished.
    upload = under_way.upload  # type: ignore[union-attr]
    for number in (1, 2):
        _, length = part_range(20 * MIB, number)
        await artifacts.uploads.put_part(
            WORKSPACE, upload.run_id, upload.upload_id, number, chunks(bytes(length))
        )
    await artifacts.uploads.complete(WORKSPACE, upload.run_id, upload.upload_id)


async def test_a_second_multipart_upload_to_a_key_is_an_orphan_and_the_one_that_counts_is_not(
    parts: Parts,
) -> None:
    """Two gateways began it at the same time; the one that came second died."""
    artifacts, database = parts
    if not await lists_uploads_below_a_prefix(artifacts):
        pytest.skip("this S3 server lists the unfinished uploads of one key only, not of a prefix")
    data = bytes(20 * MIB)
    begun = await artifacts.uploads.begin(await target(database, "a"), content_of(data))
    upload = begun.upload  # type: ignore[union-attr]
    second = await artifacts.bucket.begin_multipart(upload.object_key, content_type="text/plain")
    assert upload.s3_upload_id is not None
    report = await artifacts.cleanup.reconcile(dry_run=False, older_than_s=-60)
    assert report.orphan_uploads == (upload.object_key,)
    with pytest.raises(UploadForgottenError):
        await artifacts.bucket.list_parts(upload.object_key, second)
    assert await artifacts.bucket.list_parts(upload.object_key, upload.s3_upload_id) == {}
    # Nor does it hide behind the content that the first became.
    third = await artifacts.bucket.begin_multipart(upload.object_key, content_type="text/plain")
    for number, length in ((1, 16 * MIB), (2, 4 * MIB)):
        await artifacts.uploads.put_part(
            WORKSPACE, upload.run_id, upload.upload_id, number, chunks(bytes(length))
        )
    await artifacts.uploads.complete(WORKSPACE, upload.run_id, upload.upload_id)
    report = await artifacts.cleanup.reconcile(dry_run=False, older_than_s=-60)
    assert (report.orphan_objects, report.orphan_uploads) == ((), (upload.object_key,))
    with pytest.raises(UploadForgottenError):
        await artifacts.bucket.list_parts(upload.object_key, third)


async def test_content_whose_object_is_gone_is_reported(parts: Parts) -> None:
    artifacts, database = parts
    where = await target(database, "a")
    await store(artifacts, where, b"will vanish")
    found = await artifacts.store.get(WORKSPACE, where.run_id, "a")
    await artifacts.bucket.delete(found.object_key)
    report = await artifacts.cleanup.reconcile(dry_run=True, older_than_s=0)
    assert report.missing_objects == (found.object_key,)


async def test_the_command_only_reports_by_default(
    parts: Parts, database_dsn: str, bucket: BucketAccess, tmp_path: Path
) -> None:
    artifacts, _ = parts
    namespace = await artifacts.store.namespace()
    orphan = f"{artifacts.bucket.key_prefix}{namespace}/orphan"
    await artifacts.bucket.put(orphan, chunks(b"x"), size=1, sha256=hashlib.sha256(b"x").digest())
    command = [sys.executable, "-m", "gateway.cli", "artifacts", "reconcile"]
    arguments = ["--dsn", database_dsn, "--older-than-s", "-60", "--json"]
    for more in ([], ["--remove"]):
        done = subprocess.run(  # noqa: ASYNC221 - nothing else runs
            [*command, *arguments, *more],
            env=bucket.variables(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout)["orphan_objects"] == [orphan]
    assert await artifacts.bucket.size(orphan) is None


async def test_runs_of_another_workspace_do_not_exist(parts: Parts) -> None:
    artifacts, database = parts
    where = await target(database, "a")
    await store(artifacts, where, b"private")
    for call in (
        artifacts.store.get(7, where.run_id, "a"),
        artifacts.store.delete(7, where.run_id, "a", recursive=False),
        artifacts.uploads.abort(7, where.run_id, uuid4()),
    ):
        with pytest.raises(HeadraceError) as caught:
            await call
        assert caught.value.reason is Reason.RUN_NOT_FOUND
