"""Clients that misuse what they may do: deaf, short-lived, too many, with leaping clocks."""

import asyncio
import time
import uuid
from pathlib import Path
from typing import Final

import grpc
import psutil
from headrace.v1 import metric_service_pb2 as wire
from headrace.v1 import metric_service_pb2_grpc

from tests.faults.outcomes import OUTCOMES, Outcome
from tests.support.gateway_process import GatewayProcess
from tests.support.oracle import Oracle
from tests.support.waiting import eventually_async
from tests.support.writer_stream import (
    TIME_US,
    WriterStream,
    batch,
    bystander,
    connected,
    create_run,
    finish,
    keys,
    opening,
)

YEAR_US: Final = 365 * 86_400 * 1_000_000
CHURN_STREAMS: Final = 400
CHURN_AT_ONCE: Final = 16
RSS_GROWTH_MB_MAX: Final = 40


async def test_a_client_deaf_to_acks_costs_nobody_else_anything(
    shared_gateway: GatewayProcess,
) -> None:
    batches = 3_000  # their acks fill what HTTP/2 lets the gateway send unread
    async with (
        bystander(shared_gateway.address),
        connected(shared_gateway.address) as channel,
    ):
        run_id = await create_run(channel)
        async with WriterStream(channel) as stream:
            await stream.send(opening(run_id), keys("loss"))
            for sequence in range(1, batches + 1):
                await stream.send(batch(sequence, points=20))
            await stream.send(finish(batches))
            await stream.read_until(batches)  # and now it listens
            assert (await stream.failure()).code is grpc.StatusCode.OK
    assert stream.answers[-1].finished.counters.accepted_points == 20 * batches


async def test_short_streams_leave_nothing_behind(gateway: GatewayProcess) -> None:
    async def short(address: str) -> str:
        async with connected(address) as channel:
            run_id = await create_run(channel)
            async with WriterStream(channel) as stream:
                await stream.send(opening(run_id), keys("loss"), batch(1, points=5), finish(1))
                assert (await stream.failure()).code is grpc.StatusCode.OK
            return run_id

    async def some(count: int) -> list[str]:
        room = asyncio.Semaphore(CHURN_AT_ONCE)

        async def one() -> str:
            async with room:
                return await short(gateway.address)

        return await asyncio.gather(*(one() for _ in range(count)))

    await some(CHURN_AT_ONCE)  # imports, caches and pools are paid for
    process = psutil.Process(gateway.pid)
    before_bytes = process.memory_info().rss
    started = time.monotonic()
    runs = await some(CHURN_STREAMS)
    elapsed_s = time.monotonic() - started
    grown_mb = (process.memory_info().rss - before_bytes) / 1e6
    assert grown_mb < RSS_GROWTH_MB_MAX, f"{CHURN_STREAMS} streams left {grown_mb:.0f} MB behind"
    await eventually_async(
        lambda: gateway.metrics()["headrace_streams"] == 0, "no stream is counted"
    )
    async with Oracle(gateway.dsn) as oracle:
        (row,) = await oracle.fetch(
            "SELECT count(*) AS writers, sum(accepted_points) AS points FROM writers"
            " WHERE run_id = ANY($1) AND finished_at IS NOT NULL",
            [uuid.UUID(run_id) for run_id in runs],
        )
    assert (row["writers"], row["points"]) == (CHURN_STREAMS, 5 * CHURN_STREAMS)
    rate = 60 * CHURN_STREAMS / elapsed_s
    OUTCOMES.add(
        Outcome(
            fault=f"churn: {rate:,.0f} short streams a minute",
            times=CHURN_STREAMS,
            points=5 * CHURN_STREAMS,
            recovery_s=0.0,
        )
    )


async def test_a_flood_of_streams_is_refused_by_name_and_disturbs_nobody(
    database_dsn: str, tmp_path: Path
) -> None:
    limit = 20
    with GatewayProcess(database_dsn, tmp_path, arguments=["--set", f"streams_max={limit}"]) as own:
        async with bystander(own.address), connected(own.address) as channel:
            run_id = await create_run(channel)
            flood = [WriterStream(channel) for _ in range(3 * limit)]
            for rank, stream in enumerate(flood):
                await stream.send(opening(run_id, rank=rank))
            answers = await asyncio.gather(*(stream.read() for stream in flood))
            refused = [
                stream for stream, answer in zip(flood, answers, strict=True) if answer is None
            ]
            assert len(flood) - len(refused) == limit - 1  # the bystander has one
            for stream in refused:
                failure = await stream.failure()
                assert failure.code is grpc.StatusCode.UNAVAILABLE
                assert failure.metadata["field"] == "streams_max"
                assert failure.metadata["limit"] == str(limit)
            for stream in flood:
                stream.cancel()


async def test_leaping_clocks_change_times_and_nothing_else(
    shared_gateway: GatewayProcess,
) -> None:
    leaps = (0, YEAR_US, -YEAR_US, 5, 2 * YEAR_US, -1)
    async with connected(shared_gateway.address) as channel:
        run_id = await create_run(channel)
        async with WriterStream(channel) as stream:
            await stream.send(opening(run_id), keys("loss"))
            for sequence, leap in enumerate(leaps, start=1):
                await stream.send(batch(sequence, time_unix_us=[TIME_US + leap]))
            await stream.send(finish(len(leaps)))
            assert (await stream.failure()).code is grpc.StatusCode.OK
        stub = metric_service_pb2_grpc.MetricServiceStub(channel)
        steps: list[int] = []
        times: list[int] = []
        async for answer in stub.ReadMetrics(wire.ReadMetricsRequest(run_id=run_id), timeout=30):
            steps += answer.columns.step
            times += answer.columns.time_unix_us
        listed = await stub.ListSeries(wire.ListSeriesRequest(run_id=run_id), timeout=30)
    assert steps == list(range(1, len(leaps) + 1))
    assert times == [TIME_US + leap for leap in leaps]
    assert listed.series[0].last_step == len(leaps)
    assert listed.series[0].last_time_unix_us == TIME_US - 1
