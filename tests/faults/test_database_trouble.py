"""PostgreSQL in trouble that is not its death: full, read-only, moved, crowded, fenced off.

The gateway must stall, not fail, and go on by itself when the trouble is over.
"""

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import asyncpg
import psutil
import pytest

from benchmarks.site import free_port
from gateway.embedded import EmbeddedPostgres
from tests.faults.outcomes import OUTCOMES, Outcome
from tests.support.gateway_process import GatewayProcess
from tests.support.oracle import ConnectionWatch
from tests.support.proxy import Proxy
from tests.support.steady import Steady, steady

_BUDGET: Final = 6
_CONNECTIONS_MAX: Final = 14
_FREE_KIB: Final = 512


@contextlib.contextmanager
def own_postgres(**settings: str) -> Iterator[EmbeddedPostgres]:
    """Yield a server that nobody else uses."""
    # Not pytest's directory: its long paths do not fit a Unix socket's address.
    with tempfile.TemporaryDirectory(prefix="headrace-trouble-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run under another account
        with EmbeddedPostgres(directory, settings=settings) as postgres:
            yield postgres


@contextlib.asynccontextmanager
async def loaded(
    postgres: EmbeddedPostgres, directory: Path, fault: str, *, dsn: str = ""
) -> AsyncIterator[Steady]:
    """Run a gateway under a steady load; note the outcome when it came through.

    Args:
        postgres: its database.
        directory: for logs and journals.
        fault: as the table of outcomes names it.
        dsn: leads to the database through a proxy.
    """
    dsn = dsn or postgres.dsn
    gateway = GatewayProcess(dsn, directory)
    await asyncio.to_thread(gateway.start)  # a proxy may live in this loop
    try:
        async with (
            ConnectionWatch(dsn) as watch,
            steady(gateway.address, dsn, directory) as load,
        ):
            yield load
        assert watch.connections_max <= _BUDGET, watch.backends_at_max
    finally:
        gateway.kill()
    OUTCOMES.add(Outcome(fault=fault, points=load.points, recovery_s=load.recovery_s))


async def administer(postgres: EmbeddedPostgres, *statements: str) -> None:
    """Execute statements, each by itself."""
    connection = await asyncpg.connect(postgres.dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@contextlib.contextmanager
def small_volume(postgres: EmbeddedPostgres, size: str) -> Iterator[Path]:
    """Mount a small file system of the server's account; skip where that is not permitted."""
    account = psutil.Process(postgres.pid).uids().real
    with tempfile.TemporaryDirectory(prefix="headrace-volume-") as name:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},uid={account}", "headrace", name],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip("a small file system cannot be mounted here: it takes root")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def _resize(volume: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(volume)], check=True)


async def test_a_full_disk_stalls_ingest_until_there_is_room(tmp_path: Path) -> None:
    with own_postgres() as postgres, small_volume(postgres, "6m") as volume:
        async with loaded(postgres, tmp_path, "PostgreSQL out of disk space") as load:
            # Under a lock of its own: the tables move while the load goes on.
            await administer(
                postgres,
                f"CREATE TABLESPACE small LOCATION '{volume}'",
                "ALTER TABLE loose_chunks SET TABLESPACE small",
            )
            # What is free then lasts for seconds, however much the table had before.
            _resize(volume, f"{shutil.disk_usage(volume).used // 1024 + _FREE_KIB}k")
            await load.stalled()
            _resize(volume, "512m")
            await load.recovered()
            await administer(postgres, "ALTER TABLE loose_chunks SET TABLESPACE pg_default")
            await load.recovered()
        await administer(postgres, "DROP TABLESPACE small")


async def test_a_read_only_database_stalls_ingest_until_it_is_writable(tmp_path: Path) -> None:
    with own_postgres() as postgres:
        async with loaded(postgres, tmp_path, "PostgreSQL read-only") as load:
            await administer(
                postgres,
                "ALTER SYSTEM SET default_transaction_read_only = on",
                "SELECT pg_reload_conf()",
            )
            await load.stalled()
            connection = await asyncpg.connect(
                postgres.dsn, server_settings={"default_transaction_read_only": "off"}
            )
            await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await connection.execute("SELECT pg_reload_conf()")
            await connection.close()
            await load.recovered()


async def test_a_failover_to_another_port_is_followed(tmp_path: Path) -> None:
    with own_postgres() as postgres:
        async with Proxy("127.0.0.1", postgres.port, postgres=True) as wire:
            dsn = postgres.dsn.replace(f":{postgres.port}/", f":{wire.port}/")
            async with loaded(postgres, tmp_path, "PostgreSQL failing over", dsn=dsn) as load:
                postgres.kill()
                await load.stalled()
                postgres.port = free_port()
                postgres.start()
                wire.target = ("127.0.0.1", postgres.port)
                wire.cut()
                await load.recovered()


async def test_a_server_without_free_connections_is_waited_for(tmp_path: Path) -> None:
    with own_postgres(max_connections=str(_CONNECTIONS_MAX)) as postgres:
        async with loaded(postgres, tmp_path, "max_connections used up by others") as load:
            others = [await asyncpg.connect(postgres.dsn)]
            try:
                while await _end_gateway_backends(others[0]):
                    await _take_all(postgres, others)
                await load.stalled()
            finally:
                for connection in others:
                    connection.terminate()
            await load.recovered()


async def test_a_database_whose_sessions_are_shut_out_is_waited_for(tmp_path: Path) -> None:
    with own_postgres() as postgres:
        async with loaded(postgres, tmp_path, "logins refused") as load:
            admin = await asyncpg.connect(
                postgres.dsn.rpartition("/")[0] + "/postgres",
                server_settings={"application_name": "administrator"},
            )
            try:
                await admin.execute("ALTER DATABASE headrace ALLOW_CONNECTIONS false")
                await _end_gateway_backends(admin)
                await load.stalled()
            finally:
                await admin.execute("ALTER DATABASE headrace ALLOW_CONNECTIONS true")
                await admin.close()
            await load.recovered()


async def _end_gateway_backends(connection: asyncpg.Connection) -> int:
    """Terminate the gateway's sessions; return how many there were."""
    return int(
        await connection.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name LIKE 'headrace%'"
        )
    )


async def _take_all(postgres: EmbeddedPostgres, others: list[asyncpg.Connection]) -> None:
    """Connect until the server has no room left."""
    with contextlib.suppress(asyncpg.TooManyConnectionsError):
        while True:
            others.append(await asyncpg.connect(postgres.dsn))
