"""The servers a scenario plays on, and the faults that befall them.

One PostgreSQL, one S3 server, one gateway for each kind that the cases want (tokens,
TLS), and two proxies before it through which runners go: two addresses. The harness
itself talks to the gateway and the database directly.
"""

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Self

import asyncpg
import numpy as np
import trustme

from gateway.embedded import EmbeddedPostgres, EmbeddedS3
from gateway.store.migrate import migrate
from tests.conformance.cases import POINT, Points, SeriesKey, in_order
from tests.support.gateway_process import GatewayProcess
from tests.support.proxy import Proxy
from tests.support.writer_stream import WriterStream, batch, connected, keys, opening

COMMIT_DEADLINE_S: Final = 60.0
_POLL_S: Final = 0.005
_TEMPLATE: Final = "conformance_template"

_WATERMARK: Final = "SELECT committed_sequence FROM writers WHERE run_id = $1 AND writer_id = $2"
_STORED: Final = """
    SELECT key, rank, attempt, string_agg(int8send(step), '') AS steps,
           string_agg(float8send(value), '') AS values,
           min(time) AS first_time, max(time) AS last_time
    FROM metric_points_raw WHERE run_id = $1 GROUP BY key, rank, attempt
"""


class FaultError(Exception):
    """A fault could not be played, or what it met was not as the case says."""


class FaultyProxy(Proxy):
    """A Proxy that can also cut after so many bytes.

    Attributes:
        cut_after_bytes: None, or how many bytes pass before all is cut, once.
    """

    cut_after_bytes: int | None = None

    async def pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        """Forward `data`, or cut."""
        if self.cut_after_bytes is not None:
            self.cut_after_bytes -= len(data)
            if self.cut_after_bytes < 0:
                self.cut_after_bytes = None
                self.cut()
                return
        await super().pass_on(data, writer)


class Stage:
    """One gateway behind two proxies. Make it with `async with Stage.open(…)`.

    Attributes:
        token: a good one, when the gateway wants tokens; else "".
        authority: the PEM file of who signed its certificate; None for plain text.
    """

    def __init__(
        self,
        gateway: GatewayProcess,
        proxies: tuple[FaultyProxy, FaultyProxy],
        dsn: str,
        *,
        token: str,
        authority: Path | None,
    ) -> None:
        self._gateway = gateway
        self._proxies = proxies
        self._proxy = proxies[0]
        self._dsn = dsn
        self.token = token
        self.authority = authority
        self._zombies: dict[str, WriterStream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = contextlib.AsyncExitStack()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, postgres: EmbeddedPostgres, s3: EmbeddedS3, *, auth: bool, tls: bool
    ) -> AsyncIterator[Self]:
        """Start a gateway on a copy of the template; stop it at the end."""
        name = f"conformance_{uuid.uuid4().hex[:8]}"
        dsn = await _create_database(postgres, name, template=_TEMPLATE)
        directory = Path(tempfile.mkdtemp(prefix="headrace-conformance-"))
        gateway = GatewayProcess(
            dsn,
            directory,
            arguments=[*(["--auth"] if auth else []), *(_certified(directory) if tls else [])],
            environment={
                "HEADRACE_GATEWAY_S3_BUCKET": s3.bucket,
                "HEADRACE_GATEWAY_S3_KEY_PREFIX": f"{name}/",
                "HEADRACE_GATEWAY_S3_ENDPOINT_URL": s3.endpoint_url,
                "HEADRACE_GATEWAY_S3_ACCESS_KEY_ID": s3.access_key_id,
                "HEADRACE_GATEWAY_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
            },
        )
        try:
            await asyncio.to_thread(gateway.start)
            token = await asyncio.to_thread(_make_token, dsn) if auth else ""
            host, port = gateway.address.rsplit(":", 1)
            authority = directory / "authority.pem" if tls else None
            async with (
                FaultyProxy(host, int(port)) as first,
                FaultyProxy(host, int(port)) as second,
            ):
                yield cls(gateway, (first, second), dsn, token=token, authority=authority)
        finally:
            await asyncio.to_thread(gateway.kill)
            shutil.rmtree(directory, ignore_errors=True)

    def addresses(self, count: int) -> str:
        """Return what runners are given: that many addresses of the gateway."""
        scheme = "https://" if self.authority else ""
        return ",".join(scheme + proxy.address for proxy in self._proxies[:count])

    async def reset(self) -> None:
        """Undo what the last case left: every case starts with everything in order."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._held.aclose()
        self._held = contextlib.AsyncExitStack()
        self._zombies.clear()
        self._proxy.cut_after_bytes = None
        for proxy in self._proxies:
            proxy.refusing = False
            proxy.cut()
            proxy.muted = False
        if self._gateway.process.poll() is not None:
            await asyncio.to_thread(self._gateway.start)
        else:
            self._gateway.process.send_signal(signal.SIGCONT)

    async def play(self, step: dict[str, Any], writer: dict[str, Any] | None) -> None:
        """Play one fault; `writer` is the open_writer step that it names.

        Raises:
            FaultError: it cannot be played; the message says why.
        """
        for field in ("after_committed", "committed_sequence"):
            if field in step:
                assert writer is not None
                await self._committed(writer, step[field])
        fault = getattr(self, f"_{step['fault']}", None)
        if fault is None:
            raise FaultError(f"there is no fault {step['fault']!r}")
        await fault(step, writer)

    async def _await(self, _: dict[str, Any], __: object) -> None:
        """Nothing: what `play` has waited for is all."""

    async def _cut(self, _: dict[str, Any], __: object) -> None:
        self._proxy.cut()
        self._proxy.muted = False

    async def _lose_address(self, step: dict[str, Any], _: object) -> None:
        for index, proxy in enumerate(self._proxies):
            proxy.refusing = index == step["address"]
            if proxy.refusing:
                proxy.cut()

    async def _mute(self, _: dict[str, Any], __: object) -> None:
        self._proxy.muted = True

    async def _cut_after_bytes(self, step: dict[str, Any], _: object) -> None:
        self._proxy.cut_after_bytes = step["bytes"]

    async def _kill_gateway(self, _: dict[str, Any], __: object) -> None:
        await asyncio.to_thread(self._gateway.kill)

    async def _start_gateway(self, _: dict[str, Any], __: object) -> None:
        await asyncio.to_thread(self._gateway.start)

    async def _restart_gateway(self, _: dict[str, Any], __: object) -> None:
        await asyncio.to_thread(self._gateway.restart)

    async def _drain_gateway(self, _: dict[str, Any], __: object) -> None:
        await asyncio.to_thread(self._gateway.restart, graceful=True)

    async def _stall(self, step: dict[str, Any], _: object) -> None:
        self._gateway.process.send_signal(signal.SIGSTOP)
        task = asyncio.create_task(self._continue(step["for_ms"] / 1_000))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_zombie(self, step: dict[str, Any], _: object) -> None:
        stream = await self._stream(step)
        await stream.send(keys("zombie"))
        self._zombies[step["writer_id"]] = stream

    async def _zombie_writes(self, _: dict[str, Any], writer: dict[str, Any]) -> None:
        stream = self._zombies[writer["writer_id"]]
        await stream.send(batch(1))
        failure = await stream.failure()
        if failure.reason != "WRITER_FENCED":
            raise FaultError(f"the zombie was not fenced: {failure}")

    async def _take_over(self, step: dict[str, Any], writer: dict[str, Any]) -> None:
        stream = await self._stream(writer)
        given, wanted = stream.answers[0].opened.epoch, step.get("epoch")
        if wanted is not None and given != wanted:
            raise FaultError(f"the epoch is {given}, not {wanted}: somebody else opened the writer")

    async def stored(
        self, run_ids: set[str], first_time_s: float, last_time_s: float
    ) -> dict[SeriesKey, Points]:
        """Read the points of these runs through the view metric_points_raw.

        Raises:
            FaultError: a time lies outside the given span (seconds since 1970).
        """
        found: dict[SeriesKey, Points] = {}
        connection = await asyncpg.connect(self._dsn)
        try:
            # Without statistics the plan's time grows with the square of the series.
            await connection.execute("ANALYZE series, loose_chunks, merged_chunks")
            # Groups of a million points; on disk they take ten times as long.
            await connection.execute("SET work_mem = '256MB'")
            for run_id in run_ids:
                for row in await connection.fetch(_STORED, uuid.UUID(run_id)):
                    # As bytes: a case may have a million points, too many for Python's numbers.
                    points = np.empty(len(row["steps"]) // 8, POINT)
                    points["step"] = np.frombuffer(row["steps"], ">i8")
                    points["value"] = np.frombuffer(row["values"], ">f8")
                    found[run_id, row["key"], row["rank"], row["attempt"]] = in_order(points)
                    times = (row["first_time"].timestamp(), row["last_time"].timestamp())
                    if times[0] < first_time_s - 1 or times[1] > last_time_s + 1:
                        raise FaultError(f"times {times} lie outside the replay")
        finally:
            await connection.close()
        return found

    async def _committed(self, writer: dict[str, Any], at_least: int) -> None:
        connection = await asyncpg.connect(self._dsn)
        ids = uuid.UUID(writer["run_id"]), uuid.UUID(writer["writer_id"])
        deadline = time.monotonic() + COMMIT_DEADLINE_S
        try:
            while (await connection.fetchval(_WATERMARK, *ids) or 0) < at_least:
                if time.monotonic() > deadline:
                    reached = await connection.fetchval(_WATERMARK, *ids)
                    raise FaultError(f"the watermark is {reached}, never {at_least}")
                await asyncio.sleep(_POLL_S)
        finally:
            await connection.close()

    async def _continue(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._gateway.process.send_signal(signal.SIGCONT)

    async def _stream(self, fields: dict[str, Any]) -> WriterStream:
        channel = await self._held.enter_async_context(connected(self._gateway.address))
        stream = await self._held.enter_async_context(WriterStream(channel))
        await stream.send(
            opening(
                fields["run_id"],
                writer_id=fields["writer_id"],
                incarnation=fields["incarnation"],
                rank=fields.get("rank", 0),
                attempt=fields.get("attempt", 1),
            )
        )
        if await stream.read() is None:
            raise FaultError(f"the harness cannot open the writer: {await stream.failure()}")
        return stream


async def prepare(postgres: EmbeddedPostgres) -> None:
    """Make the template of the stages' databases: it is migrated once for all."""
    await migrate(await _create_database(postgres, _TEMPLATE, template="template1"))


async def _create_database(postgres: EmbeddedPostgres, name: str, *, template: str) -> str:
    connection = await asyncpg.connect(postgres.dsn)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    finally:
        await connection.close()
    return postgres.dsn.rpartition("/")[0] + f"/{name}"


def _certified(directory: Path) -> list[str]:
    """Write a certificate for loopback and who signed it; return the gateway's flags."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(directory / "authority.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "certificate.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    return [
        *("--tls-certificate", str(directory / "certificate.pem")),
        *("--tls-key", str(directory / "key.pem")),
    ]


def _make_token(dsn: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "token", "create", "test", "--json", "--dsn", dsn],
        capture_output=True,
        text=True,
        check=True,
    )
    return str(json.loads(done.stdout)["token"])
