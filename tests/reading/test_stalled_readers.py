"""Readers that stop reading keep next to nothing of a gateway, however many they are."""

import asyncio
import contextlib
import time
import tracemalloc
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest
from headrace.v1 import metric_service_pb2 as pb
from headrace.v1 import metric_service_pb2_grpc

from gateway.domain.limits import READ_POINTS_PER_MESSAGE_MAX
from gateway.rpc import metric_read
from gateway.rpc.authentication import Authenticator
from gateway.rpc.interceptors import CallInterceptor
from gateway.rpc.metric_read import MetricReadService
from gateway.rpc.workspaces import WorkspaceChoice
from gateway.store import snapshot
from gateway.store.connections import Database
from gateway.store.reading import MetricReading
from tests.reading.test_long_reads import a_long_run
from tests.support.waiting import eventually_async
from tests.support.writer_stream import OPTIONS, Failure, failure_of

READERS = 12
KEPT_BYTES_MAX = 24 * READ_POINTS_PER_MESSAGE_MAX + 200_000  # the message that gRPC is writing
_UNREAD = (*OPTIONS, ("grpc.http2.bdp_probe", 0))  # else a client's window grows by itself
QUEUED_POINTS = 5 * READ_POINTS_PER_MESSAGE_MAX  # one is read, one is being written, three wait


@contextlib.asynccontextmanager
async def served(service: MetricReadService) -> AsyncIterator[str]:
    """Serve ReadMetrics as a gateway does; yield the address."""
    interceptor = CallInterceptor(
        Authenticator(None, cache_s=1, clock=time.monotonic),
        WorkspaceChoice(SimpleNamespace(), cache_s=1, clock=time.monotonic),  # nobody names one
        recheck_s=30,
    )
    server = grpc.aio.server(interceptors=[interceptor])
    method: Any = grpc.unary_stream_rpc_method_handler(
        service.read_metrics, pb.ReadMetricsRequest.FromString, None
    )
    handler = grpc.method_handlers_generic_handler(
        "headrace.v1.MetricService", {"ReadMetrics": method}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def stalled_reads(address: str, run_id: UUID, count: int) -> AsyncIterator[list[Any]]:
    """Open reads, each by a connection of its own, that have taken one message and take no more."""
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for _ in range(count):
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(address, options=_UNREAD)
            )
            stub: Any = metric_service_pb2_grpc.MetricServiceStub(channel)
            call = stub.ReadMetrics(pb.ReadMetricsRequest(run_id=run_id.hex))
            stack.callback(call.cancel)
            await call.read()
            calls.append(call)
        yield calls


async def rest_of(call: Any) -> Failure:
    """Read to the end; return how it ended."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        trailers = list(error.trailing_metadata() or ())
        return failure_of(error.code(), error.details(), trailers)
    return failure_of(grpc.StatusCode.OK, "", ())


def kept_bytes(before: int) -> int:
    return tracemalloc.get_traced_memory()[0] - before


@pytest.mark.parametrize("points", [QUEUED_POINTS, 1_000_000])
async def test_a_stalled_read_ends_by_itself_and_gives_its_memory_back(
    points: int,
    connection: asyncpg.Connection,
    database_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether its snapshot is done, so that all it has is queued, or waits for the reader."""
    monkeypatch.setattr(metric_read, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(snapshot, "_STALL_S", 0.3)
    run, _ = await a_long_run(connection, points)
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=2)
    service = MetricReadService(MetricReading(database))
    tracemalloc.start()
    try:
        async with served(service) as address:
            async with stalled_reads(address, run.run_id, 1) as (call,):
                await rest_of(call)  # what is made once is made
            before = tracemalloc.get_traced_memory()[0]
            async with stalled_reads(address, run.run_id, READERS) as calls:
                await eventually_async(
                    lambda: kept_bytes(before) < READERS * KEPT_BYTES_MAX, "their memory is back"
                )
                async with asyncio.timeout(30):
                    endings = [await rest_of(call) for call in calls]
            assert [ending.reason for ending in endings] == ["OVERLOADED"] * READERS
            assert "took" in endings[0].message
            await eventually_async(lambda: not service._open, "no read is open")
    finally:
        tracemalloc.stop()
        await database.close()


async def test_a_reader_that_pauses_reads_to_the_end(
    connection: asyncpg.Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_STALL_S", 0.3)
    run, _ = await a_long_run(connection, QUEUED_POINTS)
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=2)
    service = MetricReadService(MetricReading(database))
    async with served(service) as address, stalled_reads(address, run.run_id, 1) as (call,):
        await asyncio.sleep(1.0)  # longer than a snapshot would wait, which is over
        assert (await rest_of(call)).code is grpc.StatusCode.OK
    await database.close()


async def test_open_reads_are_bounded_until_their_readers_go(
    connection: asyncpg.Connection, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gRPC has of a read that was ended stays until its reader reads on, or goes."""
    monkeypatch.setattr(metric_read, "_PATIENCE_S", 0.1)
    run, _ = await a_long_run(connection, QUEUED_POINTS)
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=2)
    service = MetricReadService(MetricReading(database), open_max=3)
    async with served(service) as address:
        async with stalled_reads(address, run.run_id, 3) as calls:
            await asyncio.sleep(0.5)  # they are over, and not read to their end
            async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
                stub: Any = metric_service_pb2_grpc.MetricServiceStub(channel)
                request = pb.ReadMetricsRequest(run_id=run.run_id.hex, last_step=10)
                refused = await rest_of(stub.ReadMetrics(request))
                assert (refused.reason, refused.metadata["limit"]) == ("OVERLOADED", "3")
                assert (await rest_of(calls[0])).reason == "OVERLOADED"  # it reads on, and goes
                await eventually_async(lambda: service._open == 2, "two are open")
                assert (await rest_of(stub.ReadMetrics(request))).code is grpc.StatusCode.OK
        await eventually_async(lambda: not service._open, "no read is open")
    await database.close()
