"""Clients that misuse what they may do: deaf, short-lived, too many, with leaping clocks."""

import asyncio
import itertools
import os
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Final

import grpc
import numpy as np
import pytest
from headrace.v1 import metric_service_pb2 as wire
from headrace.v1 import metric_service_pb2_grpc

from benchmarks.bare_call import BareCall
from tests.faults.outcomes import OUTCOMES, Outcome
from tests.support.gateway_process import GatewayProcess
from tests.support.memory import Memory
from tests.support.oracle import Oracle
from tests.support.waiting import eventually_async
from tests.support.writer_stream import (
    HEARTBEAT,
    TIME_US,
    WRITE,
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
HOUR_US: Final = 3_600 * 1_000_000

HEARTBEATS: Final = 20_000  # a client that listens hears about half as many acks
WINDOW_BYTES: Final = 65_536  # of the deaf client
DEAF_GROWTH_BYTES_MAX: Final = 8 << 20

CHURN_POINTS: Final = 5
CHURN_LOTS: Final = 4
CHURN_LEAK_BYTES_MAX: Final = 2_000  # a stream; what the gateway keeps of an open one has 6,000
CHURN_PER_MINUTE_MIN: Final = 10_000


async def test_a_client_deaf_to_acks_is_owed_one_and_costs_nobody_else_anything(
    shared_gateway: GatewayProcess,
) -> None:
    batches, writer_id = 100, uuid.uuid4().hex
    async with (
        bystander(shared_gateway.address),
        Oracle(shared_gateway.dsn) as oracle,
        connected(
            shared_gateway.address,
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ) as channel,
    ):
        run_id = await create_run(channel)
        async with WriterStream(channel) as stream:
            await stream.send(opening(run_id, writer_id=writer_id), keys("loss"))
            for sequence in range(1, batches):
                await stream.send(batch(sequence, points=20))
            memory = Memory(shared_gateway.pid)
            for _ in range(HEARTBEATS):
                await stream.send(HEARTBEAT)  # each is owed an ack
            await stream.send(batch(batches, points=20), finish(batches))

            async def all_is_read() -> bool:
                row = await oracle.writer(run_id, writer_id)
                return row is not None and row.committed_sequence == batches

            await eventually_async(all_is_read)
            await stream.read_until(batches)  # and now it listens
            assert (await stream.failure()).code is grpc.StatusCode.OK
        grown = memory.grown()
    assert stream.answers[-1].finished.counters.accepted_points == 20 * batches
    # What fits a window was sent; when it opened, one ack stood for all others.
    heard_bytes = sum(5 + answer.ByteSize() for answer in stream.answers)
    print(f"{len(stream.answers)} answers of {heard_bytes} bytes, {grown >> 10} KiB more memory")
    assert heard_bytes < 1.5 * WINDOW_BYTES
    assert grown < DEAF_GROWTH_BYTES_MAX


async def test_short_streams_leave_nothing_behind(
    gateway: GatewayProcess, request: pytest.FixtureRequest
) -> None:
    long = request.config.getoption("--long")
    lot, at_once = (1_000, 100) if long else (250, 16)
    memory = Memory(gateway.pid)
    runs: list[str] = []
    sizes = [memory.base]
    elapsed_s = 0.0
    room = asyncio.Semaphore(at_once)
    async with connected(gateway.address) as channel:
        for _ in range(CHURN_LOTS):
            created = [await create_run(channel) for _ in range(lot)]
            started = time.monotonic()
            await asyncio.gather(
                *(_short_stream(gateway.address, run_id, room) for run_id in created)
            )
            elapsed_s += time.monotonic() - started
            runs += created
            sizes.append(memory.resident())
    rate = 60 * len(runs) / elapsed_s
    await eventually_async(
        lambda: gateway.metrics()["headrace_streams"] == 0, "no stream is counted"
    )
    async with Oracle(gateway.dsn) as oracle:
        counted = await oracle.fetch(
            "SELECT run_id, accepted_points FROM writers WHERE finished_at IS NOT NULL"
        )
        stored = await oracle.fetch(
            "SELECT run_id, first_step, last_step, point_values FROM metric_chunks"
        )
    values = np.full(CHURN_POINTS, 0.5, ">f8").tobytes()
    assert Counter((row["run_id"].hex, row["accepted_points"]) for row in counted) == Counter(
        (run_id, CHURN_POINTS) for run_id in runs
    )
    assert Counter(
        (row["run_id"].hex, row["first_step"], row["last_step"], row["point_values"])
        for row in stored
    ) == Counter((run_id, 1, CHURN_POINTS, values) for run_id in runs)
    # The first lot pays for what all share. A leak shows in every other one, the
    # allocator's moods do not.
    grown = [after - before for before, after in itertools.pairwise(sizes)]
    print(f"{rate:,.0f} a minute; lots of {lot} took {[size >> 10 for size in grown]} KiB")
    assert min(grown[1:]) < CHURN_LEAK_BYTES_MAX * lot
    if long:
        assert rate > CHURN_PER_MINUTE_MIN
    OUTCOMES.add(
        Outcome(
            fault=f"churn: {rate:,.0f} short streams a minute",
            times=len(runs),
            points=CHURN_POINTS * len(runs),
            lost=0,
            doubled=0,
            recovery_s=None,
        )
    )


async def _short_stream(address: str, run_id: str, room: asyncio.Semaphore) -> None:
    """One stream on a connection of its own; by hand, or gRPC's client would be measured."""
    messages = (opening(run_id), keys("loss"), batch(1, points=CHURN_POINTS), finish(1))
    async with room:
        call = await BareCall.open(address, WRITE, None)
        try:
            for message in messages:
                await call.write(message)
            answers = []
            while (answer := await call.read()) is not None:
                answers.append(answer)
        finally:
            call.cancel()
    assert answers[-1].finished.committed_sequence == 1


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


_LEAPING: Final = """
import os, time
# As a clock that is set leaps for all processes: by hours, every quarter of a second.
HOURS = (0, 5, -30, 1, -2)
def leap_s():
    return 3_600 * HOURS[int(time.monotonic() * 4) % len(HOURS)]
now, now_ns = time.time, time.time_ns
if "time" in os.environ["LEAPING"].split():
    time.time = lambda: now() + leap_s()
if "time_ns" in os.environ["LEAPING"].split():
    time.time_ns = lambda: now_ns() + leap_s() * 10**9
"""
_TRAINER: Final = """
import sys, time, headrace
run = headrace.init(sys.argv[1], experiment="clocks", strict=True, quiet=True)
for step in range(1_000):
    run.log({"loss": step / 8}, step)
    time.sleep(0.003)
while run.status().pending_records:  # delivered while it runs, not by its end
    run.log({}, 0)
    time.sleep(0.01)
sys.exit(not run.finish(timeout=60).done)
"""


async def test_leaping_clocks_of_all_processes_lose_nothing(
    database_dsn: str, tmp_path: Path
) -> None:
    """The client takes the time of a point by time_ns; the gateway has no use for the time.

    gRPC's clients take deadlines by time, of which the C core knows nothing: it stays there.
    """
    (tmp_path / "sitecustomize.py").write_text(_LEAPING)
    leaping = {"PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path)), "LEAPING": "time time_ns"}
    run_id = uuid.uuid4().hex
    with GatewayProcess(database_dsn, tmp_path, environment=leaping) as gateway:
        trainer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _TRAINER, run_id),
            env={
                **os.environ,
                **leaping,
                "LEAPING": "time_ns",
                "HEADRACE_ADDRESS": gateway.address,
                "HEADRACE_SPOOL_DIR": str(tmp_path / "spool"),
            },
        )
        async with asyncio.timeout(90):
            assert await trainer.wait() == 0
        async with connected(gateway.address) as channel:
            stub = metric_service_pb2_grpc.MetricServiceStub(channel)
            request = wire.ReadMetricsRequest(run_id=run_id)
            answers = [answer.columns async for answer in stub.ReadMetrics(request, timeout=30)]
    steps = [step for columns in answers for step in columns.step]
    values = [value for columns in answers for value in columns.value]
    times = [time_us for columns in answers for time_us in columns.time_unix_us]
    assert steps == list(range(1_000))
    assert values == [step / 8 for step in steps]
    leaps = np.diff(times)
    assert leaps.min() < -HOUR_US  # the clock did leap, both ways
    assert leaps.max() > HOUR_US
