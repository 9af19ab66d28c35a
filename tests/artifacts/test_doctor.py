"""The doctor names what is wrong and what to change."""

import json
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from gateway.artifacts.wiring import bucket_settings
from gateway.blobs.bucket import Bucket
from gateway.cli import main
from gateway.config import Settings
from gateway.doctor import diagnose, healthy
from gateway.domain.findings import Finding, Health
from tests.artifacts.conftest import BucketAccess
from tests.conftest import run_apart
from tests.support.command import run_command
from tests.support.s3_faults import Fault, S3Faults


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


async def execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_sound_bucket_is_all_green(database_dsn: str, bucket: BucketAccess) -> None:
    findings = await diagnose(bucket.settings(database_dsn))
    of_s3 = [finding for finding in findings if "S3" in finding.check]
    assert len(of_s3) >= 10
    assert [finding for finding in of_s3 if finding.health is not Health.GOOD] == []


@pytest.mark.parametrize(
    ("method", "query", "check", "permission"),
    [
        ("PUT", "", "S3 PutObject", "s3:PutObject"),
        ("DELETE", "", "S3 DeleteObject", "s3:DeleteObject"),
        ("DELETE", "uploadId", "S3 AbortMultipartUpload", "s3:AbortMultipartUpload"),
        ("GET", "uploadId", "S3 ListParts", "s3:ListMultipartUploadParts"),
        ("POST", "uploadId", "S3 CompleteMultipartUpload", "s3:PutObject"),
        ("GET", "list-type", "S3 ListObjectsV2", "s3:ListBucket"),
    ],
)
async def test_a_missing_permission_is_named_with_its_remedy(  # noqa: PLR0917 - pytest's names
    database_dsn: str, bucket: BucketAccess, faults: S3Faults,
    method: str, query: str, check: str, permission: str,
) -> None:  # fmt: skip
    faults.faults.append(
        Fault(method=method, query=query, status=403, code="AccessDenied", probes=True)
    )
    through = replace(bucket, endpoint_url=faults.url)
    finding = by_check(await diagnose(through.settings(database_dsn)))[check]
    assert finding.health is Health.BAD
    assert finding.found == permission
    assert f"grant {permission}" in finding.remedy


async def test_the_doctor_leaves_nothing_behind(database_dsn: str, bucket: BucketAccess) -> None:
    settings = bucket.settings(database_dsn)
    await diagnose(settings)
    async with Bucket(bucket_settings(settings)) as opened:
        objects = [item async for page in opened.list_objects(bucket.key_prefix) for item in page]
        uploads = [
            item async for page in opened.list_multiparts(bucket.key_prefix) for item in page
        ]
    assert (objects, uploads) == ([], [])


async def test_a_missing_bucket_and_bad_credentials_are_told_apart(
    database_dsn: str, bucket: BucketAccess
) -> None:
    missing = replace(bucket, bucket="no-such-bucket-here")
    finding = by_check(await diagnose(missing.settings(database_dsn)))["S3 bucket"]
    assert "does not exist" in finding.remedy
    stranger = replace(bucket, access_key_id="stranger", secret_access_key="x" * 20)
    finding = by_check(await diagnose(stranger.settings(database_dsn)))["S3 bucket"]
    assert finding.health is Health.BAD
    nobody = replace(bucket, endpoint_url="http://127.0.0.1:9")
    finding = by_check(await diagnose(nobody.settings(database_dsn)))["S3 bucket"]
    assert "cannot serve" in finding.remedy


async def test_settings_that_risk_points_are_bad_and_slow_ones_are_warnings(
    database_dsn: str,
) -> None:
    name = database_dsn.rpartition("/")[2]
    await execute(database_dsn, f"ALTER DATABASE {name} SET synchronous_commit = off")
    found = by_check(await diagnose(Settings(dsn=database_dsn)))
    assert found["synchronous_commit"].health is Health.BAD
    assert found["fsync"].health is Health.BAD  # of the tests' own server
    assert found["shared_buffers"].health is Health.WARN
    assert found["migrations"].health is Health.GOOD
    assert found["PostgreSQL version"].health is Health.GOOD
    assert found["max_connections"].health is Health.GOOD
    assert not healthy(list(found.values()))


async def test_too_small_a_max_connections_and_missing_privileges_are_bad(
    database_dsn: str,
) -> None:
    greedy = Settings(dsn=database_dsn, ingest_connections=64, query_connections=256)
    finding = by_check(await diagnose(greedy))["max_connections"]
    assert finding.health is Health.BAD
    assert "max_connections =" in finding.remedy
    role = f"poor_{database_dsn.rpartition('/')[2]}"
    await execute(database_dsn, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        host = database_dsn.rpartition("@")[2]
        found = by_check(await diagnose(Settings(dsn=f"postgresql://{role}:x@{host}")))
    finally:
        await execute(database_dsn, f"DROP ROLE {role}")
    assert any(f"TO {role}" in finding.remedy for finding in found.values())


async def test_a_role_that_may_not_read_the_view_of_all_chunks_is_not_fit(
    database_dsn: str,
) -> None:
    role = f"blind_{database_dsn.rpartition('/')[2]}"
    settings = Settings(dsn=f"postgresql://{role}:x@{database_dsn.rpartition('@')[2]}")
    await execute(
        database_dsn,
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        # Of the views the gateway reads the first only, and it writes to none.
        f"REVOKE SELECT ON metric_chunks, metric_points_raw, metric_points FROM {role}",
        f"REVOKE INSERT, UPDATE, DELETE ON metric_chunks FROM {role}",
    )
    try:
        blind = by_check(await diagnose(settings))["privileges"]
        await execute(database_dsn, f"GRANT SELECT ON metric_chunks TO {role}")
        seeing = by_check(await diagnose(settings))["privileges"]
    finally:
        await execute(database_dsn, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    assert (blind.health, blind.found) == (Health.BAD, "missing: SELECT on metric_chunks")
    assert f"TO {role}" in blind.remedy
    assert seeing.health is Health.GOOD


def test_the_command_prints_json_and_exits_by_what_it_found(
    database_dsn: str, bucket: BucketAccess
) -> None:
    def call(dsn: str) -> tuple[int, dict[str, Any]]:
        done = run_command(main, "doctor", "--dsn", dsn, "--json", environment=bucket.variables())
        return done.returncode, json.loads(done.stdout)

    status, report = call(database_dsn)
    bad = [each["check"] for each in report["findings"] if each["health"] == "bad"]
    assert bad == ["fsync"]  # of the tests' own server
    assert (status, report["healthy"]) == (1, False)
    status, report = call("postgresql://127.0.0.1:9/nothing")
    assert status == 1
    assert report["findings"][0]["check"] == "PostgreSQL"


def test_an_unmigrated_database_is_bad(database_dsn: str) -> None:
    run_apart(execute(database_dsn, "UPDATE alembic_version SET version_num = '0001'"))
    finding = by_check(run_apart(diagnose(Settings(dsn=database_dsn))))["migrations"]
    assert finding.health is Health.BAD
    assert "headrace-gateway migrate" in finding.remedy
