"""Experiments have unique names; workspaces do not see each other."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from headrace.v1 import experiment_service_pb2 as pb
from headrace.v1 import metric_service_pb2, run_service_pb2

from gateway.domain.errors import HeadraceError, Reason
from gateway.store.connections import Database
from gateway.store.queries import load
from gateway.store.workspaces import WorkspaceStore
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import eventually_async
from tests.support.writer_stream import (
    WriterStream,
    batch,
    bystander,
    connected,
    keys,
    opening,
)
from tests.tracker.conftest import Tracker, failure, stubs


async def create(tracker: Tracker, name: str, **fields: object) -> pb.CreateExperimentResponse:
    request = pb.CreateExperimentRequest(name=name, **fields)  # type: ignore[arg-type]
    response: pb.CreateExperimentResponse = await tracker.experiments.CreateExperiment(request)
    return response


async def test_an_experiment_is_read_back_by_id_and_by_name(
    tracker: Tracker, experiment: str
) -> None:
    made = await create(
        tracker,
        experiment,
        description="what for",
        tags=[run_service_pb2.Tag(key="owner", value="ada")],
    )
    assert made.created
    by_id = await tracker.experiments.GetExperiment(
        pb.GetExperimentRequest(experiment_id=made.experiment.experiment_id)
    )
    by_name = await tracker.experiments.GetExperiment(pb.GetExperimentRequest(name=experiment))
    assert by_id.experiment == by_name.experiment == made.experiment
    assert made.experiment.tags[0].value == "ada"


async def test_default_is_experiment_0(tracker: Tracker) -> None:
    found = await tracker.experiments.GetExperiment(pb.GetExperimentRequest(experiment_id=0))
    assert found.experiment.name == "Default"


async def test_a_name_is_taken_once(tracker: Tracker, experiment: str) -> None:
    first = await create(tracker, experiment)
    failed = await failure(create(tracker, experiment))
    assert (failed.code, failed.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "EXPERIMENT_EXISTS",
    )
    got = await create(tracker, experiment, get_if_exists=True)
    assert (got.created, got.experiment) == (False, first.experiment)


async def test_one_request_creates_one_experiment_however_often_it_is_sent(
    tracker: Tracker, experiment: str
) -> None:
    request_id = uuid.uuid4().hex
    answers = await asyncio.gather(
        *(create(tracker, experiment, request_id=request_id) for _ in range(16))
    )
    assert sum(answer.created for answer in answers) == 1
    assert len({answer.experiment.experiment_id for answer in answers}) == 1
    other = await failure(create(tracker, experiment, request_id=uuid.uuid4().hex))
    assert other.reason == "EXPERIMENT_EXISTS"


async def test_an_experiment_is_renamed_and_described(tracker: Tracker, experiment: str) -> None:
    made = (await create(tracker, experiment)).experiment
    await create(tracker, experiment + "/taken")
    request = pb.UpdateExperimentRequest(
        experiment_id=made.experiment_id,
        experiment=pb.Experiment(name=experiment + "/new", description="d"),
    )
    request.update_mask.paths[:] = ["name", "description"]
    for _ in range(2):
        changed = (await tracker.experiments.UpdateExperiment(request)).experiment
        assert (changed.name, changed.description) == (experiment + "/new", "d")
    request.experiment.name = experiment + "/taken"
    assert (await failure(tracker.experiments.UpdateExperiment(request))).reason == (
        "EXPERIMENT_EXISTS"
    )
    request.update_mask.paths[:] = ["tags"]
    assert (await failure(tracker.experiments.UpdateExperiment(request))).reason == (
        "FIELD_INVALID"
    )


async def test_tags_are_set_and_deleted(tracker: Tracker, experiment: str) -> None:
    made = (await create(tracker, experiment)).experiment
    request = pb.WriteExperimentTagsRequest(
        experiment_id=made.experiment_id,
        tags=[run_service_pb2.Tag(key=key, value="1") for key in "ab"],
    )
    await tracker.experiments.WriteExperimentTags(request)
    request = pb.WriteExperimentTagsRequest(
        experiment_id=made.experiment_id,
        tags=[run_service_pb2.Tag(key="a", value="2")],
        deleted_keys=["a", "b", "c"],
    )
    changed = (await tracker.experiments.WriteExperimentTags(request)).experiment
    assert [(item.key, item.value) for item in changed.tags] == [("a", "2")]


async def test_a_deleted_experiment_is_hidden_with_its_runs_and_takes_no_new_ones(
    tracker: Tracker, experiment: str
) -> None:
    run_id = await tracker.create_run(experiment)
    found = await tracker.experiments.GetExperiment(pb.GetExperimentRequest(name=experiment))
    number = found.experiment.experiment_id
    await tracker.experiments.DeleteExperiment(pb.DeleteExperimentRequest(experiment_id=number))
    search = pb.SearchExperimentsRequest(filter=f"name = '{experiment}'")
    assert not (await tracker.experiments.SearchExperiments(search)).experiments
    assert (await failure(tracker.create_run(experiment))).reason == "EXPERIMENT_DELETED"
    assert (await failure(create(tracker, experiment))).reason == "EXPERIMENT_EXISTS"
    everything = await tracker.search(filter=f"run_id = '{run_id}'")
    assert not everything
    await tracker.experiments.RestoreExperiment(pb.RestoreExperimentRequest(experiment_id=number))
    assert [run.run_id for run in await tracker.search(filter=f"run_id = '{run_id}'")] == [run_id]


async def test_a_run_is_found_by_whoever_knows_its_experiment_by_an_older_name(
    tracker: Tracker, experiment: str
) -> None:
    run_id = await tracker.create_run(experiment)
    found = await tracker.experiments.GetExperiment(pb.GetExperimentRequest(name=experiment))
    number = found.experiment.experiment_id
    await tracker.experiments.UpdateExperiment(
        pb.UpdateExperimentRequest(
            experiment_id=number,
            experiment=pb.Experiment(name=experiment + "/renamed"),
            update_mask=FieldMask(paths=["name"]),
        )
    )
    request = run_service_pb2.CreateRunRequest(run_id=run_id, experiment=experiment)
    request.entries.add().fact.CopyFrom(run_service_pb2.Fact(name="a", value="b"))
    for _ in range(2):
        again = await tracker.runs.CreateRun(request)
        assert not again.created
        assert again.run.experiment == experiment + "/renamed"
        request.ClearField("entries")
    get = pb.GetExperimentRequest(name=experiment)  # no empty one was made for it
    failed = await failure(tracker.experiments.GetExperiment(get))
    assert failed.reason == "EXPERIMENT_NOT_FOUND"
    await tracker.experiments.DeleteExperiment(pb.DeleteExperimentRequest(experiment_id=number))
    assert (await tracker.runs.CreateRun(request)).run.experiment_id == number


async def test_default_cannot_go(tracker: Tracker) -> None:
    call = tracker.experiments.DeleteExperiment(pb.DeleteExperimentRequest(experiment_id=0))
    assert (await failure(call)).reason == "FIELD_INVALID"


async def test_default_cannot_go_in_another_workspace_either(tracker: Tracker) -> None:
    name = "w" + uuid.uuid4().hex
    await tracker.workspaces.CreateWorkspace(pb.CreateWorkspaceRequest(name=name))
    there = (("headrace-workspace", name),)

    async def create_run() -> run_service_pb2.CreateRunResponse:
        request = run_service_pb2.CreateRunRequest(run_id=uuid.uuid4().hex)
        response: run_service_pb2.CreateRunResponse = await tracker.runs.CreateRun(
            request, metadata=there
        )
        return response

    number = (await create_run()).run.experiment_id
    assert number != 0
    delete = pb.DeleteExperimentRequest(experiment_id=number)
    failed = await failure(tracker.experiments.DeleteExperiment(delete, metadata=there))
    assert failed.reason == "FIELD_INVALID"
    rename = pb.UpdateExperimentRequest(
        experiment_id=number,
        experiment=pb.Experiment(name="other", description="what it is for"),
        update_mask=FieldMask(paths=["name", "description"]),
    )
    failed = await failure(tracker.experiments.UpdateExperiment(rename, metadata=there))
    assert failed.reason == "FIELD_INVALID"
    rename.update_mask.paths[:] = ["description"]
    changed = (await tracker.experiments.UpdateExperiment(rename, metadata=there)).experiment
    assert (changed.name, changed.description) == ("Default", "what it is for")
    assert (await create_run()).run.experiment_id == number


async def test_what_is_not_there_is_not_found(tracker: Tracker) -> None:
    for call in (
        tracker.experiments.GetExperiment(pb.GetExperimentRequest(experiment_id=2**40)),
        tracker.experiments.GetExperiment(pb.GetExperimentRequest(name="no such")),
        tracker.experiments.DeleteExperiment(pb.DeleteExperimentRequest(experiment_id=2**40)),
        tracker.experiments.RestoreExperiment(pb.RestoreExperimentRequest(experiment_id=2**40)),
        tracker.search(experiments=["no such"]),
        tracker.search(experiment_ids=[2**40]),
    ):
        assert (await failure(call)).reason == "EXPERIMENT_NOT_FOUND"


async def test_paging_reaches_every_experiment_while_others_are_inserted(
    tracker: Tracker, experiment: str
) -> None:
    wanted = {f"{experiment}/{number:02}" for number in range(25)}
    for name in wanted:
        await create(tracker, name)
    seen: list[str] = []
    token = ""
    while True:
        page = await tracker.experiments.SearchExperiments(
            pb.SearchExperimentsRequest(
                filter=f"name LIKE '{experiment}/%'",
                order_by=["name DESC"],
                page_size=4,
                page_token=token,
            )
        )
        seen += [item.name for item in page.experiments]
        await create(tracker, f"{experiment}/{uuid.uuid4().hex}")
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen))
    assert wanted <= set(seen)
    assert seen == sorted(seen, reverse=True)


async def test_a_workspace_sees_nothing_of_another(tracker: Tracker, experiment: str) -> None:
    name = "w" + uuid.uuid4().hex
    request = pb.CreateWorkspaceRequest(name=name, request_id=uuid.uuid4().hex)
    for _ in range(2):
        made = await tracker.workspaces.CreateWorkspace(request)
        assert made.workspace.name == name
    assert (
        await failure(tracker.workspaces.CreateWorkspace(pb.CreateWorkspaceRequest(name=name)))
    ).reason == "WORKSPACE_EXISTS"
    there = (("headrace-workspace", name),)
    run_id = await tracker.create_run(experiment)
    get = run_service_pb2.GetRunRequest(run_id=run_id)
    assert (await failure(tracker.runs.GetRun(get, metadata=there))).reason == "RUN_NOT_FOUND"
    # The same name, another experiment; the same id, refused.
    elsewhere = run_service_pb2.CreateRunRequest(run_id=uuid.uuid4().hex, experiment=experiment)
    await tracker.runs.CreateRun(elsewhere, metadata=there)
    search = run_service_pb2.SearchRunsRequest(experiments=[experiment])
    found = await tracker.runs.SearchRuns(search, metadata=there)
    assert [run.run_id for run in found.runs] == [elsewhere.run_id]
    taken = run_service_pb2.CreateRunRequest(run_id=run_id, experiment=experiment)
    assert (await failure(tracker.runs.CreateRun(taken, metadata=there))).reason == "RUN_EXISTS"


async def test_one_request_creates_one_workspace_also_when_the_first_is_not_committed(
    database_dsn: str,
) -> None:
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=3)
    store = WorkspaceStore(database)
    request_id = uuid.uuid4()
    first, watcher = [await asyncpg.connect(database_dsn) for _ in range(2)]

    async def all_wait() -> bool:
        waiting = await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(waiting == 3)

    async with first.transaction():
        made = await first.fetchrow(load("workspaces")["create"], "w", request_id)
        repeated = asyncio.create_task(store.create("w", request_id=request_id))
        renamed = asyncio.create_task(store.create("v", request_id=request_id))
        other = asyncio.create_task(store.create("w", request_id=uuid.uuid4()))
        await eventually_async(all_wait)
    for same in (repeated, renamed):
        assert (await same).workspace_id == made["workspace_id"]
    with pytest.raises(HeadraceError) as refused:
        await other
    assert refused.value.reason is Reason.WORKSPACE_EXISTS
    for opened in (first, watcher, database):
        await opened.close()


async def test_an_unknown_workspace_is_not_found(tracker: Tracker) -> None:
    for name in ("no-such", "Bad Name", "-"):
        call = tracker.runs.SearchRuns(
            run_service_pb2.SearchRunsRequest(), metadata=(("headrace-workspace", name),)
        )
        assert (await failure(call)).reason == "WORKSPACE_NOT_FOUND"


async def test_an_archived_workspace_can_be_read_but_not_written(
    shared_gateway: GatewayProcess,
) -> None:
    name = "w" + uuid.uuid4().hex
    there = (("headrace-workspace", name),)
    async with grpc.aio.insecure_channel(shared_gateway.address) as channel:
        tracker = stubs(channel)
        await tracker.workspaces.CreateWorkspace(pb.CreateWorkspaceRequest(name=name))
        await tracker.workspaces.ArchiveWorkspace(pb.ArchiveWorkspaceRequest(name=name))
        await tracker.runs.SearchRuns(run_service_pb2.SearchRunsRequest(), metadata=there)
        call = tracker.runs.CreateRun(
            run_service_pb2.CreateRunRequest(run_id=uuid.uuid4().hex), metadata=there
        )
        assert (await failure(call)).reason == "WORKSPACE_ARCHIVED"
        listed = await tracker.workspaces.ListWorkspaces(pb.ListWorkspacesRequest(page_size=1000))
        assert name not in {item.name for item in listed.workspaces}


async def test_archiving_a_workspace_ends_the_streams_that_write_to_it(
    database_dsn: str, tmp_path: Path
) -> None:
    """Also without tokens; streams that read, and those of other workspaces, go on."""
    there = (("headrace-workspace", "w"),)
    arguments = ["--set", "token_cache_s=0.05", "--set", "token_recheck_s=0.05"]
    with GatewayProcess(database_dsn, tmp_path, arguments=arguments) as gateway:
        async with connected(gateway.address) as channel, bystander(gateway.address):
            tracker = stubs(channel)
            await tracker.workspaces.CreateWorkspace(pb.CreateWorkspaceRequest(name="w"))
            run_id = uuid.uuid4().hex
            await tracker.runs.CreateRun(
                run_service_pb2.CreateRunRequest(run_id=run_id), metadata=there
            )
            reading: Any = channel.unary_stream(
                "/headrace.v1.MetricService/ReadMetrics",
                metric_service_pb2.ReadMetricsRequest.SerializeToString,
                metric_service_pb2.ReadMetricsResponse.FromString,
            )(metric_service_pb2.ReadMetricsRequest(run_id=run_id, follow=True), metadata=there)
            assert (await reading.read()).HasField("caught_up")
            async with WriterStream(channel, there) as stream:
                await stream.send(opening(run_id), keys("loss"), batch())
                await stream.read_until(1)
                await tracker.workspaces.ArchiveWorkspace(pb.ArchiveWorkspaceRequest(name="w"))
                async with asyncio.timeout(30):
                    assert (await stream.failure()).reason == "WORKSPACE_ARCHIVED"
            assert len((await reading.read()).columns.step) == 1
            assert not reading.done()
            reading.cancel()


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "x" * 64])
async def test_a_bad_workspace_name_is_refused(tracker: Tracker, name: str) -> None:
    call = tracker.workspaces.CreateWorkspace(pb.CreateWorkspaceRequest(name=name))
    assert (await failure(call)).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_default_is_never_archived(tracker: Tracker) -> None:
    call = tracker.workspaces.ArchiveWorkspace(pb.ArchiveWorkspaceRequest(name="default"))
    assert (await failure(call)).reason == "FIELD_INVALID"
