"""What tracker tests share: stubs of a gateway, runs made in one line, failures read."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from headrace.v1 import experiment_service_pb2_grpc as experiment_grpc
from headrace.v1 import run_service_pb2 as pb
from headrace.v1 import run_service_pb2_grpc as run_grpc

from tests.support.gateway_process import GatewayProcess
from tests.support.writer_stream import Failure, failure_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracker:
    """Stubs over one channel."""

    channel: grpc.aio.Channel
    runs: run_grpc.RunServiceAsyncStub
    experiments: experiment_grpc.ExperimentServiceAsyncStub
    workspaces: experiment_grpc.WorkspaceServiceAsyncStub

    async def create_run(self, experiment: str = "", **fields: Any) -> str:
        """Create a run; return its id."""
        run_id = uuid.uuid4().hex
        await self.runs.CreateRun(
            pb.CreateRunRequest(run_id=run_id, experiment=experiment, **fields)
        )
        return run_id

    async def run(self, run_id: str) -> pb.Run:
        """Read a run."""
        return (await self.runs.GetRun(pb.GetRunRequest(run_id=run_id))).run

    async def write(self, run_id: str, *entries: pb.MetadataEntry) -> None:
        """Write metadata."""
        await self.runs.WriteMetadata(pb.WriteMetadataRequest(run_id=run_id, entries=entries))

    async def search(self, **request: Any) -> list[pb.Run]:
        """Search to the last page."""
        found: list[pb.Run] = []
        token = ""
        while True:
            page = await self.runs.SearchRuns(pb.SearchRunsRequest(**request, page_token=token))
            found += page.runs
            token = page.next_page_token
            if not token:
                return found


def param(key: str, value: str) -> pb.MetadataEntry:
    """An entry that sets a param."""
    return pb.MetadataEntry(param=pb.Param(key=key, value=value))


def tag(key: str, value: str) -> pb.MetadataEntry:
    """An entry that sets a tag."""
    return pb.MetadataEntry(tag=pb.Tag(key=key, value=value))


def stubs(channel: grpc.aio.Channel) -> Tracker:
    """Return the stubs over a channel."""
    return Tracker(
        channel=channel,
        runs=run_grpc.RunServiceStub(channel),
        experiments=experiment_grpc.ExperimentServiceStub(channel),
        workspaces=experiment_grpc.WorkspaceServiceStub(channel),
    )


@pytest.fixture
async def tracker(shared_gateway: GatewayProcess) -> AsyncIterator[Tracker]:
    """Stubs of the gateway that tests share; experiments of one test need names of their own."""
    async with grpc.aio.insecure_channel(shared_gateway.address) as channel:
        yield stubs(channel)


@pytest.fixture
def experiment() -> str:
    """The name of an experiment that no other test uses."""
    return f"team/tests/{uuid.uuid4().hex}"


async def failure(call: Awaitable[object]) -> Failure:
    """Return how a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    error = failed.value
    trailers = [(key, value) for key, value in error.trailing_metadata() or ()]
    return failure_of(error.code(), error.details(), trailers)
