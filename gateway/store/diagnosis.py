"""Whether this PostgreSQL is fit for ingest: version, privileges, budget, settings.

Looks and never changes anything. Recommended values are those of the embedded
server, whose comments say why.
"""

import time
from typing import Final

import asyncpg

from gateway.domain.errors import HeadraceError
from gateway.domain.findings import Finding, Health, good
from gateway.store import migrate
from gateway.store.connections import Database, translate
from gateway.store.queries import load

_SQL: Final = load("diagnosis")
_VERSION_MIN: Final = 160_000
_CLOCK_SKEW_MAX_S: Final = 5.0
_UNITS: Final = {"8kB": 8_192, "kB": 1_024, "MB": 1_048_576, "ms": 0.001, "s": 1, "min": 60}

_MUST: Final = {
    # Acknowledged means durable: with these off, a power loss takes it back.
    "fsync": ({"on"}, "ALTER SYSTEM SET fsync = on"),
    "full_page_writes": ({"on"}, "ALTER SYSTEM SET full_page_writes = on"),
    "synchronous_commit": (
        {"on", "local", "remote_write", "remote_apply"},
        "ALTER ROLE … SET synchronous_commit = on: acknowledged points must be durable",
    ),
    "autovacuum": ({"on"}, "ALTER SYSTEM SET autovacuum = on"),
}
_AT_LEAST: Final = {
    # Few checkpoints: each is followed by full-page images of every hot page.
    "max_wal_size": (4 * 2**30, "ALTER SYSTEM SET max_wal_size = '4GB'"),
    "checkpoint_timeout": (15 * 60, "ALTER SYSTEM SET checkpoint_timeout = '15min'"),
    "checkpoint_completion_target": (0.9, "ALTER SYSTEM SET checkpoint_completion_target = 0.9"),
    "wal_buffers": (16 * 2**20, "ALTER SYSTEM SET wal_buffers = '32MB' (and restart)"),
    "shared_buffers": (256 * 2**20, "ALTER SYSTEM SET shared_buffers = '256MB' or more"),
}
_AT_MOST: Final = {
    "autovacuum_naptime": (60, "ALTER SYSTEM SET autovacuum_naptime = '15s'"),
    "autovacuum_vacuum_cost_delay": (
        0.002,
        "ALTER SYSTEM SET autovacuum_vacuum_cost_delay = '1ms'",
    ),
}
_RESERVED: Final = ("superuser_reserved_connections", "reserved_connections")


async def diagnose_connected(database: Database, *, connections_budget: int) -> list[Finding]:
    """Check the database of a gateway through one of its own query connections."""
    try:
        async with database.query() as connection:
            return await _examine(connection, connections_budget)
    except HeadraceError as error:
        return [_unreachable(error.message)]


async def diagnose(dsn: str, *, connections_budget: int) -> list[Finding]:
    """Check one database over a connection of its own: not from within a gateway.

    Args:
        dsn: the gateway's.
        connections_budget: the connections that all its workers open together.
    """
    try:
        database = await Database.connect(
            dsn, ingest_connections=0, query_connections=1, application_name="headrace-doctor"
        )
    except HeadraceError as error:
        return [_unreachable(str(error))]
    except (OSError, asyncpg.PostgresError, ValueError) as error:
        return [_unreachable(str(translate(error)))]
    try:
        return await diagnose_connected(database, connections_budget=connections_budget)
    finally:
        await database.close()


async def _examine(connection: asyncpg.Connection, budget: int) -> list[Finding]:
    before = time.time()
    server = await connection.fetchrow(_SQL["get_server"])
    skew_s = server["clock_s"] - (before + time.time()) / 2
    names = [*_MUST, *_AT_LEAST, *_AT_MOST, *_RESERVED, "max_connections"]
    rows = await connection.fetch(_SQL["get_settings"], names)
    settings = {row["name"]: row for row in rows}
    others = await connection.fetchval(_SQL["count_other_connections"])
    missing = await connection.fetch(_SQL["list_missing_privileges"])
    try:
        pending = await migrate.pending(connection)
        migrations = [_migrations([migration.name for migration in pending], server)]
    except asyncpg.InsufficientPrivilegeError:
        migrations = []  # the privileges below say why nobody can tell
    return [
        _version(server["version_number"], server["version"]),
        *migrations,
        _privileges([f"{row['privilege']} on {row['table_name']}" for row in missing], server),
        _connections(settings, budget, others),
        *_values(settings),
        _clock(skew_s),
    ]


def _unreachable(message: str) -> Finding:
    return Finding(
        check="PostgreSQL",
        health=Health.BAD,
        found=message,
        remedy="check --dsn: host, port, database, user and password",
    )


def _version(number: int, text: str) -> Finding:
    if number >= _VERSION_MIN:
        return good("PostgreSQL version", text)
    return Finding(
        check="PostgreSQL version",
        health=Health.BAD,
        found=text,
        remedy="use PostgreSQL 16 or newer",
    )


def _migrations(pending: list[str], server: asyncpg.Record) -> Finding:
    if not pending:
        return good("migrations", "up to date")
    remedy = "headrace-gateway migrate (or start `serve`, which does it)"
    if not server["can_create"]:
        remedy = f"GRANT CREATE ON SCHEMA public TO {server['user_name']}, then {remedy}"
    return Finding(
        check="migrations", health=Health.BAD, found=f"pending: {', '.join(pending)}", remedy=remedy
    )


def _privileges(missing: list[str], server: asyncpg.Record) -> Finding:
    if not missing:
        return good(
            "privileges",
            f"{server['user_name']} may read and write every table, and read metric_chunks",
        )
    return Finding(
        check="privileges",
        health=Health.BAD,
        found=f"missing: {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}",
        remedy="GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
        f" TO {server['user_name']}",
    )


def _connections(settings: dict[str, asyncpg.Record], budget: int, others: int) -> Finding:
    reserved = sum(int(settings[name]["setting"]) for name in _RESERVED if name in settings)
    most = int(settings["max_connections"]["setting"])
    free = most - reserved - others
    found = f"{most}, {reserved} of them reserved, {others} used by others; we need {budget}"
    if free >= budget:
        return good("max_connections", found)
    return Finding(
        check="max_connections",
        health=Health.BAD,
        found=found,
        remedy=f"ALTER SYSTEM SET max_connections = {most + budget - free} (and restart), or lower"
        " ingest_connections and query_connections",
    )


def _values(settings: dict[str, asyncpg.Record]) -> list[Finding]:
    findings = []
    for name, (allowed, remedy) in _MUST.items():
        value = settings[name]["setting"]
        fit = value in allowed
        findings.append(
            good(name, value)
            if fit
            else Finding(check=name, health=Health.BAD, found=value, remedy=remedy)
        )
    bounds = [(name, *bound, 1) for name, bound in _AT_LEAST.items()]
    bounds += [(name, *bound, -1) for name, bound in _AT_MOST.items()]
    for name, bound, remedy, sign in bounds:
        row = settings[name]
        fit = sign * float(row["setting"]) * _UNITS.get(row["unit"] or "", 1) >= sign * bound
        findings.append(
            good(name, row["shown"])
            if fit
            else Finding(check=name, health=Health.WARN, found=row["shown"], remedy=remedy)
        )
    return findings


def _clock(skew_s: float) -> Finding:
    found = f"{abs(skew_s):.1f} s apart"
    if abs(skew_s) <= _CLOCK_SKEW_MAX_S:
        return good("clock of PostgreSQL", found)
    return Finding(
        check="clock of PostgreSQL",
        health=Health.WARN,
        found=found,
        remedy="synchronise both clocks (NTP): leases and expiries depend on them",
    )
