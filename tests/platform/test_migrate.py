"""Migrations run once, in order, whole or not at all, however many gateways start together."""

import asyncio
import shutil
from pathlib import Path

import asyncpg
import pytest

from gateway.domain.errors import HeadraceError, Reason
from gateway.embedded import EmbeddedPostgres
from gateway.store import migrate
from tests.conftest import run_apart


@pytest.fixture
def empty_dsn(postgres: EmbeddedPostgres) -> str:
    async def create() -> None:
        connection = await asyncpg.connect(postgres.dsn)
        await connection.execute("DROP DATABASE IF EXISTS unmigrated WITH (FORCE)")
        await connection.execute("CREATE DATABASE unmigrated")
        await connection.close()

    run_apart(create())
    return postgres.dsn.rpartition("/")[0] + "/unmigrated"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the migrations, to add to; returns its `sql` folder."""
    copy = tmp_path / "migrations"
    shutil.copytree(migrate._DIRECTORY, copy)
    monkeypatch.setattr(migrate, "_DIRECTORY", copy)
    return copy / "sql"


async def revision(dsn: str) -> str | None:
    connection = await asyncpg.connect(dsn)
    try:
        return await migrate.current(connection)
    finally:
        await connection.close()


async def test_gateways_that_start_together_migrate_once(empty_dsn: str) -> None:
    applied = await asyncio.gather(*(migrate.migrate(empty_dsn) for _ in range(4)))
    assert sorted(len(one) for one in applied) == [0, 0, 0, len(migrate.migrations())]
    assert await revision(empty_dsn) == migrate.migrations()[-1].revision


async def test_a_migrated_database_has_nothing_pending(database_dsn: str) -> None:
    assert await migrate.migrate(database_dsn) == []


async def test_a_failing_migration_leaves_nothing_behind(empty_dsn: str, directory: Path) -> None:
    number = len(migrate.migrations()) + 1
    broken = directory / f"{number:04d}_broken.sql"
    broken.write_text("CREATE TABLE half (); SELECT nonsense;")
    with pytest.raises(HeadraceError, match=broken.name) as failed:
        await migrate.migrate(empty_dsn)
    assert failed.value.reason is Reason.INTERNAL
    assert await revision(empty_dsn) is None
    broken.write_text("CREATE TABLE half (); SELECT 1;")
    assert [one.name for one in await migrate.migrate(empty_dsn)][-1] == broken.stem


async def test_a_database_ahead_of_the_gateway_is_left_alone(database_dsn: str) -> None:
    connection = await asyncpg.connect(database_dsn)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    assert await migrate.migrate(database_dsn) == []


def test_misnumbered_files_are_refused(directory: Path) -> None:
    (directory / "0099_gap.sql").write_text("SELECT 1;")
    with pytest.raises(ValueError, match="0099_gap"):
        migrate.migrations()


async def test_an_unreachable_database_is_said_to_be() -> None:
    with pytest.raises(HeadraceError) as failed:
        await migrate.migrate("postgresql://nobody@127.0.0.1:1/none")
    assert failed.value.reason is Reason.STORE_UNAVAILABLE
