"""What platform tests share: clients of a gateway, and why calls fail."""

from collections.abc import AsyncIterator, Awaitable

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from tests.support.gateway_process import GatewayProcess


@pytest.fixture
async def channel(shared_gateway: GatewayProcess) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the shared gateway, without credentials."""
    async with grpc.aio.insecure_channel(shared_gateway.address) as opened:
        yield opened


def error_info(error: grpc.aio.AioRpcError) -> ErrorInfo:
    """Return the one ErrorInfo of a failure; fail when there is none or several."""
    statuses = [
        Status.FromString(value)
        for key, value in error.trailing_metadata() or ()
        if key == "grpc-status-details-bin"
    ]
    infos = [
        ErrorInfo.FromString(detail.value)
        for status in statuses
        for detail in status.details
        if detail.Is(ErrorInfo.DESCRIPTOR)
    ]
    assert len(infos) == 1, f"{len(infos)} ErrorInfos in {error!r}"
    assert infos[0].domain == "headrace.dev"
    return infos[0]


async def reason_of(call: Awaitable[object]) -> str:
    """Return the reason that a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return str(error_info(failed.value).reason)
