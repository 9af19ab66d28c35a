"""Bad input gets a clear error that names field, limit and value; nobody else notices."""

import asyncio
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import pytest
from headrace.v1 import error_reason_pb2, run_service_pb2, run_service_pb2_grpc
from headrace.v1 import metric_service_pb2 as wire

from tests.support.gateway_process import GatewayProcess
from tests.support.memory import Memory
from tests.support.writer_stream import (
    HEARTBEAT,
    WriterStream,
    batch,
    bystander,
    connected,
    create_run,
    failure_of,
    finish,
    keys,
    opening,
)

_INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT
_PRECONDITION: Final = grpc.StatusCode.FAILED_PRECONDITION
_BOMB_BYTES: Final = 128 << 20  # more than the gateway's allocator keeps for later


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A conversation that fails.

    Attributes:
        says: run id → the messages of the client.
        metadata: what the ErrorInfo must say at least; "*" is any value.
        committed: the watermark that the good messages before must have reached.
    """

    says: Callable[[str], list[bytes]]
    reason: str
    code: grpc.StatusCode = _INVALID
    metadata: dict[str, str] = field(default_factory=dict)
    committed: int = 0


def _after_open(*messages: bytes, **fields: Any) -> Callable[[str], list[bytes]]:
    return lambda run_id: [opening(run_id, **fields), keys("loss"), *messages]


def _resync(first_sequence: int) -> bytes:
    return wire.WriteMetricsRequest(
        resync=wire.Resync(first_sequence=first_sequence)
    ).SerializeToString()


def _limits(name: str, value: object, limit: object = "*") -> dict[str, str]:
    return {"field": name, "value": str(value), "limit": str(limit)}


_YEAR_10000_US: Final = 253_402_300_800_000_000
_NO_RUN: Final = uuid.uuid4().hex
_CASES: Final = {
    "unknown run": Bad(
        says=lambda _: [opening(_NO_RUN)],
        reason="RUN_NOT_FOUND",
        code=grpc.StatusCode.NOT_FOUND,
        metadata={"field": "*", "value": _NO_RUN},
    ),
    "run id missing": Bad(
        says=lambda _: [opening("")], reason="FIELD_REQUIRED", metadata={"field": "open.run_id"}
    ),
    "run id not hex": Bad(
        says=lambda _: [opening("not-hex")],
        reason="FIELD_INVALID",
        metadata={"field": "open.run_id", "value": "not-hex"},
    ),
    "writer id in upper case": Bad(
        says=lambda run_id: [opening(run_id, writer_id="A" * 32)],
        reason="FIELD_INVALID",
        metadata={"field": "open.writer_id", "value": "A" * 32},
    ),
    "incarnation missing": Bad(
        says=lambda run_id: [opening(run_id, incarnation="")],
        reason="FIELD_REQUIRED",
        metadata={"field": "open.incarnation"},
    ),
    "negative rank": Bad(
        says=lambda run_id: [opening(run_id, rank=-1)],
        reason="FIELD_INVALID",
        metadata=_limits("open.rank", -1),
    ),
    "negative attempt": Bad(
        says=lambda run_id: [opening(run_id, attempt=-1)],
        reason="FIELD_INVALID",
        metadata=_limits("open.attempt", -1),
    ),
    "resume step beyond the limit": Bad(
        says=lambda run_id: [opening(run_id, resume_step=2**62 + 1)],
        reason="FIELD_INVALID",
        metadata=_limits("open.resume_step", 2**62 + 1),
    ),
    "1,001 exempt keys": Bad(
        says=lambda run_id: [opening(run_id, resume_exempt_keys=[f"k{n}" for n in range(1_001)])],
        reason="LIMIT_EXCEEDED",
        metadata=_limits("open.resume_exempt_keys", 1_001, 1_000),
    ),
    "batch before open": Bad(says=lambda _: [batch()], reason="OPEN_EXPECTED"),
    "open twice": Bad(
        says=lambda run_id: [opening(run_id), opening(run_id)], reason="OPEN_EXPECTED"
    ),
    "empty first message": Bad(says=lambda _: [b""], reason="OPEN_EXPECTED"),
    "unknown key index": Bad(
        says=_after_open(batch(1), batch(2, series_index=[7])),
        reason="UNKNOWN_KEY_INDEX",
        metadata=_limits("batch.series_index", 7),
        committed=1,
    ),
    "key index 100,000": Bad(
        says=_after_open(keys("late", first=100_000)),
        reason="LIMIT_EXCEEDED",
        metadata=_limits("keys.index", 100_000, "*"),
    ),
    "key index redefined": Bad(
        says=_after_open(keys("accuracy")), reason="FIELD_INVALID", metadata={"field": "keys.key"}
    ),
    "unequal columns": Bad(
        says=_after_open(batch(1), batch(2, points=3, value=[1.0, 2.0])),
        reason="COLUMN_LENGTH_MISMATCH",
        metadata={"field": "batch", "value": "*"},
        committed=1,
    ),
    "sequence gap": Bad(
        says=_after_open(batch(1), batch(3)),
        reason="SEQUENCE_GAP",
        metadata=_limits("batch.first_sequence", 3, 2),
        committed=1,
    ),
    "sequence zero": Bad(
        says=_after_open(batch(0)),
        reason="SEQUENCE_GAP",
        metadata=_limits("batch.first_sequence", 0, 1),
    ),
    "batch across the watermark": Bad(
        says=_after_open(batch(1), batch(1, points=2, record_count=2)),
        reason="SEQUENCE_GAP",
        metadata=_limits("batch.first_sequence", 1),
        committed=1,
    ),
    "greatest sequence": Bad(says=_after_open(batch(2**64 - 1, step=[1])), reason="FIELD_INVALID"),
    "no records": Bad(
        says=_after_open(batch(1, record_count=0)),
        reason="FIELD_INVALID",
        metadata=_limits("batch.record_count", 0, 1),
    ),
    "20,000 points": Bad(
        says=_after_open(batch(1, points=20_000)),
        reason="LIMIT_EXCEEDED",
        metadata=_limits("batch.value", 20_000, 8_192),
    ),
    "message over 1 MiB": Bad(
        says=_after_open(batch(1, points=40_000)),
        reason="LIMIT_EXCEEDED",
        metadata={"field": "*", "value": "*", "limit": "1048576"},
    ),
    "invalid UTF-8": Bad(
        says=_after_open(keys("XY", first=1).replace(b"XY", b"\xff\xfe")),
        reason="MALFORMED_MESSAGE",
    ),
    "not a message": Bad(says=_after_open(b"\xff" * 40), reason="MALFORMED_MESSAGE"),
    "batch after finish": Bad(
        says=_after_open(batch(1), finish(1), batch(2)),
        reason="WRITER_FINISHED",
        code=_PRECONDITION,
        committed=1,
    ),
    "finish beyond the last record": Bad(
        says=_after_open(batch(1), finish(9)),
        reason="SEQUENCE_GAP",
        metadata=_limits("finish.last_sequence", 9, 1),
        committed=1,
    ),
    "resync backwards": Bad(
        says=_after_open(_resync(1)),
        reason="SEQUENCE_GAP",
        metadata={"field": "resync.first_sequence", "value": "1"},
    ),
    "resync after a batch": Bad(
        says=_after_open(batch(1), _resync(9)), reason="SEQUENCE_GAP", committed=1
    ),
}


@pytest.mark.parametrize("name", _CASES)
async def test_bad_conversation_ends_with_one_clear_error(
    name: str, shared_gateway: GatewayProcess
) -> None:
    case = _CASES[name]
    async with bystander(shared_gateway.address), connected(shared_gateway.address) as channel:
        run_id = await create_run(channel)
        messages = case.says(run_id)
        async with WriterStream(channel) as stream:
            await stream.send(*messages)
            failure = await stream.failure()
        if case.reason == "WRITER_FINISHED" and failure.code is grpc.StatusCode.OK:
            return  # `finished` overtook the batch, which nobody read
        assert (failure.code, failure.reason) == (case.code, case.reason), failure
        for key, value in case.metadata.items():
            assert failure.metadata.get(key) == value or (
                value == "*" and key in failure.metadata
            ), failure
        # The good messages before the bad one are committed all the same.
        if case.committed:
            fields = wire.WriteMetricsRequest.FromString(messages[0]).open
            async with WriterStream(channel) as again:
                await again.send(opening(run_id, writer_id=fields.writer_id))
                await again.read()
                assert again.committed == case.committed


@pytest.mark.parametrize(
    ("point", "reason", "where", "says"),
    [  # `says`: the limit and the value, as the detail names them
        (("", 1, 1), "KEY_INVALID", "key", ("empty", "1 character")),
        (("k" * 251, 1, 1), "KEY_INVALID", "key", ("250", "251")),
        (("nul\0", 1, 1), "KEY_INVALID", "key", ("NUL", r"'nul\x00'")),
        (("bell\7", 1, 1), "KEY_INVALID", "key", ("control character", r"'bell\x07'")),
        (("fine", 2**62, 1), "STEP_OUT_OF_RANGE", "step", (str(2**62 - 1), str(2**62))),
        (("fine", -(2**63), 1), "STEP_OUT_OF_RANGE", "step", (str(-(2**62)), str(-(2**63)))),
        (("fine", 1, -1), "TIME_OUT_OF_RANGE", "time_unix_us", ("[0, ", "is -1")),
        (
            ("fine", 1, _YEAR_10000_US),
            "TIME_OUT_OF_RANGE",
            "time_unix_us",
            (str(_YEAR_10000_US - 1), f"is {_YEAR_10000_US}"),
        ),
    ],
)
async def test_bad_point_is_rejected_counted_and_explained_while_its_record_is_stored(
    point: tuple[str, int, int],
    reason: str,
    where: str,
    says: tuple[str, str],
    shared_gateway: GatewayProcess,
) -> None:
    key, step, time_us = point
    async with bystander(shared_gateway.address), connected(shared_gateway.address) as channel:
        run_id = await create_run(channel)
        writer_id = uuid.uuid4().hex
        async with WriterStream(channel) as stream:
            bad = batch(1, points=2, series_index=[0, 1], step=[5, step], time_unix_us=[7, time_us])
            await stream.send(
                opening(run_id, writer_id=writer_id), keys("good", key), bad, batch(2)
            )
            await stream.read_until(2)
            acks = [answer.ack for answer in stream.answers if answer.HasField("ack")]
            assert acks[-1].counters.rejected_points == 1
            assert acks[-1].counters.accepted_points == 2
            samples = [sample for ack in acks for sample in ack.rejections]
        async with WriterStream(channel) as again:  # a lost ack loses no report
            await again.send(opening(run_id, writer_id=writer_id))
            answer = await again.read()
            assert answer is not None
            assert list(answer.opened.rejections) == samples
        (sample,) = samples
        assert error_reason_pb2.ErrorReason.Name(sample.reason) == f"ERROR_REASON_{reason}"
        assert sample.points == 1
        assert sample.sequence >= 1
        assert sample.step == step
        assert where in sample.field
        for part in says:
            assert part in sample.detail, sample


async def test_another_incarnation_is_refused_and_fences_nobody(
    shared_gateway: GatewayProcess,
) -> None:
    async with (
        connected(shared_gateway.address) as channel,
        connected(shared_gateway.address) as other,
    ):
        run_id, writer_id = await create_run(channel), uuid.uuid4().hex
        async with WriterStream(channel) as owner, WriterStream(other) as thief:
            await owner.send(opening(run_id, writer_id=writer_id), keys("loss"), batch(1))
            await owner.read_until(1)
            await thief.send(opening(run_id, writer_id=writer_id, incarnation="b" * 32))
            failure = await thief.failure()
            assert failure.code is grpc.StatusCode.ALREADY_EXISTS
            assert failure.reason == "WRITER_CLAIMED"
            assert failure.metadata["field"] == "open.incarnation"
            assert failure.metadata["value"] == "b" * 32
            await owner.send(batch(2))
            await owner.read_until(2)


async def test_newer_stream_of_a_writer_fences_the_older_one(
    shared_gateway: GatewayProcess,
) -> None:
    async with (
        connected(shared_gateway.address) as channel,
        connected(shared_gateway.address) as other,
    ):
        run_id, writer_id = await create_run(channel), uuid.uuid4().hex
        async with WriterStream(channel) as older, WriterStream(other) as newer:
            await older.send(opening(run_id, writer_id=writer_id), keys("loss"), batch(1))
            await older.read_until(1)
            await newer.send(opening(run_id, writer_id=writer_id), keys("loss"))
            await newer.read_until(1)
            await older.send(batch(2, value=[-1.0]))
            failure = await older.failure()
            assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "WRITER_FENCED")
            await newer.send(batch(2))
            await newer.read_until(2)


async def test_fenced_stream_that_never_stops_writing_learns_why_it_ended(
    shared_gateway: GatewayProcess,
) -> None:
    async with (
        connected(shared_gateway.address) as channel,
        connected(shared_gateway.address) as other,
    ):
        run_id, writer_id = await create_run(channel), uuid.uuid4().hex
        for _ in range(10):
            async with WriterStream(channel) as older, WriterStream(other) as newer:
                await older.send(opening(run_id, writer_id=writer_id), keys("loss"))
                await older.read()
                writing = asyncio.create_task(_write_on(older, older.committed + 1))
                await older.read_until(older.committed + 5)
                await newer.send(opening(run_id, writer_id=writer_id), keys("loss"))
                await newer.read()
                failure = await older.failure()
                assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "WRITER_FENCED")
                await writing
                await newer.send(batch(newer.committed + 1))
                await newer.read_until(newer.committed + 1)


async def _write_on(stream: WriterStream, sequence: int) -> None:
    while not stream.over:
        await stream.send(batch(sequence))
        sequence += 1


async def test_writer_that_comes_back_as_another_rank_or_attempt_is_refused(
    shared_gateway: GatewayProcess,
) -> None:
    async with connected(shared_gateway.address) as channel:
        run_id, writer_id = await create_run(channel), uuid.uuid4().hex
        async with WriterStream(channel) as stream:
            await stream.send(opening(run_id, writer_id=writer_id, rank=3))
            await stream.read()
        for change in ({"rank": 4}, {"rank": 3, "attempt": 2}):
            async with WriterStream(channel) as stream:
                await stream.send(opening(run_id, writer_id=writer_id, **change))
                failure = await stream.failure()
            assert (failure.code, failure.reason) == (_PRECONDITION, "WRITER_MISMATCH")
            name, value = list(change.items())[-1]
            was = {"rank": 3, "attempt": 1}[name]
            assert failure.metadata.items() >= _limits(f"open.{name}", value, was).items()


async def test_ranks_that_disagree_on_the_resume_step_are_both_named(
    shared_gateway: GatewayProcess,
) -> None:
    async with connected(shared_gateway.address) as channel:
        run_id = await create_run(channel)
        async with WriterStream(channel) as first, WriterStream(channel) as second:
            await first.send(opening(run_id, attempt=2, resume_step=400))
            await first.read()
            await second.send(opening(run_id, attempt=2, resume_step=500, rank=1))
            failure = await second.failure()
        assert (failure.code, failure.reason) == (_PRECONDITION, "RESUME_STEP_MISMATCH")
        assert {"400", "500"} <= set(failure.metadata.values())


async def test_import_that_does_not_finish_fails_and_keeps_what_it_sent(
    shared_gateway: GatewayProcess,
) -> None:
    async with connected(shared_gateway.address) as channel:
        run_id, writer_id = await create_run(channel), uuid.uuid4().hex
        call: Any = channel.stream_unary(
            "/headrace.v1.MetricService/ImportMetrics",
            None,
            wire.ImportMetricsResponse.FromString,
        )
        messages = [opening(run_id, writer_id=writer_id), keys("loss"), batch(1)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(iter(messages), timeout=30)
        error = caught.value
        failure = failure_of(error.code(), error.details(), list(error.trailing_metadata()))
        assert (failure.code, failure.reason) == (_INVALID, "FIELD_REQUIRED")
        response = await call(iter([*messages, batch(2), finish(2)]), timeout=30)
        assert response.committed_sequence == 2
        assert response.counters.accepted_points == 2
        # The answer may be lost: the whole import again changes nothing.
        assert response == await call(iter([*messages, batch(2), finish(2)]), timeout=30)


async def test_unary_bad_input_is_explained_too(shared_gateway: GatewayProcess) -> None:
    async with connected(shared_gateway.address) as channel:
        create: Any = channel.unary_unary("/headrace.v1.RunService/CreateRun")
        for request, reason in (
            (run_service_pb2.CreateRunRequest().SerializeToString(), "FIELD_REQUIRED"),
            (run_service_pb2.CreateRunRequest(run_id="x").SerializeToString(), "FIELD_INVALID"),
            (b"\xff\xff\xff", "MALFORMED_MESSAGE"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await create(request, timeout=60)
            error = caught.value
            failure = failure_of(error.code(), error.details(), list(error.trailing_metadata()))
            assert (failure.code, failure.reason) == (_INVALID, reason)


@pytest.mark.parametrize(
    ("experiments", "reason"),
    [(["a", "a\0"], "FIELD_INVALID"), ([""], "FIELD_REQUIRED"), (["x" * 251], "LIMIT_EXCEEDED")],
)
async def test_a_search_in_an_experiment_that_no_one_can_name_is_explained(
    experiments: list[str], reason: str, shared_gateway: GatewayProcess
) -> None:
    async with connected(shared_gateway.address) as channel:
        stub = run_service_pb2_grpc.RunServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SearchRuns(
                run_service_pb2.SearchRunsRequest(experiments=experiments), timeout=60
            )
    error = caught.value
    failure = failure_of(error.code(), error.details(), list(error.trailing_metadata()))
    assert (failure.code, failure.reason) == (_INVALID, reason)
    assert failure.metadata["field"] == "experiments"


def _nonsense(generator: random.Random, run_id: str) -> list[bytes]:
    """Return a conversation of valid messages, most of them damaged."""
    messages = [
        opening(run_id),
        keys("loss", "accuracy"),
        batch(1, points=generator.randrange(5)),
        batch(2, points=3, step=[2**62, -(2**62), 0], value=[float("nan"), float("inf"), -0.0]),
        HEARTBEAT,
        _resync(generator.randrange(2**63)),
        finish(generator.choice([0, 2, 2**63])),
    ]
    for _ in range(generator.randrange(6)):
        index = generator.randrange(len(messages))
        damaged = bytearray(messages[index] or b"\0")
        match generator.randrange(5):
            case 0:
                damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
            case 1:
                del damaged[generator.randrange(len(damaged)) :]
            case 2:
                damaged += generator.randbytes(generator.randrange(1, 20))
            case 3:
                damaged = bytearray(generator.randbytes(generator.randrange(200)))
            case _:
                damaged *= 2  # proto3: fields merge, columns concatenate
        messages[index] = bytes(damaged)
        if generator.random() < 0.3:
            generator.shuffle(messages)
    return messages


async def test_nonsense_never_breaks_a_gateway(shared_gateway: GatewayProcess) -> None:
    """A bounded fuzz; HEADRACE_TEST_SEED replays it, HEADRACE_TEST_FUZZ_S prolongs it."""
    seed = int(os.environ.get("HEADRACE_TEST_SEED") or random.randrange(2**32))
    print(f"seed {seed}")
    generator = random.Random(seed)
    deadline = time.monotonic() + float(os.environ.get("HEADRACE_TEST_FUZZ_S", "8"))
    conversations, reasons = 0, set()
    async with bystander(shared_gateway.address), connected(shared_gateway.address) as channel:
        run_id = await create_run(channel)

        async def converse() -> None:
            nonlocal conversations
            while time.monotonic() < deadline:
                async with WriterStream(channel) as stream:
                    messages = _nonsense(generator, run_id)
                    await stream.send(*messages)
                    await stream.send(b"\xff")  # whatever came before, this ends it
                    failure = await stream.failure()
                conversations += 1
                reasons.add(failure.reason)
                known = failure.code is grpc.StatusCode.OK or failure.reason
                assert known, (seed, failure, messages)
                assert failure.reason != "INTERNAL", (seed, failure, messages)

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(converse())
    assert conversations > 100
    assert len(reasons) > 4, reasons
    assert shared_gateway.process.poll() is None


async def test_oversized_metadata_is_refused(shared_gateway: GatewayProcess) -> None:
    request = run_service_pb2.CreateRunRequest(run_id=uuid.uuid4().hex).SerializeToString()
    async with bystander(shared_gateway.address), connected(shared_gateway.address) as channel:
        create: Any = channel.unary_unary("/headrace.v1.RunService/CreateRun")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await create(request, metadata=(("padding", "x" * 60_000),), timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await create(request, timeout=60)  # it was the metadata


async def test_compression_bomb_costs_no_memory(shared_gateway: GatewayProcess) -> None:
    bomb = bytes(_BOMB_BYTES)
    async with (
        bystander(shared_gateway.address),
        connected(shared_gateway.address, compression=grpc.Compression.Gzip) as channel,
    ):
        run_id = await create_run(channel)  # compressed too, and welcome
        memory = Memory(shared_gateway.pid)
        create: Any = channel.unary_unary("/headrace.v1.RunService/CreateRun")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await create(bomb, timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with WriterStream(channel) as stream:
            await stream.send(opening(run_id), keys("loss"), batch(1))
            await stream.read_until(1)
            await stream.send(bomb)
            assert (await stream.failure()).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        grown = memory.grown()
    print(f"two bombs of {_BOMB_BYTES >> 20} MiB: {grown >> 10} KiB")
    assert grown < _BOMB_BYTES // 8
