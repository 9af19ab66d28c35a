"""The number of database connections is a constant of the configuration."""

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from benchmarks.raw_streams import Journal, Traffic, run
from tests.conftest import NewDatabase
from tests.support.gateway_process import GatewayProcess
from tests.support.oracle import ConnectionWatch, Oracle, gateway_backends

_BUDGET: Final = 5
_ARGUMENTS: Final = ("--ingest-connections", "2", "--query-connections", "3")


async def _until_all_are_back(dsn: str, budget: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(30):
            while True:
                if len(await gateway_backends(connection)) == budget:
                    return
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def gateway(
    new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """One for all tests: each has run ids of its own seed."""
    directory = tmp_path_factory.mktemp("gateway")
    with new_database() as dsn, GatewayProcess(dsn, directory, arguments=_ARGUMENTS) as process:
        yield process


@pytest.mark.parametrize(("streams", "points"), [(1, 500), (64, 500), (1_000, 200)])
async def test_connections_equal_the_budget_whatever_the_number_of_streams(
    streams: int, points: int, gateway: GatewayProcess
) -> None:
    async with ConnectionWatch(gateway.dsn) as watch:
        traffic = Traffic(
            streams=streams, series=5, batch_points=50, stream_points=points, window_batches=2,
            seed=streams,
        )  # fmt: skip
        result = await run(gateway.address, traffic)
        await _until_all_are_back(gateway.dsn, _BUDGET)
    assert not result.errors
    assert result.points == points * streams
    assert watch.polls > 1
    assert watch.connections_max == _BUDGET, watch.backends_at_max


async def test_dying_backends_count_against_the_budget(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    seed = int(os.environ.get("HEADRACE_TEST_SEED") or random.randrange(2**32))
    print(f"seed {seed}")
    generator = random.Random(seed)
    killed = 0
    async with ConnectionWatch(gateway.dsn, interval_s=0.002) as watch:
        ready, stop = asyncio.Event(), asyncio.Event()
        traffic = Traffic(
            streams=64, series=10, batch_points=200, points_per_s=50_000, resume=True, seed=seed
        )
        journal = str(tmp_path / "streams.journal")
        running = asyncio.create_task(
            run(
                gateway.address,
                traffic,
                journal=Journal(journal),
                on_ready=ready.set,
                stop=stop,
            )
        )
        await asyncio.wait_for(ready.wait(), 60)  # nothing is sent before all streams are open
        killer = await asyncpg.connect(gateway.dsn)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 8
        while loop.time() < deadline:
            await asyncio.sleep(generator.uniform(0.02, 0.3))
            killed += await killer.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM ("
                " SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'headrace%'"
                " AND datname = current_database() ORDER BY random() LIMIT $1) AS doomed",
                generator.choice([1, 1, 2, _BUDGET]),
            )
        stop.set()
        result = await running
        await killer.close()
    assert killed > 20
    assert watch.connections_max == _BUDGET, watch.backends_at_max
    assert not result.errors, result.errors
    async with Oracle(gateway.dsn) as oracle:
        pairs = Journal.read(journal).tolist()
        assert len(pairs) == traffic.streams
        for stream, (sent, acknowledged) in enumerate(pairs):
            stored = await oracle.check_writer(
                traffic.plan(stream),
                run_id=traffic.run_id(stream),
                writer_id=traffic.writer_id(stream),
                sent=sent,
                acknowledged=acknowledged,
            )
            assert stored > 0
