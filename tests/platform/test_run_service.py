"""Runs are created once, end with their newest attempt, and are seen from their workspace only."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
import pytest
from headrace.v1 import run_service_pb2 as pb
from headrace.v1 import run_service_pb2_grpc as pb_grpc

from gateway.domain.runs import readable_name
from tests.platform.conftest import error_info, reason_of
from tests.support.gateway_process import GatewayProcess


@pytest.fixture
def runs(channel: grpc.aio.Channel) -> pb_grpc.RunServiceAsyncStub:
    return pb_grpc.RunServiceStub(channel)


def unknown(number: int) -> Any:
    """Return an enum number that the contract does not define."""
    return number


def new_id() -> str:
    return uuid.uuid4().hex


async def begin_attempt(shared_gateway: GatewayProcess, run_id: str, attempt: int) -> None:
    connection = await asyncpg.connect(shared_gateway.dsn)
    await connection.execute(
        "INSERT INTO attempts (run_id, attempt, resume_step) VALUES ($1, $2, 100)",
        uuid.UUID(run_id),
        attempt,
    )
    await connection.close()


async def test_a_run_is_created_with_defaults_and_read_back(
    runs: pb_grpc.RunServiceAsyncStub,
) -> None:
    run_id = new_id()
    made = await runs.CreateRun(pb.CreateRunRequest(run_id=run_id))
    assert made.created
    assert made.run.experiment == "Default"
    assert made.run.name == readable_name(uuid.UUID(run_id))
    assert made.run.state == pb.RUN_STATE_RUNNING
    assert made.run.step_policy == pb.STEP_POLICY_LAST
    assert made.run.late_policy == pb.LATE_POLICY_ACCEPT
    age = datetime.now(UTC) - made.run.create_time.ToDatetime(UTC)
    assert timedelta() <= age < timedelta(minutes=1)
    assert not made.run.HasField("end_time")
    assert (await runs.GetRun(pb.GetRunRequest(run_id=run_id))).run == made.run


async def test_creating_again_returns_the_same_run(runs: pb_grpc.RunServiceAsyncStub) -> None:
    request = pb.CreateRunRequest(
        run_id=new_id(),
        experiment="vision/resnet",
        name="first",
        step_policy=pb.STEP_POLICY_ALL,
        late_policy=pb.LATE_POLICY_REJECT,
    )
    first = await runs.CreateRun(request)
    request.name = "a differing name is ignored"
    again = await runs.CreateRun(request)
    assert (first.created, again.created) == (True, False)
    assert again.run == first.run


async def test_of_many_concurrent_creators_one_creates(
    runs: pb_grpc.RunServiceAsyncStub, shared_gateway: GatewayProcess
) -> None:
    request = pb.CreateRunRequest(run_id=new_id(), experiment="contested")
    answers = await asyncio.gather(*(runs.CreateRun(request) for _ in range(32)))
    assert sum(answer.created for answer in answers) == 1
    assert all(answer.run == answers[0].run for answer in answers)
    connection = await asyncpg.connect(shared_gateway.dsn)
    named = "SELECT count(*) FROM experiments WHERE name = 'contested'"
    assert await connection.fetchval(named) == 1
    await connection.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step_policy", pb.STEP_POLICY_FIRST),
        ("late_policy", pb.LATE_POLICY_REJECT),
    ],
)
async def test_policies_must_match(
    runs: pb_grpc.RunServiceAsyncStub, field: str, value: object
) -> None:
    run_id = new_id()
    await runs.CreateRun(pb.CreateRunRequest(run_id=run_id))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await runs.CreateRun(pb.CreateRunRequest(run_id=run_id, **{field: value}))  # type: ignore[arg-type]
    assert failed.value.code() is grpc.StatusCode.ALREADY_EXISTS
    info = error_info(failed.value)
    assert (info.reason, info.metadata["field"]) == ("RUN_EXISTS", field)


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (pb.CreateRunRequest(), "FIELD_REQUIRED", "run_id"),
        (pb.CreateRunRequest(run_id="not-hex"), "FIELD_INVALID", "run_id"),
        (pb.CreateRunRequest(run_id="A" * 32), "FIELD_INVALID", "run_id"),
        (pb.CreateRunRequest(run_id="a" * 33), "FIELD_INVALID", "run_id"),
        (pb.CreateRunRequest(run_id="a" * 32, name="n" * 251), "LIMIT_EXCEEDED", "name"),
        (pb.CreateRunRequest(run_id="a" * 32, name="nul\0"), "FIELD_INVALID", "name"),
        (pb.CreateRunRequest(run_id="a" * 32, experiment="\n"), "FIELD_INVALID", "experiment"),
        (
            pb.CreateRunRequest(run_id="a" * 32, step_policy=unknown(9)),
            "FIELD_INVALID",
            "step_policy",
        ),
        (
            pb.CreateRunRequest(run_id="a" * 32, late_policy=unknown(-1)),
            "FIELD_INVALID",
            "late_policy",
        ),
    ],
)
async def test_bad_fields_are_named(
    runs: pb_grpc.RunServiceAsyncStub, request_: pb.CreateRunRequest, reason: str, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await runs.CreateRun(request_)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = error_info(failed.value)
    assert (info.reason, info.metadata["field"]) == (reason, field)


async def test_an_unknown_run_is_not_found(runs: pb_grpc.RunServiceAsyncStub) -> None:
    run_id = new_id()
    for call in (
        runs.GetRun(pb.GetRunRequest(run_id=run_id)),
        runs.FinishRun(pb.FinishRunRequest(run_id=run_id)),
        runs.HeartbeatRun(pb.HeartbeatRunRequest(run_id=run_id)),
    ):
        assert await reason_of(call) == "RUN_NOT_FOUND"


async def test_a_purged_run_stays_purged(
    runs: pb_grpc.RunServiceAsyncStub, shared_gateway: GatewayProcess
) -> None:
    run_id = new_id()
    await runs.CreateRun(pb.CreateRunRequest(run_id=run_id))
    connection = await asyncpg.connect(shared_gateway.dsn)
    await connection.execute(
        "UPDATE runs SET purged_at = now() WHERE run_id = $1", uuid.UUID(run_id)
    )
    await connection.close()
    for call in (
        runs.CreateRun(pb.CreateRunRequest(run_id=run_id)),
        runs.GetRun(pb.GetRunRequest(run_id=run_id)),
        runs.FinishRun(pb.FinishRunRequest(run_id=run_id)),
        runs.HeartbeatRun(pb.HeartbeatRunRequest(run_id=run_id)),
    ):
        assert await reason_of(call) == "RUN_PURGED"


async def test_finishing_is_idempotent_and_keeps_the_first_end(
    runs: pb_grpc.RunServiceAsyncStub,
) -> None:
    run_id = new_id()
    await runs.CreateRun(pb.CreateRunRequest(run_id=run_id))
    first = await runs.FinishRun(pb.FinishRunRequest(run_id=run_id))
    again = await runs.FinishRun(
        pb.FinishRunRequest(run_id=run_id, attempt=1, state=pb.RUN_STATE_FINISHED)
    )
    assert first.applied
    assert again.applied
    assert first.run.state == pb.RUN_STATE_FINISHED
    assert first.run.HasField("end_time")
    assert again.run == first.run


async def test_only_the_newest_attempt_ends_a_run(
    runs: pb_grpc.RunServiceAsyncStub, shared_gateway: GatewayProcess
) -> None:
    run_id = new_id()
    await runs.CreateRun(pb.CreateRunRequest(run_id=run_id))
    await begin_attempt(shared_gateway, run_id, 1)
    await begin_attempt(shared_gateway, run_id, 2)
    late = await runs.FinishRun(
        pb.FinishRunRequest(run_id=run_id, attempt=1, state=pb.RUN_STATE_FAILED)
    )
    assert not late.applied
    assert late.run.state == pb.RUN_STATE_RUNNING
    assert [(one.attempt, one.resume_step) for one in late.run.attempts] == [(1, 100), (2, 100)]
    newest = await runs.FinishRun(
        pb.FinishRunRequest(run_id=run_id, attempt=2, state=pb.RUN_STATE_KILLED)
    )
    assert newest.applied
    assert newest.run.state == pb.RUN_STATE_KILLED


async def test_an_attempt_that_nobody_began_cannot_end(runs: pb_grpc.RunServiceAsyncStub) -> None:
    run_id = new_id()
    await runs.CreateRun(pb.CreateRunRequest(run_id=run_id))
    finish = runs.FinishRun(pb.FinishRunRequest(run_id=run_id, attempt=2))
    assert await reason_of(finish) == "ATTEMPT_NOT_FOUND"
    finish = runs.FinishRun(pb.FinishRunRequest(run_id=run_id, attempt=-1))
    assert await reason_of(finish) == "FIELD_INVALID"


@pytest.mark.parametrize("state", [pb.RUN_STATE_RUNNING, pb.RUN_STATE_LOST, 99])
async def test_only_end_states_end_a_run(
    runs: pb_grpc.RunServiceAsyncStub, state: pb.RunState.ValueType
) -> None:
    run_id = new_id()
    await runs.CreateRun(pb.CreateRunRequest(run_id=run_id))
    finish = runs.FinishRun(pb.FinishRunRequest(run_id=run_id, state=state))
    assert await reason_of(finish) == "ATTEMPT_NOT_FOUND"


async def test_heartbeats_are_written_at_most_every_ten_seconds(
    runs: pb_grpc.RunServiceAsyncStub, shared_gateway: GatewayProcess
) -> None:
    run_id = new_id()
    await runs.CreateRun(pb.CreateRunRequest(run_id=run_id))
    beat = pb.HeartbeatRunRequest(run_id=run_id)
    await runs.HeartbeatRun(beat)
    first = (await runs.GetRun(pb.GetRunRequest(run_id=run_id))).run.heartbeat_time
    await runs.HeartbeatRun(beat)
    assert (await runs.GetRun(pb.GetRunRequest(run_id=run_id))).run.heartbeat_time == first
    connection = await asyncpg.connect(shared_gateway.dsn)
    await connection.execute(
        "UPDATE run_heartbeats SET heartbeat_at = heartbeat_at - interval '11 seconds'"
        " WHERE run_id = $1",
        uuid.UUID(run_id),
    )
    await connection.close()
    await runs.HeartbeatRun(beat)
    later = (await runs.GetRun(pb.GetRunRequest(run_id=run_id))).run.heartbeat_time
    assert later.ToDatetime() >= first.ToDatetime()


async def test_bytes_that_are_no_message_are_malformed(channel: grpc.aio.Channel) -> None:
    for raw in (b"\xff\xff\xff", b"\x0a\x02\xff\xfe"):  # nonsense; a run_id that is not UTF-8
        call: Any = channel.unary_unary("/headrace.v1.RunService/GetRun")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(raw)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error_info(failed.value).reason == "MALFORMED_MESSAGE"


async def test_a_message_over_the_limit_is_refused_with_its_size(
    channel: grpc.aio.Channel,
) -> None:
    call: Any = channel.unary_unary("/headrace.v1.RunService/GetRun")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(b"\x00" * 1_048_577)
    info = error_info(failed.value)
    assert (info.reason, info.metadata["limit"]) == ("LIMIT_EXCEEDED", "1048576")
