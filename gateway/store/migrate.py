"""Migrations: the files of `migrations/sql`, in order, by Alembic.

A migration is one file `NNNN_what_it_does.sql`; its number is the revision,
the number before it the parent. Adding one is adding a file. Files are
append-only: what was released is never edited. They only go forward, and each
must leave the previous gateway version able to run (expand, later contract),
since several gateways share a database while they are upgraded.

All pending files run in one transaction under an advisory lock: gateways that
start together migrate once, and a failure leaves the schema as it was.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import asyncpg

from gateway.config import SettingsError
from gateway.domain.errors import HeadraceError, Reason

_DIRECTORY: Final = Path(str(resources.files("gateway.store"))) / "migrations"
_FILE: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
# Any constant of our own; "headrace" in ASCII, read as an integer.
_ADVISORY_LOCK: Final = int.from_bytes(b"headrace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file: its revision (`0001`), its name without suffix, and its path."""

    revision: str
    name: str
    path: Path


def migrations() -> list[Migration]:
    """Return all migrations, ascending.

    Raises:
        ValueError: a file is misnamed, or the numbers are not 0001, 0002, ….
    """
    found = []
    for number, path in enumerate(sorted((_DIRECTORY / "sql").glob("*.sql")), start=1):
        match = _FILE.fullmatch(path.name)
        if match is None or int(match[1]) != number:
            raise ValueError(f"{path.name}: expected the name {number:04d}_what_it_does.sql")
        found.append(Migration(revision=match[1], name=path.stem, path=path))
    return found


async def current(connection: asyncpg.Connection) -> str | None:
    """Return the database's revision; None when it was never migrated."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return revision


async def pending(connection: asyncpg.Connection) -> list[Migration]:
    """Return the migrations that the database lacks, ascending.

    Empty also when the database is ahead of this gateway, as it is in the
    middle of an upgrade of several.
    """
    revision = await current(connection) or "0000"
    return [migration for migration in migrations() if migration.revision > revision]


async def migrate(dsn: str) -> list[Migration]:
    """Apply what is pending and return it.

    Raises:
        HeadraceError: STORE_UNAVAILABLE when the database cannot be reached;
            INTERNAL, naming the file, when a migration fails.
        SettingsError: the driver does not take the DSN.
    """
    connection = await _connect(dsn)
    try:
        todo = await pending(connection)
    finally:
        await connection.close()
    if not todo:
        return []  # the usual start pays neither for Alembic nor for the lock
    return await _upgrade(dsn)


async def _connect(dsn: str) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(
            dsn, timeout=10, server_settings={"application_name": "headrace-migrate"}
        )
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise HeadraceError(
            Reason.STORE_UNAVAILABLE, f"PostgreSQL cannot be reached: {error}"
        ) from error
    except ValueError as error:
        # The driver's own errors name what it refuses; Python's quote what may be a secret.
        told = str(error) if isinstance(error, asyncpg.ClientConfigurationError) else "its form"
        raise SettingsError([f"PostgreSQL's driver refuses the dsn: {told}"]) from None


async def _upgrade(dsn: str) -> list[Migration]:
    # Half a second of imports that only a migration pays for.
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: _connect(dsn), poolclass=NullPool
    )
    applied: list[Migration] = []
    try:
        async with engine.begin() as connection:
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            await connection.run_sync(_run, applied)
    finally:
        await engine.dispose()
    return applied


def _run(connection: Any, applied: list[Migration]) -> None:
    from alembic.config import Config  # noqa: PLC0415
    from alembic.runtime.environment import EnvironmentContext  # noqa: PLC0415
    from alembic.script import Script, ScriptDirectory  # noqa: PLC0415
    from alembic.script.revision import RevisionMap  # noqa: PLC0415

    def execute(migration: Migration) -> None:
        # Alembic's own execute prepares, and a prepared statement is a single one.
        sql = migration.path.read_text(encoding="utf-8")
        try:
            connection.connection.dbapi_connection.run_async(lambda raw: raw.execute(sql))
        except asyncpg.PostgresError as error:
            raise HeadraceError(
                Reason.INTERNAL, f"migration {migration.path.name} failed: {error}"
            ) from error
        applied.append(migration)

    def revisions() -> Iterable[Script]:
        parent = None
        for migration in migrations():
            module = ModuleType(migration.name)
            module.revision = migration.revision  # type: ignore[attr-defined]
            module.down_revision = parent  # type: ignore[attr-defined]
            module.upgrade = lambda migration=migration: execute(migration)  # type: ignore[attr-defined]
            yield Script(module, migration.revision, migration.path)
            parent = migration.revision

    scripts = ScriptDirectory(_DIRECTORY)
    scripts.revision_map = RevisionMap(revisions)
    environment = EnvironmentContext(
        Config(), scripts, fn=lambda revision, _: scripts._upgrade_revs("head", revision)
    )
    environment.configure(connection=connection)
    environment.run_migrations()
