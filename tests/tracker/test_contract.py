"""What holds for every call of the tracker's services, each held to it by name.

The calls of the three services stand in one table; a test compares it with the
contract, so that a new one cannot be left out.
"""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from headrace.v1 import experiment_service_pb2 as experiments_pb
from headrace.v1 import run_service_pb2 as pb

from tests.tracker.conftest import Tracker, failure, param

Make = Callable[[str], Any]
NEVER_MADE = "f" * 32
NO_EXPERIMENT = 2**40


def update_run(run_id: str) -> pb.UpdateRunRequest:
    request = pb.UpdateRunRequest(run_id=run_id, run=pb.Run(name="new"))
    request.update_mask.paths.append("name")
    return request


def update_experiment(number: str) -> experiments_pb.UpdateExperimentRequest:
    request = experiments_pb.UpdateExperimentRequest(experiment_id=int(number))
    request.experiment.description = "new"
    request.update_mask.paths.append("description")
    return request


ON_A_RUN: dict[str, Make] = {
    "GetRun": lambda run_id: pb.GetRunRequest(run_id=run_id),
    "FinishRun": lambda run_id: pb.FinishRunRequest(run_id=run_id),
    "HeartbeatRun": lambda run_id: pb.HeartbeatRunRequest(run_id=run_id),
    "ReopenRun": lambda run_id: pb.ReopenRunRequest(run_id=run_id),
    "UpdateRun": update_run,
    "WriteMetadata": lambda run_id: pb.WriteMetadataRequest(
        run_id=run_id, entries=[param("a", "1")]
    ),
    "DeleteRun": lambda run_id: pb.DeleteRunRequest(run_id=run_id),
    "RestoreRun": lambda run_id: pb.RestoreRunRequest(run_id=run_id),
}
ON_AN_EXPERIMENT: dict[str, Make] = {
    "GetExperiment": lambda number: experiments_pb.GetExperimentRequest(experiment_id=int(number)),
    "UpdateExperiment": update_experiment,
    "WriteExperimentTags": lambda number: experiments_pb.WriteExperimentTagsRequest(
        experiment_id=int(number), tags=[pb.Tag(key="a", value="1")]
    ),
    "DeleteExperiment": lambda number: experiments_pb.DeleteExperimentRequest(
        experiment_id=int(number)
    ),
    "RestoreExperiment": lambda number: experiments_pb.RestoreExperimentRequest(
        experiment_id=int(number)
    ),
}
PAGED: dict[str, Callable[..., Any]] = {
    "SearchRuns": pb.SearchRunsRequest,
    "SearchExperiments": experiments_pb.SearchExperimentsRequest,
    "ListWorkspaces": experiments_pb.ListWorkspacesRequest,
}
CREATING = {"CreateRun", "CreateExperiment", "CreateWorkspace"}
"""Their happy paths, errors and idempotency are tests of their own."""
BY_NAME = {"ArchiveWorkspace"}


def stub_of(tracker: Tracker, method: str) -> Any:
    for stub in (tracker.runs, tracker.experiments, tracker.workspaces):
        if hasattr(stub, method):
            return getattr(stub, method)
    raise AssertionError(method)


async def new_workspace(tracker: Tracker) -> tuple[tuple[str, str], ...]:
    """Make a workspace; return the metadata that names it."""
    name = "w" + uuid.uuid4().hex
    await tracker.workspaces.CreateWorkspace(experiments_pb.CreateWorkspaceRequest(name=name))
    return (("headrace-workspace", name),)


async def new_experiment(tracker: Tracker, name: str) -> int:
    request = experiments_pb.CreateExperimentRequest(name=name)
    made = await tracker.experiments.CreateExperiment(request)
    return made.experiment.experiment_id


def test_no_call_of_the_contract_is_left_out() -> None:
    pool = descriptor_pool.Default()
    methods = {
        method.name
        for service in ("RunService", "ExperimentService", "WorkspaceService")
        for method in pool.FindServiceByName(f"headrace.v1.{service}").methods
    }
    assert methods == {*ON_A_RUN, *ON_AN_EXPERIMENT, *PAGED, *CREATING, *BY_NAME}


@pytest.mark.parametrize("method", ON_A_RUN)
async def test_a_call_on_a_run_works_and_may_be_repeated(tracker: Tracker, method: str) -> None:
    run_id = await tracker.create_run()
    request = ON_A_RUN[method](run_id)
    first = await stub_of(tracker, method)(request)
    assert await stub_of(tracker, method)(request) == first


@pytest.mark.parametrize("method", ON_A_RUN)
async def test_a_call_on_a_run_that_is_not_there_fails(tracker: Tracker, method: str) -> None:
    failed = await failure(stub_of(tracker, method)(ON_A_RUN[method](NEVER_MADE)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")


@pytest.mark.parametrize("method", ON_A_RUN)
async def test_a_run_of_another_workspace_is_not_there(tracker: Tracker, method: str) -> None:
    there = await new_workspace(tracker)
    run_id = await tracker.create_run()
    call = stub_of(tracker, method)(ON_A_RUN[method](run_id), metadata=there)
    assert (await failure(call)).reason == "RUN_NOT_FOUND"


@pytest.mark.parametrize("method", ON_A_RUN)
@pytest.mark.parametrize("run_id", ["", "A" * 32, "a" * 31, "g" * 32])
async def test_a_bad_run_id_is_named(tracker: Tracker, method: str, run_id: str) -> None:
    failed = await failure(stub_of(tracker, method)(ON_A_RUN[method](run_id)))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.metadata["field"] == "run_id"


@pytest.mark.parametrize("method", ON_AN_EXPERIMENT)
async def test_a_call_on_an_experiment_works_and_may_be_repeated(
    tracker: Tracker, method: str, experiment: str
) -> None:
    number = await new_experiment(tracker, experiment)
    request = ON_AN_EXPERIMENT[method](str(number))
    for _ in range(2):
        found = (await stub_of(tracker, method)(request)).experiment
        assert (found.experiment_id, found.name) == (number, experiment)


@pytest.mark.parametrize("method", ON_AN_EXPERIMENT)
async def test_an_experiment_that_is_not_there_or_elsewhere_is_not_found(
    tracker: Tracker, method: str, experiment: str
) -> None:
    there = await new_workspace(tracker)
    number = await new_experiment(tracker, experiment)
    for request, metadata in (
        (ON_AN_EXPERIMENT[method](str(NO_EXPERIMENT)), ()),
        (ON_AN_EXPERIMENT[method](str(number)), there),
    ):
        failed = await failure(stub_of(tracker, method)(request, metadata=metadata))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "EXPERIMENT_NOT_FOUND")


@pytest.mark.parametrize("method", PAGED)
async def test_pages_have_a_size_and_tokens_a_request(tracker: Tracker, method: str) -> None:
    call, request = stub_of(tracker, method), PAGED[method]
    negative = await failure(call(request(page_size=-1)))
    assert (negative.reason, negative.metadata["field"]) == ("FIELD_INVALID", "page_size")
    for token in ("nonsense", "AAAA"):
        assert (await failure(call(request(page_token=token)))).reason == "PAGE_TOKEN_INVALID"
    await call(request(page_size=10**6))  # taken as the maximum


async def test_paging_reaches_every_workspace_while_others_are_made(tracker: Tracker) -> None:
    prefix = "p" + uuid.uuid4().hex[:8]

    async def make(name: str) -> None:
        await tracker.workspaces.CreateWorkspace(experiments_pb.CreateWorkspaceRequest(name=name))

    wanted = {f"{prefix}-{number:02}" for number in range(12)}
    for name in wanted:
        await make(name)
    seen: list[str] = []
    token = ""
    for turn in range(1_000):
        page = await tracker.workspaces.ListWorkspaces(
            experiments_pb.ListWorkspacesRequest(page_size=5, page_token=token)
        )
        seen += [item.name for item in page.workspaces]
        await make(f"{prefix}-{turn % 12:02}x") if turn < 12 else None
        token = page.next_page_token
        if not token:
            break
    assert wanted <= set(seen)
    assert seen == sorted(set(seen))


async def test_archiving_may_be_repeated_and_wants_a_workspace_that_is_there(
    tracker: Tracker,
) -> None:
    (_, name) = (await new_workspace(tracker))[0]
    request = experiments_pb.ArchiveWorkspaceRequest(name=name)
    first = await tracker.workspaces.ArchiveWorkspace(request)
    assert first.workspace.HasField("archive_time")
    assert await tracker.workspaces.ArchiveWorkspace(request) == first
    nobody = experiments_pb.ArchiveWorkspaceRequest(name="nobody")
    failed = await failure(tracker.workspaces.ArchiveWorkspace(nobody))
    assert failed.reason == "WORKSPACE_NOT_FOUND"
    listed = experiments_pb.ListWorkspacesRequest(page_size=1_000, include_archived=True)
    everything = (await tracker.workspaces.ListWorkspaces(listed)).workspaces
    assert name in {item.name for item in everything}


@pytest.mark.parametrize("request_id", ["x", "A" * 32, "a" * 33])
async def test_a_bad_request_id_is_named(
    tracker: Tracker, experiment: str, request_id: str
) -> None:
    for call in (
        tracker.experiments.CreateExperiment(
            experiments_pb.CreateExperimentRequest(name=experiment, request_id=request_id)
        ),
        tracker.workspaces.CreateWorkspace(
            experiments_pb.CreateWorkspaceRequest(name="w", request_id=request_id)
        ),
    ):
        failed = await failure(call)
        assert (failed.reason, failed.metadata["field"]) == ("FIELD_INVALID", "request_id")


async def test_runs_are_nested_to_any_depth_but_never_in_themselves(
    tracker: Tracker, experiment: str
) -> None:
    root = uuid.uuid4().hex
    line = [root]
    for _ in range(60):
        line.append(await tracker.create_run(experiment, parent_run_id=line[-1]))
    # The root may come last: spools are synced in any order. It closes no ring.
    for below in (line[1], line[-1]):
        ring = pb.CreateRunRequest(run_id=root, experiment=experiment, parent_run_id=below)
        failed = await failure(tracker.runs.CreateRun(ring))
        assert (failed.reason, failed.metadata["field"]) == ("FIELD_INVALID", "parent_run_id")
    assert (await tracker.run(line[-1])).parent_run_id == line[-2]


@pytest.mark.parametrize("size", [2, 3, 5])
async def test_of_runs_that_close_a_ring_at_the_same_moment_one_is_refused(
    tracker: Tracker, experiment: str, size: int
) -> None:
    for _ in range(20):
        ring = [uuid.uuid4().hex for _ in range(size)]
        outcomes = await asyncio.gather(
            *(
                tracker.runs.CreateRun(
                    pb.CreateRunRequest(
                        run_id=run_id, experiment=experiment, parent_run_id=ring[number - 1]
                    )
                )
                for number, run_id in enumerate(ring)
            ),
            return_exceptions=True,
        )
        (refused,) = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert isinstance(refused, grpc.aio.AioRpcError)
        assert "is itself nested in" in (refused.details() or "")
        failed = await failure(tracker.run(ring[outcomes.index(refused)]))
        assert failed.reason == "RUN_NOT_FOUND"


async def test_names_are_held_to_the_pattern_of_the_gateway(
    database_dsn: str, tmp_path: Any
) -> None:
    from tests.support.gateway_process import GatewayProcess
    from tests.tracker.conftest import stubs

    environment = {"HEADRACE_GATEWAY_EXPERIMENT_NAME_PATTERN": "[a-z]+/[a-z]+/[a-z]+"}
    with GatewayProcess(database_dsn, tmp_path, environment=environment) as gateway:
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            tracker = stubs(channel)
            number = await new_experiment(tracker, "rec/ads/rank")
            for call in (
                tracker.create_run("rec"),
                new_experiment(tracker, "rec/ads"),
                tracker.experiments.UpdateExperiment(_renaming(number, "Rank")),
            ):
                failed = await failure(call)
                assert failed.reason == "FIELD_INVALID"
                assert "[a-z]+/[a-z]+/[a-z]+" in failed.message
            await tracker.create_run("rec/ads/rank")
            await tracker.create_run()  # Default always may be


def _renaming(number: int, name: str) -> experiments_pb.UpdateExperimentRequest:
    request = experiments_pb.UpdateExperimentRequest(experiment_id=number)
    request.experiment.name = name
    request.update_mask.paths.append("name")
    return request
