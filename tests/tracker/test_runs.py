"""Runs say what they are; what was written once is read by everybody, as it was written."""

import asyncio
import math
import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from headrace.v1 import run_service_pb2 as pb

from gateway.domain.metadata import DATASET_IDENTITY_BYTES_MAX
from tests.tracker.conftest import Tracker, failure, param, tag


async def test_what_is_said_at_creation_is_read_back(tracker: Tracker, experiment: str) -> None:
    parent = await tracker.create_run(experiment)
    run_id = uuid.uuid4().hex
    request = pb.CreateRunRequest(
        run_id=run_id,
        experiment=experiment,
        name="a name",
        parent_run_id=parent,
        user_name="ada",
        host="node-7",
        git_commit="f00d",
        entry_point="train.py --lr 0.1",
        entries=[
            param("lr", "0.1"),
            tag("team", "rec"),
            pb.MetadataEntry(notes="first\nsecond"),
            pb.MetadataEntry(summary=pb.SummaryValue(key="best", number=math.inf)),
            pb.MetadataEntry(summary=pb.SummaryValue(key="verdict", text="good")),
            pb.MetadataEntry(fact=pb.Fact(name="python.version", value="3.11")),
            pb.MetadataEntry(
                dataset=pb.DatasetInput(name="digits", digest="ab12", context="training")
            ),
        ],
    )
    started = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    request.start_time.FromDatetime(started)
    made = await tracker.runs.CreateRun(request)
    run = await tracker.run(run_id)
    assert made.created
    changed = pb.Run()
    changed.CopyFrom(run)
    changed.ClearField("datasets")  # as in the answers of all changes
    assert made.run == changed
    assert run.name == "a name"
    assert run.parent_run_id == parent
    assert (run.user_name, run.host, run.git_commit) == ("ada", "node-7", "f00d")
    assert run.entry_point == "train.py --lr 0.1"
    assert run.start_time.ToDatetime(UTC) == started
    assert run.notes == "first\nsecond"
    assert dict(run.facts) == {"python.version": "3.11"}
    assert [(item.key, item.value) for item in run.params] == [("lr", "0.1")]
    assert [(item.key, item.value) for item in run.tags] == [("team", "rec")]
    assert [(item.key, item.number, item.text) for item in run.summary] == [
        ("best", math.inf, ""),
        ("verdict", 0.0, "good"),
    ]
    assert [(item.name, item.digest, item.context) for item in run.datasets] == [
        ("digits", "ab12", "training")
    ]
    again = await tracker.runs.CreateRun(request)
    assert not again.created
    assert again.run == changed


async def test_children_are_found_by_their_parent(tracker: Tracker, experiment: str) -> None:
    root = await tracker.create_run(experiment)
    children = {await tracker.create_run(experiment, parent_run_id=root) for _ in range(3)}
    grandchild = await tracker.create_run(experiment, parent_run_id=min(children))
    found = await tracker.search(
        experiments=[experiment], filter=f"attributes.parent_run_id = '{root}'"
    )
    assert {run.run_id for run in found} == children
    assert (await tracker.run(grandchild)).parent_run_id == min(children)


async def test_an_equal_param_may_be_set_again_another_value_may_not(tracker: Tracker) -> None:
    run_id = await tracker.create_run()
    await tracker.write(run_id, param("lr", "0.1"))
    await tracker.write(run_id, param("lr", "0.1"), param("depth", "4"))
    failed = await failure(tracker.write(run_id, param("new", "1"), param("lr", "0.2")))
    assert failed.code is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.reason == "PARAM_CHANGED"
    assert (failed.metadata["current"], failed.metadata["value"]) == ("0.1", "0.2")
    assert "0.1" in failed.message
    assert "0.2" in failed.message
    # All or nothing.
    assert {item.key for item in (await tracker.run(run_id)).params} == {"lr", "depth"}


async def test_of_racing_values_of_one_param_one_wins_and_the_others_are_told(
    tracker: Tracker,
) -> None:
    run_id = await tracker.create_run()
    calls = [tracker.write(run_id, param("seed", str(number))) for number in range(16)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    (stored,) = (await tracker.run(run_id)).params
    assert [number for number, outcome in enumerate(outcomes) if outcome is None] == [
        int(stored.value)
    ]


async def test_tags_change_and_go_and_the_last_statement_of_a_call_counts(
    tracker: Tracker,
) -> None:
    run_id = await tracker.create_run(entries=[tag("a", "1"), tag("b", "1"), tag("c", "1")])
    await tracker.write(
        run_id,
        tag("a", "2"),
        pb.MetadataEntry(deleted_tag="b"),
        pb.MetadataEntry(deleted_tag="c"),
        tag("c", "3"),
        pb.MetadataEntry(deleted_tag="never there"),
    )
    found = {item.key: item.value for item in (await tracker.run(run_id)).tags}
    assert found == {"a": "2", "c": "3"}


async def test_200_params_are_one_call(tracker: Tracker) -> None:
    run_id = await tracker.create_run()
    await tracker.write(run_id, *(param(f"p{number:03}", "v" * 6_000) for number in range(150)))
    params = (await tracker.run(run_id)).params
    assert [item.key for item in params] == [f"p{number:03}" for number in range(150)]
    assert all(item.value == "v" * 6_000 for item in params)


BAD_ENTRIES = [
    (pb.MetadataEntry(), "FIELD_REQUIRED", "entries"),
    (param("", "1"), "FIELD_INVALID", "param.key"),
    (param("k" * 251, "1"), "FIELD_INVALID", "param.key"),
    (param("a\nb", "1"), "FIELD_INVALID", "param.key"),
    (param("a", "v" * 6_001), "LIMIT_EXCEEDED", "param.value"),
    (param("a", "nul\0"), "FIELD_INVALID", "param.value"),
    (tag("a", "v" * 8_001), "LIMIT_EXCEEDED", "tag.value"),
    (pb.MetadataEntry(notes="n" * 65_536), "LIMIT_EXCEEDED", "notes"),
    (pb.MetadataEntry(summary=pb.SummaryValue(key="a")), "FIELD_REQUIRED", "entries"),
    (pb.MetadataEntry(dataset=pb.DatasetInput(digest="x")), "FIELD_REQUIRED", "dataset.name"),
    (
        pb.MetadataEntry(dataset=pb.DatasetInput(name="x", digest="d" * 65)),
        "LIMIT_EXCEEDED",
        "dataset.digest",
    ),
    (
        pb.MetadataEntry(
            dataset=pb.DatasetInput(
                name="\U00020000" * 500, digest="\U00020000" * 64, context="\U00020000" * 250
            )
        ),
        "FIELD_INVALID",
        "dataset",
    ),
]


@pytest.mark.parametrize(("entry", "reason", "field"), BAD_ENTRIES)
async def test_a_bad_entry_fails_its_call_whole(
    tracker: Tracker, entry: pb.MetadataEntry, reason: str, field: str
) -> None:
    run_id = await tracker.create_run()
    failed = await failure(tracker.write(run_id, param("good", "1"), entry))
    assert (failed.reason, failed.metadata["field"]) == (reason, field)
    assert not (await tracker.run(run_id)).params


async def test_the_longest_identity_of_a_dataset_fits_its_index(tracker: Tracker) -> None:
    letters = random.Random(1)  # what repeats would be compressed
    name, digest, context = (
        "".join(chr(letters.randrange(0x20000, 0x2A6D6)) for _ in range(length))
        for length in (500, 64, DATASET_IDENTITY_BYTES_MAX // 4 - 564)
    )
    run_id = await tracker.create_run()
    dataset = pb.DatasetInput(name=name, digest=digest, context=context)
    await tracker.write(run_id, pb.MetadataEntry(dataset=dataset))
    assert [item.name for item in (await tracker.run(run_id)).datasets] == [name]
    dataset.context += "x"
    failed = await failure(tracker.write(run_id, pb.MetadataEntry(dataset=dataset)))
    assert failed.metadata["limit"] == str(DATASET_IDENTITY_BYTES_MAX)
    assert failed.metadata["value"] == str(DATASET_IDENTITY_BYTES_MAX + 1)


async def test_more_than_a_thousand_entries_are_refused(tracker: Tracker) -> None:
    run_id = await tracker.create_run()
    failed = await failure(tracker.write(run_id, *(param(f"p{n}", "") for n in range(1_001))))
    assert failed.reason == "LIMIT_EXCEEDED"


async def test_only_what_the_mask_names_is_updated(tracker: Tracker) -> None:
    run_id = await tracker.create_run(name="old", user_name="ada")
    request = pb.UpdateRunRequest(run_id=run_id, run=pb.Run(name="new", notes="n", host="h"))
    request.update_mask.paths.extend(["name", "notes"])
    for _ in range(2):
        run = (await tracker.runs.UpdateRun(request)).run
        assert (run.name, run.notes, run.host, run.user_name) == ("new", "n", "", "ada")
    request.update_mask.paths[:] = ["state"]
    assert (await failure(tracker.runs.UpdateRun(request))).reason == "FIELD_INVALID"
    request.update_mask.paths[:] = []
    assert (await failure(tracker.runs.UpdateRun(request))).reason == "FIELD_REQUIRED"


async def test_a_run_ends_when_it_says_and_can_be_reopened(tracker: Tracker) -> None:
    run_id = await tracker.create_run()
    ended = datetime.now(UTC).replace(microsecond=5) - timedelta(hours=1)
    request = pb.FinishRunRequest(run_id=run_id, state=pb.RUN_STATE_FAILED)
    request.end_time.FromDatetime(ended)
    run = (await tracker.runs.FinishRun(request)).run
    assert run.state == pb.RUN_STATE_FAILED
    assert run.end_time.ToDatetime(UTC) == ended
    for _ in range(2):
        run = (await tracker.runs.ReopenRun(pb.ReopenRunRequest(run_id=run_id))).run
        assert run.state == pb.RUN_STATE_RUNNING
        assert not run.HasField("end_time")


async def test_a_deleted_run_is_hidden_until_it_is_restored(
    tracker: Tracker, experiment: str
) -> None:
    kept, gone = [await tracker.create_run(experiment) for _ in range(2)]
    for _ in range(2):
        run = (await tracker.runs.DeleteRun(pb.DeleteRunRequest(run_id=gone))).run
        assert run.HasField("delete_time")

    async def ids(visibility: Any) -> set[str]:
        found = await tracker.search(experiments=[experiment], visibility=visibility)
        return {run.run_id for run in found}

    assert await ids(pb.VISIBILITY_UNSPECIFIED) == {kept}
    assert await ids(pb.VISIBILITY_DELETED) == {gone}
    assert await ids(pb.VISIBILITY_ALL) == {kept, gone}
    await tracker.write(gone, param("late", "1"))  # its writers may go on
    for _ in range(2):
        await tracker.runs.RestoreRun(pb.RestoreRunRequest(run_id=gone))
    assert await ids(pb.VISIBILITY_ACTIVE) == {kept, gone}


async def test_a_protected_run_is_not_deleted(tracker: Tracker) -> None:
    run_id = await tracker.create_run(entries=[tag("headrace.protected", "")])
    failed = await failure(tracker.runs.DeleteRun(pb.DeleteRunRequest(run_id=run_id)))
    assert failed.reason == "RUN_PROTECTED"
    await tracker.write(run_id, pb.MetadataEntry(deleted_tag="headrace.protected"))
    await tracker.runs.DeleteRun(pb.DeleteRunRequest(run_id=run_id))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ReopenRun", pb.ReopenRunRequest(run_id="a" * 32)),
        ("WriteMetadata", pb.WriteMetadataRequest(run_id="a" * 32, entries=[param("a", "")])),
        ("DeleteRun", pb.DeleteRunRequest(run_id="a" * 32)),
        ("RestoreRun", pb.RestoreRunRequest(run_id="a" * 32)),
        ("HeartbeatRun", pb.HeartbeatRunRequest(run_id="a" * 32)),
    ],
)
async def test_a_run_that_is_not_there_is_not_found(
    tracker: Tracker, method: str, request_: Any
) -> None:
    failed = await failure(getattr(tracker.runs, method)(request_))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")


async def test_a_run_is_not_its_own_parent(tracker: Tracker) -> None:
    request = pb.CreateRunRequest(run_id="b" * 32, parent_run_id="b" * 32)
    assert (await failure(tracker.runs.CreateRun(request))).reason == "FIELD_INVALID"
