"""MLflow's tracking server on the same PostgreSQL: log-metric, log-batch, many clients at once.

The server is started as its documentation says, with its default of four
workers unless a scenario says one, and without the job queues that it would
run beside them. Calls go to its REST API as prebuilt JSON,
over kept-alive connections, a run for each client: the least a client can
cost. The client library's own ways (asynchronous logging, and what a log call
costs the trainer) are measured by programs of the peers' environment.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import asyncpg
import psutil

from benchmarks.load import Load
from benchmarks.peers.http_load import Tally, hammer
from benchmarks.peers.installation import peer_program
from benchmarks.peers.log_calls import time_log_calls
from benchmarks.site import Site, free_port

START_DEADLINE_S: Final = 120.0  # it migrates its database first
API: Final = "/api/2.0/mlflow"
BATCH_POINTS: Final = 1_000  # MLflow's limit
SERIES: Final = 20
JOBS: Final = (1, 8, 32, 64)
BRIEF_JOBS: Final = (8,)
"""About where both kinds are fastest."""
DURATION_S: Final = 4.0
CROWD_OF_ONE_WORKER: Final = 50
CROWD: Final = 500
"""Clients at once of a server with one worker, and of one with the default of four."""
CROWD_CALLS: Final = 2  # of each client, none begun after:
CROWD_S: Final = 5.0
LOG_CALLS: Final = {"mlflow_log_metrics": 100, "mlflow_log_metrics_async": 200}
"""Ways to log 10 scalars with MLflow's client, and how many calls of each are timed."""
WATCH_INTERVAL_S: Final = 0.1
QUIET_LOOKS: Final = 10
QUIET_DEADLINE_S: Final = 10.0
STOP_DEADLINE_S: Final = 2.0
_DATABASE: Final = "mlflow"
_BUSY_BACKENDS: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()
    AND backend_type = 'client backend'
"""
_COPY_RUN: Final = """
INSERT INTO runs
SELECT (jsonb_populate_record(r, jsonb_build_object('run_uuid', other))).*
FROM runs r, unnest($2::text[]) AS other
WHERE r.run_uuid = $1
"""


@dataclass(slots=True, kw_only=True)
class Server:
    """A running tracking server."""

    url: str
    dsn: str
    workers: int
    connections_max: int = 0

    async def create_runs(self, count: int) -> list[str]:
        """Create one run by a call, copy its row for the others, and return their ids.

        A call takes a tenth of a second, and creating runs is not what is measured.
        """
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{self.url}{API}/runs/create", json={"experiment_id": "0", "start_time": 0}
            ) as answer,
        ):
            answer.raise_for_status()
            body: dict[str, Any] = await answer.json()
            first = str(body["run"]["info"]["run_id"])
        others = [uuid.uuid4().hex for _ in range(count - 1)]
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(_COPY_RUN, first, others)
        finally:
            await connection.close()
        return [first, *others]

    async def points(self) -> int:
        """Return the points its database holds."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return int(await connection.fetchval("SELECT count(*) FROM metrics"))
        finally:
            await connection.close()

    async def quiet(self) -> None:
        """Wait until calls that nobody waits for any more leave the database alone, or too long."""
        connection = await asyncpg.connect(self.dsn)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_DEADLINE_S):
                    calm = 0
                    while calm < QUIET_LOOKS:
                        await asyncio.sleep(WATCH_INTERVAL_S)
                        calm = 0 if await connection.fetchval(_BUSY_BACKENDS) else calm + 1
        finally:
            connection.terminate()

    async def stored_bytes(self) -> int:
        """Return the size of the tables that hold points, indexes included."""
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute("VACUUM metrics, latest_metrics")
            return int(
                await connection.fetchval(
                    "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
                    " WHERE relname IN ('metrics', 'latest_metrics')"
                )
            )
        finally:
            await connection.close()


@contextlib.asynccontextmanager
async def tracking_server(site: Site, *, workers: int = 4) -> AsyncIterator[Server]:
    """Start a server on a fresh database; stop it and drop the database at the end.

    Raises:
        NotInstalledError: MLflow is not installed.
        RuntimeError: it did not start.
    """
    program = peer_program("mlflow")
    own = await asyncpg.connect(site.postgres.dsn)
    parts = urlsplit(site.postgres.dsn)
    dsn = urlunsplit(parts._replace(path=f"/{_DATABASE}"))
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="headrace-mlflow-") as directory:
        await own.execute(f"DROP DATABASE IF EXISTS {_DATABASE} WITH (FORCE)")
        await own.execute(f"CREATE DATABASE {_DATABASE}")
        log = Path(directory) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
                [
                    program, "server",
                    "--backend-store-uri", dsn,
                    "--default-artifact-root", directory, "--workers", str(workers),
                    "--host", "127.0.0.1", "--port", str(port),
                ],
                stdout=output, stderr=subprocess.STDOUT,
                # Its job queues, idle here, take processor time of their own: in its favour.
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        server = Server(url=f"http://127.0.0.1:{port}", dsn=dsn, workers=workers)
        try:
            await _healthy(server, process, log)
            watch = asyncio.create_task(_watch(server))
            try:
                yield server
            finally:
                watch.cancel()
                await asyncio.wait([watch])
        finally:
            await asyncio.to_thread(_end, process)
            await own.execute(f"DROP DATABASE IF EXISTS {_DATABASE} WITH (FORCE)")
            await own.close()


async def measure_mlflow(site: Site, load: Load) -> dict[str, float]:
    """Measure batches of 1,000 and single points at 1, 8, 32 and 64 jobs.

    The figures without a number of jobs are the best of all of them. A full run measures
    MLflow's own client too, and 50 and 500 clients at once: of these, how many calls
    fail. Each start of a server takes 10 to 20 s, so one serves for nearly all.
    """
    async with tracking_server(site) as server:
        figures = await _rates_by_jobs(server, BRIEF_JOBS if load.brief else JOBS)
        if load.brief:
            return figures
        figures |= await _asynchronous_client(server)
        for way, calls in LOG_CALLS.items():
            figures |= await time_log_calls(way, calls, mlflow_url=server.url)
        figures |= await _crowd(server, CROWD)
    async with tracking_server(site, workers=1) as server:
        return figures | await _crowd(server, CROWD_OF_ONE_WORKER)


async def _rates_by_jobs(server: Server, jobs_measured: tuple[int, ...]) -> dict[str, float]:
    figures: dict[str, float] = {}
    runs = await server.create_runs(max(jobs_measured))
    before_points, before_bytes = await server.points(), await server.stored_bytes()
    await _batches(server, runs[: max(BRIEF_JOBS)], calls=1)  # its workers have answered once
    for kind, send in (("mlflow_log_batch", _batches), ("mlflow_log_metric", _singles)):
        rates = {}
        for jobs in jobs_measured:
            await server.quiet()
            measured = _rates(kind, jobs, await send(server, runs[:jobs]))
            rates[jobs] = measured[f"{kind}_{jobs}_jobs_points_per_s"]
            figures |= measured
        figures[f"{kind}_points_per_s"] = max(rates.values())
        if kind == "mlflow_log_batch":
            stored = await server.points() - before_points
            added_bytes = await server.stored_bytes() - before_bytes
            figures["mlflow_bytes_per_point"] = added_bytes / stored
    figures["mlflow_connections_peak"] = server.connections_max
    return figures


async def _asynchronous_client(server: Server) -> dict[str, float]:
    """Let eight jobs log with `log_metric(synchronous=False)` of MLflow's own client."""
    before = await server.points()
    process = await asyncio.create_subprocess_exec(
        peer_program("python"),
        "-P",  # beside the script lies a mlflow.py of ours
        Path(__file__).with_name("mlflow_client.py"),
        server.url,
        "8",
        str(DURATION_S),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, complaints = await process.communicate()
    if process.returncode:
        raise RuntimeError(complaints.decode(errors="replace")[-500:])
    result = json.loads(output.splitlines()[-1])
    stored = await server.points() - before
    return {
        "mlflow_async_8_jobs_points_per_s": stored / result["seconds"],
        "mlflow_async_8_jobs_lost_points": result["logged"] - stored,
    }


async def _crowd(server: Server, clients: int) -> dict[str, float]:
    """Let so many clients send batches of 1,000 at once."""
    name = f"mlflow_crowd_{clients}_clients_{server.workers}_workers"
    await server.quiet()
    runs = await server.create_runs(clients)
    before = await server.points()
    server.connections_max = 0
    tally = await _batches(server, runs, calls=CROWD_CALLS, duration_s=CROWD_S)
    return {
        f"{name}_calls": tally.succeeded + tally.failed,
        f"{name}_failed_calls": tally.failed,
        f"{name}_slowest_ms": tally.percentile_ms(100),
        f"{name}_points_per_s": (await server.points() - before) / tally.seconds,
        f"{name}_connections": server.connections_max,
    }


def _batch(run_id: str, client: int, number: int) -> bytes:
    """Return a log-batch call of 50 steps of 20 series."""
    steps = BATCH_POINTS // SERIES
    metrics = [
        {
            "key": f"group_{series % 7}/metric_{series:05d}",
            "value": step / 4096 + series / 64 + client,
            "timestamp": 1_767_225_600_000 + step,
            "step": step,
        }
        for step in range(number * steps, (number + 1) * steps)
        for series in range(SERIES)
    ]
    return json.dumps({"run_id": run_id, "metrics": metrics}).encode()


async def _batches(
    server: Server, runs: list[str], *, calls: int = 0, duration_s: float = DURATION_S
) -> Tally:
    """Send log-batch calls; built before the clock starts, `calls` for each client or enough."""
    # No more than 60 a second were ever answered, of all clients together.
    count = calls or max(4, int(60 * duration_s / len(runs)))
    bodies = [
        [_batch(run_id, client, number) for number in range(count)]
        for client, run_id in enumerate(runs)
    ]

    def body(client: int, number: int) -> bytes | None:
        return bodies[client][number] if number < count else None

    return await hammer(
        f"{server.url}{API}/runs/log-batch",
        body,
        clients=len(runs),
        duration_s=duration_s,
        headers={"Content-Type": "application/json"},
    )


async def _singles(server: Server, runs: list[str]) -> Tally:
    """Send log-metric calls, one point each."""

    def body(client: int, number: int) -> bytes:
        metric = {"run_id": runs[client], "key": "single", "value": 0.5, "timestamp": number,
                  "step": number}  # fmt: skip
        return json.dumps(metric).encode()

    return await hammer(
        f"{server.url}{API}/runs/log-metric",
        body,
        clients=len(runs),
        duration_s=DURATION_S,
        headers={"Content-Type": "application/json"},
    )


def _rates(kind: str, jobs: int, tally: Tally) -> dict[str, float]:
    points = BATCH_POINTS if kind.endswith("batch") else 1
    name = f"{kind}_{jobs}_jobs"
    return {
        f"{name}_points_per_s": tally.per_second * points,
        f"{name}_p50_ms": tally.percentile_ms(50),
        f"{name}_p99_ms": tally.percentile_ms(99),
        f"{name}_failed_calls": tally.failed,
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers; those that still serve a crowd are not waited for long."""
    workers: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        workers = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_DEADLINE_S)
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    process.kill()
    process.wait()


async def _healthy(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    async with aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{server.url}/health") as answer:
                    if answer.status == 200:
                        return
            if process.poll() is not None or time.monotonic() > deadline:
                said = await asyncio.to_thread(log.read_text, errors="replace")
                raise RuntimeError(f"MLflow did not start: {said[-2000:]}")
            await asyncio.sleep(0.2)


async def _watch(server: Server) -> None:
    connection = await asyncpg.connect(server.dsn)
    try:
        while True:
            seen = await connection.fetchval(
                "SELECT count(*) - 1 FROM pg_stat_activity"
                " WHERE datname = current_database() AND backend_type = 'client backend'"
            )
            server.connections_max = max(server.connections_max, seen)
            await asyncio.sleep(WATCH_INTERVAL_S)
    finally:
        connection.terminate()
