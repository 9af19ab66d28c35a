"""A gateway starts, says where, keeps its budget, loses nothing in a drain, and ends when told."""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from headrace.v1 import metric_service_pb2 as metrics_pb
from headrace.v1 import metric_service_pb2_grpc as metrics_grpc
from headrace.v1 import run_service_pb2 as pb
from headrace.v1 import run_service_pb2_grpc as pb_grpc

from gateway.config import Settings
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import eventually, eventually_async

BACKENDS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE application_name LIKE 'headrace-gateway/%' AND datname = current_database()
"""


@asynccontextmanager
async def open_stream(address: str) -> AsyncIterator[Any]:
    """A run and an opened WriteMetrics stream with the key 0 defined."""
    async with grpc.aio.insecure_channel(address) as channel:
        run_id = uuid4().hex
        runs: Any = pb_grpc.RunServiceStub(channel)
        await runs.CreateRun(pb.CreateRunRequest(run_id=run_id))
        stub: Any = metrics_grpc.MetricServiceStub(channel)
        stream = stub.WriteMetrics()
        writer = metrics_pb.OpenWriter(
            run_id=run_id, writer_id=uuid4().hex, incarnation=uuid4().hex
        )
        await stream.write(metrics_pb.WriteMetricsRequest(open=writer))
        assert (await stream.read()).HasField("opened")
        keys = metrics_pb.DefineKeys(keys=[metrics_pb.KeyDefinition(index=0, key="loss")])
        await stream.write(metrics_pb.WriteMetricsRequest(keys=keys))
        yield stream


async def send_point(stream: Any, sequence: int) -> None:
    batch = metrics_pb.MetricBatch(
        first_sequence=sequence,
        record_count=1,
        series_index=[0],
        step=[sequence],
        time_unix_us=[1_000_000],
        value=[0.5],
    )
    await stream.write(metrics_pb.WriteMetricsRequest(batch=batch))


async def fetch_value(dsn: str, query: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_a_drain_asks_to_reconnect_commits_and_exits_well(gateway: GatewayProcess) -> None:
    async with open_stream(gateway.address) as stream:
        await send_point(stream, 1)
        assert (await stream.read()).ack.committed_sequence == 1
        gateway.process.send_signal(signal.SIGTERM)
        assert (await stream.read()).HasField("reconnect")
        assert await stream.read() is grpc.aio.EOF
    assert gateway.process.wait(60) == 0
    assert await fetch_value(gateway.dsn, "SELECT sum(accepted_points) FROM writers") == 1


async def test_a_drain_past_its_deadline_ends_all_the_same_and_says_so(
    database_dsn: str, tmp_path: Path
) -> None:
    arguments = ["--drain-deadline-s", "0.5"]
    with GatewayProcess(database_dsn, tmp_path, arguments=arguments) as gateway:
        frozen = await asyncpg.connect(database_dsn)
        async with open_stream(gateway.address) as stream, frozen.transaction():
            await frozen.execute("LOCK TABLE writers IN ACCESS EXCLUSIVE MODE")
            await send_point(stream, 1)
            await eventually_async(lambda: gateway.metrics()["headrace_pending_bytes"] > 0)
            assert gateway.terminate(deadline_s=20) == 1
        await frozen.close()
    assert "drain deadline passed" in gateway.log_path.read_text()


async def test_a_second_signal_stops_at_once(database_dsn: str, tmp_path: Path) -> None:
    arguments = ["--drain-deadline-s", "600"]
    with GatewayProcess(database_dsn, tmp_path, arguments=arguments) as gateway:
        frozen = await asyncpg.connect(database_dsn)
        async with open_stream(gateway.address) as stream, frozen.transaction():
            await frozen.execute("LOCK TABLE writers IN ACCESS EXCLUSIVE MODE")
            await send_point(stream, 1)
            await eventually_async(lambda: gateway.metrics()["headrace_pending_bytes"] > 0)
            gateway.process.send_signal(signal.SIGTERM)
            await eventually_async(lambda: "draining" in gateway.log_path.read_text())
            assert gateway.terminate(deadline_s=20) == 1
        await frozen.close()


async def test_health_follows_the_gateway(gateway: GatewayProcess) -> None:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "headrace.v1.MetricService", "headrace.v1.RunService"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        gateway.process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert gateway.process.wait(60) == 0


async def test_reflection_lists_the_services(shared_gateway: GatewayProcess) -> None:
    async with grpc.aio.insecure_channel(shared_gateway.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request])):
            names = {service.name for service in answer.list_services_response.service}
            assert {"headrace.v1.MetricService", "headrace.v1.RunService"} <= names


async def test_metrics_count_what_happened(gateway: GatewayProcess) -> None:
    async with open_stream(gateway.address) as stream:
        for sequence in range(1, 4):
            await send_point(stream, sequence)
        while (await stream.read()).ack.committed_sequence < 3:
            pass
        await eventually_async(lambda: gateway.metrics()["headrace_streams"] == 1)
        found = gateway.metrics()
        assert found["headrace_points_accepted_total"] == 3
        assert found["headrace_flush_points_sum"] == 3
        assert found["headrace_ack_seconds_count"] >= 1
        assert found["headrace_connections"] == found["headrace_connections_budget"] == 6
        created = 'headrace_calls_total{code="OK",method="/headrace.v1.RunService/CreateRun"}'
        assert found[created] == 1


async def test_workers_share_port_budget_and_metrics_and_the_dead_are_replaced(
    database_dsn: str, tmp_path: Path
) -> None:
    arguments = ["--workers", "2", "--ingest-connections", "3", "--query-connections", "4"]
    with GatewayProcess(database_dsn, tmp_path, arguments=arguments) as gateway:
        assert await fetch_value(database_dsn, BACKENDS) == 7
        calls = 'headrace_calls_total{code="OK",method="/headrace.v1.RunService/CreateRun"}'

        async def create_one() -> None:
            # A channel of its own each: the kernel spreads connections, not calls.
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(gateway.address, options=options) as channel:
                stub: Any = pb_grpc.RunServiceStub(channel)
                await stub.CreateRun(
                    pb.CreateRunRequest(run_id=uuid4().hex), wait_for_ready=True, timeout=30
                )

        await asyncio.gather(*(create_one() for _ in range(24)))
        assert gateway.metrics()[calls] == 24
        assert gateway.metrics()["headrace_connections_budget"] == 7
        assert gateway.metrics()["headrace_workers"] == 2

        workers = psutil.Process(gateway.pid).children()
        assert len(workers) == 2
        workers[0].kill()
        await eventually_async(lambda: "worker died" in gateway.log_path.read_text())
        await eventually_async(lambda: gateway.metrics().get("headrace_connections_budget") == 7)
        assert gateway.metrics()["headrace_workers"] == 2
        await asyncio.gather(*(create_one() for _ in range(8)))
        assert gateway.metrics()[calls] == 32  # what the dead one counted is kept
        assert await fetch_value(database_dsn, BACKENDS) == 7
        assert gateway.terminate() == 0


def test_workers_get_the_cleanup_rules(database_dsn: str, tmp_path: Path) -> None:
    rules = '[{"experiment": "a/b", "max_age": "90d", "keep_top": 1, "by": "metrics.x:max"}]'
    environment = {"HEADRACE_GATEWAY_CLEANUP": rules}
    arguments = ["--workers", "2"]
    with GatewayProcess(
        database_dsn, tmp_path, arguments=arguments, environment=environment
    ) as gateway:
        assert gateway.terminate() == 0


async def test_a_worker_that_cannot_be_started_again_is_tried_again(
    database_dsn: str, tmp_path: Path
) -> None:
    with GatewayProcess(database_dsn, tmp_path, arguments=["--workers", "2"]) as gateway:
        supervisor = psutil.Process(gateway.pid)
        limits = supervisor.rlimit(psutil.RLIMIT_NOFILE)
        supervisor.rlimit(psutil.RLIMIT_NOFILE, (1, limits[1]))
        supervisor.children()[0].kill()
        await eventually_async(lambda: "worker cannot be started" in gateway.log_path.read_text())
        supervisor.rlimit(psutil.RLIMIT_NOFILE, limits)
        await eventually_async(lambda: len(supervisor.children()) == 2)


def test_a_worker_that_waits_for_the_database_stops_at_once(tmp_path: Path) -> None:
    with socket.socket() as holder:  # bound and never listening
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        settings = Settings(dsn=f"postgresql://nobody@127.0.0.1:{port}/none", start_deadline_s=600)
        log = tmp_path / "worker.log"
        with (
            log.open("wb") as errors,
            subprocess.Popen(
                [sys.executable, "-m", "gateway.workers", "0"], stdin=subprocess.PIPE, stderr=errors
            ) as worker,
        ):
            assert worker.stdin is not None
            worker.stdin.write(settings.model_dump_json().encode() + b"\n")
            worker.stdin.flush()
            try:
                eventually(lambda: "waiting for the database" in log.read_text())
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(10) == 0
            finally:
                worker.kill()


async def test_workers_end_when_their_supervisor_is_killed(
    database_dsn: str, tmp_path: Path
) -> None:
    with GatewayProcess(database_dsn, tmp_path, arguments=["--workers", "2"]) as gateway:
        gateway.kill()

        async def ended() -> bool:
            return not await fetch_value(database_dsn, BACKENDS)

        await eventually_async(ended)
        gateway.start()


def test_a_port_in_use_is_said_to_be(shared_gateway: GatewayProcess, tmp_path: Path) -> None:
    second = GatewayProcess(shared_gateway.dsn, tmp_path, address=shared_gateway.address)
    with pytest.raises(RuntimeError, match="cannot listen on"):
        second.start()
    assert second.process.returncode == 1


def test_a_port_in_use_is_said_to_be_by_gateways_of_several_workers_too(
    database_dsn: str, tmp_path: Path
) -> None:
    arguments = ["--workers", "2"]
    (tmp_path / "second").mkdir()
    with GatewayProcess(database_dsn, tmp_path, arguments=arguments) as first:
        second = GatewayProcess(
            database_dsn, tmp_path / "second", arguments=arguments, address=first.address
        )
        with pytest.raises(RuntimeError, match="cannot listen on"):
            second.start()
        assert second.process.returncode == 1
        first.restart()  # what a killed one leaves behind is no other gateway


def test_a_host_that_is_not_there_is_one_clear_line(database_dsn: str, tmp_path: Path) -> None:
    arguments = ["--workers", "2", "--no-auth"]
    process = GatewayProcess(
        database_dsn, tmp_path, arguments=arguments, address="host.invalid:7420"
    )
    with pytest.raises(RuntimeError, match=r"cannot listen on host\.invalid:7420"):
        process.start()
    assert process.process.returncode == 1
    assert "Traceback" not in process.log_tail()


async def test_a_gateway_waits_for_its_database(database_dsn: str, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        absent = f"postgresql://nobody@127.0.0.1:{holder.getsockname()[1]}/none"
        arguments = ["--set", "start_deadline_s=0.2"]
        process = GatewayProcess(absent, tmp_path, arguments=arguments)
        with pytest.raises(RuntimeError, match="cannot be reached"):
            process.start()
    assert process.process.returncode == 1


@pytest.fixture(scope="module")
def embedded_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the embedded stores: the next test starts on what the last one left."""
    return tmp_path_factory.mktemp("embedded") / "data"


def test_an_embedded_gateway_needs_nothing_else(embedded_data: Path, tmp_path: Path) -> None:
    arguments = ["--embedded", str(embedded_data)]
    with GatewayProcess("", tmp_path, arguments=arguments) as gateway:
        gateway.restart()  # SIGKILL: the stores end too, and the next start recovers
        assert gateway.terminate() == 0


async def test_an_embedded_store_that_dies_is_started_again(
    embedded_data: Path, tmp_path: Path
) -> None:
    arguments = ["--embedded", str(embedded_data)]
    with GatewayProcess("", tmp_path, arguments=arguments) as gateway:
        [postmaster] = [
            child for child in psutil.Process(gateway.pid).children() if child.name() == "postgres"
        ]
        postmaster.kill()
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            stub: Any = pb_grpc.RunServiceStub(channel)

            async def answers() -> bool:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.CreateRun(pb.CreateRunRequest(run_id=uuid4().hex))
                    return True
                return False

            await eventually_async(answers)
        assert gateway.terminate() == 0


def test_the_start_says_where_it_listens_in_one_line(database_dsn: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli", "serve", "--dsn", database_dsn]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 0
    assert re.match(
        r"headrace-gateway \S+: gRPC on 127\.0\.0\.1:\d+, metrics on nothing, 1 worker", line
    )
    assert "2 ingest + 4 query" in line
    assert rest == ""
