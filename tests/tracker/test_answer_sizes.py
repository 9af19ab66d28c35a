"""However many runs and experiments there are, and metrics of a run: the answers that carry them
reach a client with gRPC's own limits, 4 MiB."""

import asyncio
import uuid

import asyncpg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from headrace.client import Client
from headrace.v1 import experiment_service_pb2 as experiment_pb
from headrace.v1 import run_service_pb2 as pb

from gateway.domain.runs import RUN_METRICS_MAX
from tests.support.gateway_process import GatewayProcess
from tests.tracker.conftest import Tracker, param

ANSWER_BYTES_MAX = 1_200_000
"""1 MiB of runs, and what an estimate is wrong by."""


async def give_metrics(dsn: str, count: int, *run_ids: str) -> None:
    """Let runs have metrics `layer/000000/weights`, …"""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "INSERT INTO run_metrics SELECT run_id, experiment_id,"
            " format('layer/%s/weights', lpad(n::text, 6, '0')),"
            " 0, 1000, 999, 1767225600000000, random(), random(), random()"
            " FROM runs, generate_series(0, $2::int - 1) n WHERE run_id = ANY ($1::uuid[])",
            [uuid.UUID(run_id) for run_id in run_ids],
            count,
        )
    finally:
        await connection.close()


async def test_a_search_returns_all_runs_however_large_they_are(
    tracker: Tracker, shared_gateway: GatewayProcess, experiment: str
) -> None:
    made = [await tracker.create_run(experiment) for _ in range(200)]
    await give_metrics(shared_gateway.dsn, 400, *made)

    def searched() -> list[str]:
        with Client(shared_gateway.address) as client:
            found = list(client.search_runs(experiments=[experiment]))
        assert all(len(run.metrics) == 400 for run in found)
        return [run.run_id for run in found]

    found = await asyncio.to_thread(searched)
    assert sorted(found) == sorted(made)
    for order in (["metrics.`layer/000001/weights`"], ["metrics.none", "name"]):
        ordered = await tracker.search(
            experiments=[experiment], order_by=order, page_size=1_000, include_data=True
        )
        assert sorted(run.run_id for run in ordered) == sorted(made)
    page = await tracker.runs.SearchRuns(
        pb.SearchRunsRequest(experiments=[experiment], page_size=1_000, include_data=True)
    )
    assert ANSWER_BYTES_MAX / 2 < page.ByteSize() < ANSWER_BYTES_MAX


async def test_a_small_run_before_large_ones_makes_no_large_page(
    tracker: Tracker, shared_gateway: GatewayProcess, experiment: str
) -> None:
    large = [await tracker.create_run(experiment) for _ in range(10)]
    await give_metrics(shared_gateway.dsn, RUN_METRICS_MAX, *large)
    small = [await tracker.create_run(experiment) for _ in range(10)]  # newest first
    request = pb.SearchRunsRequest(experiments=[experiment], include_data=True)
    counts = []
    found: list[str] = []
    while True:
        page = await tracker.runs.SearchRuns(request)
        assert page.ByteSize() < ANSWER_BYTES_MAX
        counts.append(len(page.runs))
        found += [run.run_id for run in page.runs]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == [*reversed(small), *reversed(large)]
    assert counts[0] >= len(small)


async def test_notes_count_too(tracker: Tracker, experiment: str) -> None:
    notes = pb.MetadataEntry(notes="n" * 65_000)
    made = [await tracker.create_run(experiment, entries=[notes]) for _ in range(40)]
    page = await tracker.runs.SearchRuns(pb.SearchRunsRequest(experiments=[experiment]))
    assert page.ByteSize() < ANSWER_BYTES_MAX
    assert len(await tracker.search(experiments=[experiment])) == len(made)


async def test_a_search_returns_all_experiments_however_long_their_descriptions_are(
    tracker: Tracker, experiment: str
) -> None:
    made = [f"{experiment}/{number:02}" for number in range(40)]
    for name in made:
        await tracker.experiments.CreateExperiment(
            experiment_pb.CreateExperimentRequest(name=name, description="d" * 65_000)
        )
    request = experiment_pb.SearchExperimentsRequest(
        filter=f"name LIKE '{experiment}/%'", page_size=1_000
    )
    found: list[str] = []
    while True:
        page = await tracker.experiments.SearchExperiments(request)
        assert page.ByteSize() < ANSWER_BYTES_MAX
        found += [one.name for one in page.experiments]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == made


async def test_a_run_with_very_many_metrics_is_created_changed_and_finished(
    tracker: Tracker, shared_gateway: GatewayProcess, experiment: str
) -> None:
    run_id = await tracker.create_run(experiment)
    await give_metrics(shared_gateway.dsn, 70_000, run_id)
    runs = tracker.runs
    renaming = pb.UpdateRunRequest(
        run_id=run_id, run=pb.Run(name="large"), update_mask=FieldMask(paths=["name"])
    )
    again = await runs.CreateRun(pb.CreateRunRequest(run_id=run_id, experiment=experiment))
    finished = await runs.FinishRun(pb.FinishRunRequest(run_id=run_id))
    assert (again.created, finished.applied) == (False, True)
    changed = [
        again.run,
        finished.run,
        (await runs.ReopenRun(pb.ReopenRunRequest(run_id=run_id))).run,
        (await runs.UpdateRun(renaming)).run,
        (await runs.DeleteRun(pb.DeleteRunRequest(run_id=run_id))).run,
        (await runs.RestoreRun(pb.RestoreRunRequest(run_id=run_id))).run,
    ]
    assert all(run.run_id == run_id and not run.metrics for run in changed)
    keys = [f"layer/{number:06}/weights" for number in range(RUN_METRICS_MAX)]
    assert [metric.key for metric in (await tracker.run(run_id)).metrics] == keys
    (found,) = await tracker.search(experiments=[experiment], include_data=True)
    assert [metric.key for metric in found.metrics] == keys


@pytest.mark.parametrize("field", ["params", "facts", "datasets"])
async def test_a_run_with_very_much_metadata_is_created_and_finished(
    tracker: Tracker, experiment: str, field: str
) -> None:
    run_id = await tracker.create_run(experiment, entries=[param("lr", "0.1")])
    text = "v" * 6_000
    for begin in range(0, 900, 150):
        numbers = range(begin, begin + 150)
        match field:
            case "params":
                entries = [param(f"p{number}", text) for number in numbers]
            case "facts":
                entries = [
                    pb.MetadataEntry(fact=pb.Fact(name=f"f{number}", value=text))
                    for number in numbers
                ]
            case _:
                entries = [
                    pb.MetadataEntry(dataset=pb.DatasetInput(name=f"d{number}", schema=text))
                    for number in numbers
                ]
        await tracker.write(run_id, *entries)
    request = pb.CreateRunRequest(run_id=run_id, experiment=experiment)
    for run in (
        (await tracker.runs.CreateRun(request)).run,
        (await tracker.runs.FinishRun(pb.FinishRunRequest(run_id=run_id))).run,
    ):
        assert run.ByteSize() < ANSWER_BYTES_MAX
        assert [item.key for item in run.params] == ([] if field != "datasets" else ["lr"])
