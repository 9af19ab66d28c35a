"""The gateway of the demo, and a view of its database that survives its restarts."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from pathlib import Path
from typing import Final

import asyncpg

from gateway.embedded import EmbeddedPostgres

START_DEADLINE_S: Final = 120.0
INGEST_CONNECTIONS: Final = 2
QUERY_CONNECTIONS: Final = 4
CONNECTIONS_BUDGET: Final = INGEST_CONNECTIONS + QUERY_CONNECTIONS

DATABASE_DOWN: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the connection broke inside a statement
)


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Gateway:
    """`headrace-gateway serve --embedded`, which can be killed and started again.

    Attributes:
        address: host:port of gRPC, the same across restarts.
    """

    def __init__(self, directory: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._directory = directory
        self._process: Process | None = None

    async def start(self) -> None:
        """Start it; return when it takes connections.

        Raises:
            RuntimeError: it does not start; the message ends with its log.
        """
        log_path = self._directory / "logs" / "gateway.log"
        with log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                Path(sys.executable).with_name("headrace-gateway"), "serve",
                "--embedded", str(self._directory / "gateway"),
                "--listen", self.address,
                stdout=log, stderr=log,
                env={
                    **os.environ,
                    "HEADRACE_GATEWAY_METRICS_LISTEN": "off",
                    "HEADRACE_GATEWAY_INGEST_CONNECTIONS": str(INGEST_CONNECTIONS),
                    "HEADRACE_GATEWAY_QUERY_CONNECTIONS": str(QUERY_CONNECTIONS),
                },
            )  # fmt: skip
        deadline = time.monotonic() + START_DEADLINE_S
        host, port = self.address.split(":")
        while True:
            with contextlib.suppress(OSError):
                _reader, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                return
            if self._process.returncode is not None or time.monotonic() > deadline:
                tail = log_path.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the gateway did not start: {tail}")
            await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """Kill it with SIGKILL: no farewell, no drain."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> None:
        """Stop it politely."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


class Observer:
    """One connection of our own to the gateway's database, reopened when it breaks.

    Attributes:
        stored_points: the points committed, when last seen.
        runs_open: the runs that have not ended, when last seen.
        connections: the gateway's database connections, when last seen.
        connections_max: the most ever seen; `backends` says which those were.
    """

    def __init__(self, directory: Path) -> None:
        self.stored_points = 0
        self.runs_open = 0
        self.connections = 0
        self.connections_max = 0
        self.backends: list[str] = []
        self._directory = directory / "gateway"
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    async def connection(self) -> asyncpg.Connection:
        """Return a live connection.

        Raises:
            OSError, asyncpg.PostgresError: the database is down right now.
        """
        if self._connection is None or self._connection.is_closed():
            dsn = EmbeddedPostgres(self._directory).dsn  # its address and password stand in a file
            self._connection = await asyncpg.connect(
                dsn, timeout=2, server_settings={"application_name": "demo observer"}
            )
        return self._connection

    async def look(self) -> None:
        """Refresh the numbers; keep the old ones while the database is down."""
        async with self._turn:
            try:
                connection = await self.connection()
                backends = await connection.fetch(
                    "SELECT concat_ws(' ', application_name, pid, state) AS backend"
                    " FROM pg_stat_activity WHERE backend_type = 'client backend'"
                    " AND application_name LIKE 'headrace%' ORDER BY backend_start"
                )
                self.connections = len(backends)
                row = await connection.fetchrow(
                    "SELECT (SELECT coalesce(sum(accepted_points), 0)::bigint FROM writers),"
                    " (SELECT count(*) FROM runs WHERE state = 1)"
                )
                self.stored_points, self.runs_open = row
            except DATABASE_DOWN:
                self.connections = 0
                backends = []
                if self._connection is not None:
                    self._connection.terminate()
                    self._connection = None
        if self.connections > self.connections_max:
            self.connections_max = self.connections
            self.backends = [row["backend"] for row in backends]

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.terminate()
