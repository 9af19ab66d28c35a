"""Nobody gets past the one interceptor: every method is denied unless a token allows it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from google.protobuf import descriptor_pool
from headrace.stream_call import StreamCall, StreamOverError
from headrace.v1 import metric_service_pb2 as metrics_pb
from headrace.v1 import run_service_pb2 as pb
from headrace.v1 import run_service_pb2_grpc as pb_grpc

from gateway.rpc.permissions import METHOD_PERMISSIONS, Permission
from gateway.server import SERVICE_NAMES
from gateway.store.connections import Database
from gateway.store.tokens import TokenStore
from tests.conftest import NewDatabase
from tests.platform.conftest import error_info, reason_of
from tests.support.gateway_process import GatewayProcess

METHODS = sorted(METHOD_PERMISSIONS)
PROTECTED = [m for m in METHODS if METHOD_PERMISSIONS[m] is not Permission.PUBLIC]
WRITING = [m for m in METHODS if METHOD_PERMISSIONS[m] is Permission.WRITE]


@pytest.fixture(scope="module")
def secured(
    new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway that wants tokens and looks at them often."""
    arguments = ["--auth", "--set", "token_cache_s=0.05", "--set", "token_recheck_s=0.05"]
    directory = tmp_path_factory.mktemp("gateway")
    with (
        new_database() as dsn,
        GatewayProcess(dsn, directory, arguments=arguments) as process,
    ):
        yield process


@pytest.fixture
async def tokens(secured: GatewayProcess) -> AsyncIterator[TokenStore]:
    database = await Database.connect(secured.dsn, ingest_connections=0, query_connections=1)
    yield TokenStore(database)
    await database.close()


@pytest.fixture
async def open_channel(secured: GatewayProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(secured.address) as opened:
        yield opened


async def make(tokens: TokenStore, **options: Any) -> str:
    chosen = {"workspace": "default", "name": "test", "can_write": True, **options}
    _, text = await tokens.create(**chosen)
    return text


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def call_raw(channel: grpc.aio.Channel, method: str, metadata: Any = None) -> Any:
    """Call a method of any shape with one empty message; return its first answer."""
    call: StreamCall[bytes] = StreamCall(channel.stream_stream(method)(metadata=metadata))
    with contextlib.suppress(StreamOverError):  # refused already: `read` tells why
        await call.write(b"")
    await call.done_writing()
    return await call.read()


async def test_the_permission_table_is_what_the_server_offers() -> None:
    pool = descriptor_pool.Default()
    offered = {
        f"/{name}/{method.name}"
        for name in SERVICE_NAMES
        for method in pool.FindServiceByName(name).methods
    }
    ours = {method for method in METHODS if method.startswith("/headrace.")}
    assert ours == offered


@pytest.mark.parametrize("method", PROTECTED)
async def test_every_method_wants_a_token(open_channel: grpc.aio.Channel, method: str) -> None:
    assert await reason_of(call_raw(open_channel, method)) == "UNAUTHENTICATED"


@pytest.mark.parametrize("method", WRITING)
async def test_a_reading_token_writes_nothing(
    open_channel: grpc.aio.Channel, tokens: TokenStore, method: str
) -> None:
    token = await make(tokens, can_write=False)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call_raw(open_channel, method, bearer(token))
    assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error_info(failed.value).reason == "PERMISSION_DENIED"


async def test_methods_that_nobody_listed_are_denied(open_channel: grpc.aio.Channel) -> None:
    for method in ("/headrace.v1.RunService/DropEverything", "/nobody.v1.Nothing/Here", "/x"):
        assert await reason_of(call_raw(open_channel, method)) == "METHOD_UNKNOWN"


async def test_health_is_public(open_channel: grpc.aio.Channel) -> None:
    assert await call_raw(open_channel, "/grpc.health.v1.Health/Check") == b"\x08\x01"  # SERVING


@pytest.mark.parametrize(
    "authorization",
    ["Bearer hr_wrong", "Bearer ", "Basic aGk6aGk=", "hr_bare", "Bearer " + "x" * 1_000],
)
async def test_bad_credentials_are_refused(
    open_channel: grpc.aio.Channel, authorization: str
) -> None:
    metadata = (("authorization", authorization),)
    call = call_raw(open_channel, "/headrace.v1.RunService/GetRun", metadata)
    assert await reason_of(call) == "UNAUTHENTICATED"


async def test_a_token_works_until_it_is_revoked(
    open_channel: grpc.aio.Channel, tokens: TokenStore
) -> None:
    token_id, token = await tokens.create(workspace="default", name="brief", can_write=True)
    stub: Any = pb_grpc.RunServiceStub(open_channel)
    await stub.CreateRun(pb.CreateRunRequest(run_id=uuid4().hex), metadata=bearer(token))
    assert await tokens.revoke(token_id)

    async def use_it_until_the_gateway_forgets() -> None:
        while True:
            request = pb.CreateRunRequest(run_id=uuid4().hex)
            await stub.CreateRun(request, metadata=bearer(token))

    async with asyncio.timeout(30):
        assert await reason_of(use_it_until_the_gateway_forgets()) == "UNAUTHENTICATED"


async def test_an_expired_token_is_refused(
    open_channel: grpc.aio.Channel, tokens: TokenStore
) -> None:
    token = await make(tokens, lifetime_s=-1.0)
    call = call_raw(open_channel, "/headrace.v1.RunService/GetRun", bearer(token))
    assert await reason_of(call) == "UNAUTHENTICATED"


async def test_revocation_ends_an_open_stream(
    open_channel: grpc.aio.Channel, tokens: TokenStore
) -> None:
    token_id, token = await tokens.create(workspace="default", name="long", can_write=True)
    stub: Any = pb_grpc.RunServiceStub(open_channel)
    run_id = uuid4().hex
    await stub.CreateRun(pb.CreateRunRequest(run_id=run_id), metadata=bearer(token))
    write: Any = open_channel.stream_stream(
        "/headrace.v1.MetricService/WriteMetrics",
        metrics_pb.WriteMetricsRequest.SerializeToString,
        metrics_pb.WriteMetricsResponse.FromString,
    )
    stream = write(metadata=bearer(token))
    writer = metrics_pb.OpenWriter(run_id=run_id, writer_id=uuid4().hex, incarnation=uuid4().hex)
    await stream.write(metrics_pb.WriteMetricsRequest(open=writer))
    assert (await stream.read()).HasField("opened")
    await tokens.revoke(token_id)
    async with asyncio.timeout(30):
        assert await reason_of(stream.read()) == "UNAUTHENTICATED"


async def test_runs_of_another_workspace_do_not_exist(
    open_channel: grpc.aio.Channel, tokens: TokenStore
) -> None:
    here = bearer(await make(tokens, workspace="here"))
    there = bearer(await make(tokens, workspace="there"))
    stub: Any = pb_grpc.RunServiceStub(open_channel)
    run_id = uuid4().hex
    await stub.CreateRun(pb.CreateRunRequest(run_id=run_id, experiment="secret"), metadata=here)
    for call in (
        stub.GetRun(pb.GetRunRequest(run_id=run_id), metadata=there),
        stub.FinishRun(pb.FinishRunRequest(run_id=run_id), metadata=there),
        stub.HeartbeatRun(pb.HeartbeatRunRequest(run_id=run_id), metadata=there),
    ):
        assert await reason_of(call) == "RUN_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.CreateRun(pb.CreateRunRequest(run_id=run_id), metadata=there)
    assert error_info(failed.value).reason == "RUN_EXISTS"
    assert "secret" not in str(failed.value)


async def test_the_database_never_holds_a_token(
    secured: GatewayProcess, tokens: TokenStore
) -> None:
    token = await make(tokens)
    connection = await asyncpg.connect(secured.dsn)
    rows = str(await connection.fetch("SELECT t::text FROM tokens t"))
    await connection.close()
    assert token not in rows
    assert token.encode().hex() not in rows


async def test_a_defect_shows_its_log_id_and_nothing_else(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    with new_database() as dsn, GatewayProcess(dsn, tmp_path) as process:
        connection = await asyncpg.connect(dsn)
        await connection.execute("ALTER TABLE run_heartbeats RENAME TO private_name")
        await connection.close()
        async with grpc.aio.insecure_channel(process.address) as channel:
            stub: Any = pb_grpc.RunServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.GetRun(pb.GetRunRequest(run_id=uuid4().hex))
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert error_info(failed.value).reason == "INTERNAL"
        assert "run_heartbeats" not in str(failed.value)
