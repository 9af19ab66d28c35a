"""The servers that a run of benchmarks measures: PostgreSQL and a gateway beside it.

Both live in one temporary directory and end with the benchmark. The gateway is
a process of its own, started by its command line with default settings, so
that it is measured as users run it; the baselines talk to the same PostgreSQL
over the same kind of connection.
"""

import asyncio
import atexit
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Self

import asyncpg
import psutil

from gateway import config
from gateway.embedded import EmbeddedPostgres, EmbeddedS3
from gateway.store.migrate import migrate

START_DEADLINE_S: Final = 60.0
WATCH_INTERVAL_S: Final = 0.05
_MEMORY: Final = Path("/dev/shm")

_TABLES: Final = ("loose_chunks", "merged_chunks", "writer_summaries", "series", "writers")
"""What streams write."""
_PASSWORD: Final = secrets.token_hex(16)
_VACUUM_DEADLINE_S: Final = 30.0
_VACUUMS: Final = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker'"

GATEWAY_BACKENDS: Final = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'
      AND application_name LIKE 'headrace%'
"""


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _copy_cluster(directory: Path) -> None:
    """Give a directory a database that is migrated already.

    It is made once and copied, which saves two seconds a site. Not by a gateway: one that
    migrates keeps the memory that it took.
    """
    if not _cluster:
        made = Path(tempfile.mkdtemp(prefix="headrace-bench-cluster-"))
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        with EmbeddedPostgres(made, password=_PASSWORD) as postgres:
            await migrate(postgres.socket_dsn)
        _cluster.append(made / "postgres")
    # With its owner, who is not root.
    copying = await asyncio.create_subprocess_exec("cp", "-a", _cluster[0], directory)
    if await copying.wait():
        raise RuntimeError(f"the database could not be copied to {directory}")


_cluster: Final[list[Path]] = []


class Site:
    """A PostgreSQL and a gateway. Make it with `async with Site.open()`.

    Attributes:
        dsn: of the gateway's database.
        workers: processes of the gateway.
        address: host:port of the gateway.
        metrics_url: its Prometheus page.
        connections_budget: the most database connections it may have.
        connections_max: the most database connections the gateway was ever
            seen with, sampled every 50 ms.
        connections_now: at the last sample.
    """

    def __init__(self, directory: Path, *, workers: int, bucket: Path | None = None) -> None:
        self.directory = directory
        self.workers = workers
        self.postgres = EmbeddedPostgres(directory, password=_PASSWORD)
        self.s3 = EmbeddedS3(bucket or directory)
        self.dsn = self.postgres.socket_dsn
        self.address = f"127.0.0.1:{free_port()}"
        self.metrics_url = f"http://127.0.0.1:{free_port()}/metrics"
        settings = config.load(flags={"workers": workers}, environment=os.environ)
        self.connections_budget = settings.ingest_connections + settings.query_connections
        self.connections_max = self.connections_now = 0
        self._gateway: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, *, workers: int = 1, bucket_in_memory: bool = False) -> AsyncIterator[Self]:
        """Start both servers; stop and delete everything at the end.

        Args:
            workers: processes of the gateway.
            bucket_in_memory: keep the bucket off PostgreSQL's disk, where this system can.
        """
        directory = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
        await _copy_cluster(directory)
        bucket = directory
        if bucket_in_memory and _MEMORY.is_dir():
            bucket = Path(tempfile.mkdtemp(prefix="headrace-bench-", dir=_MEMORY))
        site = cls(directory, workers=workers, bucket=bucket)
        try:
            with site.postgres, site.s3:
                await site._start_gateway()
                watch = asyncio.create_task(site._watch_connections())
                try:
                    yield site
                finally:
                    watch.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await watch
                    site._stop_gateway()
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            shutil.rmtree(bucket, ignore_errors=True)

    @property
    def gateway_pid(self) -> int:
        """The gateway's process id."""
        assert self._gateway is not None
        return self._gateway.pid

    @property
    def s3_variables(self) -> dict[str, str]:
        """The settings that name the bucket."""
        return {
            "HEADRACE_GATEWAY_S3_BUCKET": self.s3.bucket,
            "HEADRACE_GATEWAY_S3_ENDPOINT_URL": self.s3.endpoint_url,
            "HEADRACE_GATEWAY_S3_ACCESS_KEY_ID": self.s3.access_key_id,
            "HEADRACE_GATEWAY_S3_SECRET_ACCESS_KEY": self.s3.secret_access_key,
        }

    def gateway_memory_bytes(self) -> int:
        """Return the resident memory of the gateway and its worker processes."""
        process = psutil.Process(self.gateway_pid)
        everyone = [process, *process.children(recursive=True)]
        return sum(each.memory_info().rss for each in everyone)

    async def stored_bytes(self) -> int:
        """Return the size of all tables and indexes that hold points or describe them."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return int(
                await connection.fetchval(
                    "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
                    " WHERE relname = ANY ($1)",
                    _TABLES,
                )
            )
        finally:
            await connection.close()

    async def checkpoint(self) -> None:
        """Write out what earlier rounds left, so that none pays for another.

        The vacuum that follows a mass of new rows comes now, or is waited for, and not in the
        middle of the next measurement. The bytes of files in the bucket are written too: a
        flush of the write-ahead log would wait for them.
        """
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(f"VACUUM ANALYZE {', '.join(_TABLES)}")
            await connection.execute("CHECKPOINT")
            await asyncio.to_thread(os.sync)
            deadline = time.monotonic() + _VACUUM_DEADLINE_S
            while (  # noqa: ASYNC110 - no event tells of it
                await connection.fetchval(_VACUUMS) and time.monotonic() < deadline
            ):
                await asyncio.sleep(0.1)
        finally:
            await connection.close()

    async def _start_gateway(self) -> None:
        program = Path(sys.executable).with_name("headrace-gateway")
        self._gateway = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [program, "serve", "--workers", str(self.workers)],
            stdout=(self.directory / "gateway.log").open("wb"),
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                **self.s3_variables,
                "HEADRACE_GATEWAY_DSN": self.dsn,
                "HEADRACE_GATEWAY_LISTEN": self.address,
                "HEADRACE_GATEWAY_METRICS_LISTEN": self.metrics_url.split("/")[2],
            },
        )
        host, port = self.address.split(":")
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            with contextlib.suppress(OSError):
                _reader, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                return
            if self._gateway.poll() is not None or time.monotonic() > deadline:
                log = (self.directory / "gateway.log").read_text(errors="replace")
                raise RuntimeError(f"the gateway did not start: {log[-2000:]}")
            await asyncio.sleep(0.02)

    def _stop_gateway(self) -> None:
        if self._gateway is None:
            return
        self._gateway.terminate()
        try:
            self._gateway.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._gateway.kill()
            self._gateway.wait()

    async def _watch_connections(self) -> None:
        connection = await asyncpg.connect(
            self.dsn, server_settings={"application_name": "benchmark watcher"}
        )
        try:
            while True:
                self.connections_now = int(await connection.fetchval(GATEWAY_BACKENDS))
                self.connections_max = max(self.connections_max, self.connections_now)
                await asyncio.sleep(WATCH_INTERVAL_S)
        finally:
            await connection.close()
