"""PostgreSQL in trouble: full, read-only, moved, crowded, fenced off, without room for its log.

The gateway must stall, not fail, and go on by itself when the trouble is over. While
it stalls, clients offer it far more than it may hold.
"""

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import asyncpg
import grpc
import psutil
import pytest

from benchmarks.site import free_port
from gateway.embedded import EmbeddedPostgres
from tests.faults.outcomes import OUTCOMES, Outcome
from tests.support.gateway_process import GatewayProcess
from tests.support.memory import Memory
from tests.support.oracle import ConnectionWatch, Oracle
from tests.support.proxy import Proxy
from tests.support.steady import Steady, steady
from tests.support.waiting import eventually_async
from tests.support.writer_stream import (
    WriterStream,
    batch,
    connected,
    create_run,
    finish,
    keys,
    opening,
)

_BUDGET: Final = 6
_CONNECTIONS_MAX: Final = 14
_CROWDING_PERIOD_S: Final = 0.05
_FREE_KIB: Final = 512

_PENDING_BYTES_MAX: Final = 4 * 2**20
_SETTINGS: Final = (
    *("--set", f"pending_bytes_max={_PENDING_BYTES_MAX}"),
    *("--set", f"stream_pending_bytes_max={_PENDING_BYTES_MAX // 2}"),
    *("--set", "flush_points_max=8192"),  # what flushes take counts to the formula's k
)
_PRESSING_STREAMS: Final = 32
_PRESSING_BATCHES: Final = 20
_BATCH_POINTS: Final = 4_096
# The formula of test_memory.py; the streams offer twice as much.
_STREAM_BYTES: Final = 2 * 128 * 1024 + 28 * _BATCH_POINTS + 60_000
_GROWTH_BYTES_MAX: Final = _PRESSING_STREAMS * _STREAM_BYTES + 5 * _PENDING_BYTES_MAX


@contextlib.contextmanager
def own_postgres(**settings: str) -> Iterator[EmbeddedPostgres]:
    """Yield a server that nobody else uses."""
    # Not pytest's directory: its long paths do not fit a Unix socket's address.
    with tempfile.TemporaryDirectory(prefix="headrace-trouble-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run under another account
        with EmbeddedPostgres(directory, settings=settings) as postgres:
            yield postgres


class Pressure:
    """Streams that were opened before the trouble and must outlive it; ranks of one run.

    Attributes:
        run_id: the run's.
        memory: of the gateway.
    """

    def __init__(self, gateway: GatewayProcess, run_id: str, streams: list[WriterStream]) -> None:
        self.run_id = run_id
        self.memory = Memory(gateway.pid)
        self._gateway = gateway
        self._streams = streams
        self._sending: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Send as much as the gateway takes; return when it takes no more."""
        messages = [
            batch(sequence, points=_BATCH_POINTS) for sequence in range(1, _PRESSING_BATCHES + 1)
        ]
        self._sending = [asyncio.create_task(stream.send(*messages)) for stream in self._streams]
        await eventually_async(
            lambda: self._gateway.metrics()["headrace_pending_bytes"] >= _PENDING_BYTES_MAX,
            "the budget is spent",
        )
        await self.memory.settled()
        self._assert_bounded()

    async def end(self) -> None:
        """Send the rest; assert that all of it arrived and that it never took too much."""
        await asyncio.gather(*self._sending)
        for stream in self._streams:
            await stream.send(finish(_PRESSING_BATCHES))
        failures = await asyncio.gather(*(stream.failure() for stream in self._streams))
        assert {failure.code for failure in failures} == {grpc.StatusCode.OK}
        self._assert_bounded()

    def _assert_bounded(self) -> None:
        grown = self.memory.grown()
        print(f"{grown >> 20} MiB of {_GROWTH_BYTES_MAX >> 20} MiB")
        assert grown < _GROWTH_BYTES_MAX


@contextlib.asynccontextmanager
async def pressure(gateway: GatewayProcess, dsn: str) -> AsyncIterator[Pressure]:
    """Yield open streams to press with; then let them end, and assert: each point once."""
    async with connected(gateway.address) as channel:
        run_id = await create_run(channel)
        streams = [WriterStream(channel) for _ in range(_PRESSING_STREAMS)]
        for rank, stream in enumerate(streams):
            await stream.send(opening(run_id, rank=rank), keys("loss"))
            await stream.read()
        pressing = Pressure(gateway, run_id, streams)
        yield pressing
        await pressing.end()
    async with Oracle(dsn) as oracle:
        (row,) = await oracle.fetch(
            "SELECT count(DISTINCT writer_no) AS writers, sum(length(point_values) / 8) AS points"
            " FROM metric_chunks WHERE run_id = $1",
            uuid.UUID(run_id),
        )
    points = _PRESSING_STREAMS * _PRESSING_BATCHES * _BATCH_POINTS
    assert (row["writers"], row["points"]) == (_PRESSING_STREAMS, points)


@dataclass(frozen=True, slots=True)
class Load:
    """What a gateway bears: a steady load, and pressure once that stalls."""

    steady: Steady
    pressure: Pressure

    async def stalled(self) -> None:
        """Return when nothing is acknowledged and the gateway is full."""
        await self.steady.stalled()
        await self.pressure.begin()

    async def recovered(self) -> None:
        """Return when every steady stream is acknowledged again."""
        await self.steady.recovered()


@contextlib.asynccontextmanager
async def loaded(
    postgres: EmbeddedPostgres, directory: Path, fault: str, *, dsn: str = ""
) -> AsyncIterator[Load]:
    """Run a gateway under load; note the outcome when it came through.

    Args:
        postgres: its database.
        directory: for logs and journals.
        fault: as the table of outcomes names it.
        dsn: leads to the database through a proxy.
    """
    dsn = dsn or postgres.dsn
    gateway = GatewayProcess(dsn, directory, arguments=_SETTINGS)
    await asyncio.to_thread(gateway.start)  # a proxy may live in this loop
    try:
        async with (
            ConnectionWatch(dsn) as watch,
            steady(gateway.address, dsn, directory) as load,
            pressure(gateway, dsn) as pressing,
        ):
            yield Load(load, pressing)
        assert watch.connections_max <= _BUDGET, watch.backends_at_max
    finally:
        gateway.kill()
    OUTCOMES.add(
        Outcome(
            fault=fault,
            points=load.points,
            lost=load.audit.lost,
            doubled=load.audit.doubled,
            recovery_s=load.recovery_s,
        )
    )


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


def _move(directory: Path, volume: Path) -> None:
    """Move a directory's content to a volume, owners and all."""
    subprocess.run(["cp", "--archive", f"{directory}/.", volume], check=True)
    shutil.rmtree(directory)
    directory.symlink_to(volume)


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


async def test_a_volume_full_of_log_that_ends_postgresql_is_survived(tmp_path: Path) -> None:
    with own_postgres(max_wal_size="64MB") as postgres, small_volume(postgres, "512m") as volume:
        data = await _data_directory(postgres)
        postgres.stop()
        _move(data / "pg_wal", volume)
        postgres.start()
        try:
            async with loaded(postgres, tmp_path, "PostgreSQL out of space for its log") as load:
                _resize(volume, f"{shutil.disk_usage(volume).used // 1024 + _FREE_KIB}k")
                await load.stalled()
                assert "PANIC" in (data.parent / "postgres.log").read_text()
                postgres.kill()  # if it has not ended: it cannot write what recovery would
                _resize(volume, "512m")
                postgres.start()
                await load.recovered()
        finally:
            postgres.kill()  # before its log is gone


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
            async with loaded(
                postgres, tmp_path, "PostgreSQL killed, back on another port", dsn=dsn
            ) as load:
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
            others: list[asyncpg.Connection] = []
            crowding = asyncio.create_task(_crowd(postgres, others))
            try:
                await load.stalled()
            finally:
                crowding.cancel()
                await asyncio.wait([crowding])
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


async def _data_directory(postgres: EmbeddedPostgres) -> Path:
    connection = await asyncpg.connect(postgres.dsn)
    try:
        return Path(await connection.fetchval("SHOW data_directory"))
    finally:
        await connection.close()


async def _end_gateway_backends(connection: asyncpg.Connection) -> int:
    """Terminate the gateway's sessions; return how many there were."""
    return int(
        await connection.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name LIKE 'headrace%'"
        )
    )


async def _crowd(postgres: EmbeddedPostgres, others: list[asyncpg.Connection]) -> NoReturn:
    """Take every connection that is free, or that the gateway has."""
    while True:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                others.append(await asyncpg.connect(postgres.dsn))
        await _end_gateway_backends(others[0])
        await asyncio.sleep(_CROWDING_PERIOD_S)
