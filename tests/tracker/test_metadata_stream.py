"""What is said of a run during training shares the writer's sequence: in order, exactly once."""

from __future__ import annotations

import asyncpg
import grpc
from headrace.v1 import error_reason_pb2
from headrace.v1 import metric_service_pb2 as wire
from headrace.v1 import run_service_pb2 as pb

from tests.support.gateway_process import GatewayProcess
from tests.support.writer_stream import WriterStream, batch, finish, keys, opening
from tests.tracker.conftest import Tracker, param, stubs, tag


def metadata(first_sequence: int, *entries: pb.MetadataEntry, records: int = 1) -> bytes:
    """A `metadata` message."""
    return wire.WriteMetricsRequest(
        metadata=wire.MetadataBatch(
            first_sequence=first_sequence, record_count=records, entries=entries
        )
    ).SerializeToString()


async def test_metadata_and_points_are_committed_under_one_sequence(tracker: Tracker) -> None:
    run_id = await tracker.create_run()
    async with WriterStream(tracker.channel) as stream:
        await stream.send(
            opening(run_id),
            keys("loss"),
            metadata(1, param("lr", "0.1"), tag("phase", "warm-up")),
            batch(2),
            metadata(3, tag("phase", "done"), pb.MetadataEntry(notes="n"), records=2),
            metadata(5, pb.MetadataEntry(summary=pb.SummaryValue(key="best", number=0.9))),
            finish(5),
        )
        assert (await stream.failure()).code is grpc.StatusCode.OK
        finished = stream.answers[-1].finished
    assert (finished.committed_sequence, finished.counters.accepted_points) == (5, 1)
    run = await tracker.run(run_id)
    assert [(item.key, item.value) for item in run.params] == [("lr", "0.1")]
    assert [(item.key, item.value) for item in run.tags] == [("phase", "done")]
    assert run.notes == "n"
    assert run.summary[0].number == 0.9


async def test_what_cannot_be_stored_is_counted_with_a_sample_and_the_stream_goes_on(
    tracker: Tracker,
) -> None:
    run_id = await tracker.create_run(entries=[param("lr", "0.1")])
    async with WriterStream(tracker.channel) as stream:
        await stream.send(
            opening(run_id, writer_id="c" * 32),
            keys("loss"),
            metadata(1, param("lr", "0.2"), param("", "x"), param("depth", "3")),
        )
        await stream.read_until(1)
        acked = stream.answers[-1].ack
        await stream.send(batch(2))
        await stream.read_until(2)
    assert acked.counters.rejected_entries == 2
    assert {sample.reason for sample in acked.rejections} == {
        error_reason_pb2.ERROR_REASON_PARAM_CHANGED,
        error_reason_pb2.ERROR_REASON_FIELD_INVALID,
    }
    sample = next(item for item in acked.rejections if item.key == "lr")
    assert "'0.1'" in sample.detail
    assert "'0.2'" in sample.detail
    found = {item.key: item.value for item in (await tracker.run(run_id)).params}
    assert found == {"lr": "0.1", "depth": "3"}
    # Durable: a lost ack loses no report.
    async with WriterStream(tracker.channel) as stream:
        await stream.send(opening(run_id, writer_id="c" * 32))
        opened = await stream.read()
        assert opened is not None
        assert opened.opened.counters.rejected_entries == 2
        assert {item.key for item in opened.opened.rejections} == {"lr", ""}


async def test_metadata_resent_after_a_kill_is_applied_once_and_in_order(
    gateway: GatewayProcess,
) -> None:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        tracker = stubs(channel)
        run_id = await tracker.create_run()
        async with WriterStream(channel) as stream:
            await stream.send(
                opening(run_id, writer_id="d" * 32),
                metadata(1, tag("a", "1")),
                metadata(2, tag("a", "2")),
            )
            await stream.read_until(2)
    # Another writer has changed it since; what is resent must not undo that.
    connection = await asyncpg.connect(gateway.dsn)
    await connection.execute("UPDATE run_tags SET value = 'since'")
    await connection.close()
    gateway.restart()
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        async with WriterStream(channel) as stream:
            await stream.send(
                opening(run_id, writer_id="d" * 32),
                metadata(1, tag("a", "1")),
                metadata(2, tag("a", "2")),
                metadata(3, tag("b", "3")),
                finish(3),
            )
            assert (await stream.failure()).code is grpc.StatusCode.OK
        tags = {item.key: item.value for item in (await stubs(channel).run(run_id)).tags}
    assert tags == {"a": "since", "b": "3"}


async def test_too_many_entries_or_a_gap_end_the_stream(tracker: Tracker) -> None:
    run_id = await tracker.create_run()
    for bad, reason in (
        (metadata(1, *(param(f"p{n}", "") for n in range(1_001))), "LIMIT_EXCEEDED"),
        (metadata(3, param("p", "")), "SEQUENCE_GAP"),
        (metadata(1, param("p", ""), records=0), "FIELD_INVALID"),
    ):
        async with WriterStream(tracker.channel) as stream:
            await stream.send(opening(run_id), bad)
            assert (await stream.failure()).reason == reason
