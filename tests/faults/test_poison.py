"""Content that the store refuses is isolated: one writer's poison is nobody else's loss."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import asyncpg
import grpc
from headrace.v1 import error_reason_pb2

from tests.support.gateway_process import GatewayProcess
from tests.support.oracle import Oracle
from tests.support.writer_stream import (
    HEARTBEAT,
    WriterStream,
    batch,
    connected,
    create_run,
    finish,
    keys,
    opening,
)

_POISON: Final = 666.0
_WRITERS: Final = 8


@contextlib.asynccontextmanager
async def _frozen(dsn: str) -> AsyncIterator[None]:
    """Hold a lock under which no chunk can be stored."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("BEGIN; LOCK TABLE loose_chunks IN SHARE MODE")
    try:
        yield
    finally:
        await connection.close()


async def _admit(stream: WriterStream, *messages: bytes) -> None:
    """Send, and return when the gateway has admitted everything."""
    await stream.send(*messages, HEARTBEAT)
    before = len(stream.answers)
    while len(stream.answers) == before:
        assert await stream.read() is not None, await stream.failure()


async def test_only_the_poisonous_batch_of_a_merged_flush_is_rejected(
    database_dsn: str, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        oracle = await stack.enter_async_context(Oracle(database_dsn))
        await oracle.fetch(
            f"ALTER TABLE loose_chunks ADD CONSTRAINT no_poison CHECK (max_value <> {_POISON})"
        )
        # One writer task: what is admitted while it is stuck is merged into its next flush.
        arguments = ["--ingest-connections", "1"]
        process = GatewayProcess(database_dsn, tmp_path, arguments=arguments)
        gateway = stack.enter_context(process)
        channel = await stack.enter_async_context(connected(gateway.address))
        run_id = await create_run(channel)
        plug, poisoner, *others = [
            await stack.enter_async_context(WriterStream(channel)) for _ in range(_WRITERS)
        ]
        writer_id = uuid.uuid4().hex
        for rank, stream in enumerate([plug, poisoner, *others]):
            name = writer_id if stream is poisoner else uuid.uuid4().hex
            await stream.send(opening(run_id, writer_id=name, rank=rank), keys("loss"))
            await stream.read()
        async with _frozen(database_dsn):
            await _admit(plug, batch(1))
            await _admit(poisoner, batch(1), batch(2, points=5, value=[1, 2, _POISON, 4, 5]))
            await _admit(poisoner, batch(3))
            for stream in others:
                await _admit(stream, batch(1, points=3), batch(2))
            await asyncio.sleep(0)
            assert all(stream.committed == 0 for stream in (plug, poisoner, *others))

        await poisoner.read_until(3)
        acks = [answer.ack for answer in poisoner.answers if answer.HasField("ack")]
        assert acks[-1].counters.accepted_points == 2
        assert acks[-1].counters.rejected_points == 5
        (sample,) = [sample for ack in acks for sample in ack.rejections]
        assert sample.reason == error_reason_pb2.ERROR_REASON_STORE_REFUSED
        assert (sample.points, sample.sequence) == (5, 2)
        for stream in others:
            await stream.read_until(2)
            assert stream.answers[-1].ack.counters.accepted_points == 4
            assert stream.answers[-1].ack.counters.rejected_points == 0

        # Everybody goes on as if nothing had been.
        for stream, last in [(plug, 1), (poisoner, 3), *((stream, 2) for stream in others)]:
            await stream.send(batch(last + 1), finish(last + 1))
            assert (await stream.failure()).code is grpc.StatusCode.OK
        expected = 2 + 3 + 5 * len(others)
        assert len(await oracle.points(run_id)) == expected
        row = await oracle.writer(run_id, writer_id)
        assert row is not None
        assert (row.accepted_points, row.rejected_points, row.committed_sequence) == (3, 5, 4)
