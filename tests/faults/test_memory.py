"""Memory is bounded by configuration: RSS ≤ base + streams x (…) + k x pending bytes.

A stream that nobody reads is buffered by gRPC up to twice its `lookahead_bytes`.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from benchmarks.raw_streams import Traffic
from tests.support.gateway_process import GatewayProcess
from tests.support.memory import Memory
from tests.support.oracle import Oracle

_IDLE_STREAMS: Final = 1_000
_STREAM_BYTES: Final = 60_000  # an idle stream
_LOOKAHEAD_BYTES: Final = 128 * 1024
_PENDING_BYTES_MAX: Final = 64 * 2**20
_PENDING_FACTOR: Final = 5  # k; docs/decisions/0003 says what it covers
_BATCH_POINTS: Final = 8_192
_MESSAGE_BYTES: Final = 28 * _BATCH_POINTS + 64  # the largest batch
_SEED: Final = 11


@contextlib.asynccontextmanager
async def _generator(address: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run raw streams in a process of their own; yield when all are open."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.raw_streams", address, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stderr.readline()
            assert line == b"ready\n", line + await process.stderr.read()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_idle_stream_costs_less_than_60_kilobytes(database_dsn: str, tmp_path: Path) -> None:
    with GatewayProcess(database_dsn, tmp_path) as gateway:
        memory = Memory(gateway.pid)
        async with _generator(gateway.address, "--streams", "20", "--idle", "--duration-s", "1"):
            pass  # the first streams load what all share
        base = await memory.settled()
        async with _generator(gateway.address, "--streams", str(_IDLE_STREAMS), "--idle"):
            grown = await memory.settled() - base
    print(f"idle stream: {grown / _IDLE_STREAMS:.0f} bytes")
    assert grown / _IDLE_STREAMS < _STREAM_BYTES


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("streams", "batches"),
    [
        # Offers twice what the formula allows: a gateway without a budget fails.
        pytest.param(250, 16, id="deep"),
        # What each stream holds of its own counts most.
        pytest.param(1_000, 2, id="wide", marks=pytest.mark.long),
    ],
)
async def test_stalled_streams_stay_under_the_formula_and_lose_nothing(
    streams: int, batches: int, database_dsn: str, tmp_path: Path
) -> None:
    arguments = ["--set", f"pending_bytes_max={_PENDING_BYTES_MAX}"]
    arguments += ["--set", f"lookahead_bytes={_LOOKAHEAD_BYTES}"]
    points = batches * _BATCH_POINTS
    allowed = (
        streams * (2 * _LOOKAHEAD_BYTES + _MESSAGE_BYTES + _STREAM_BYTES)
        + _PENDING_FACTOR * _PENDING_BYTES_MAX
    )
    with GatewayProcess(database_dsn, tmp_path, arguments=arguments) as gateway:
        memory = Memory(gateway.pid)
        frozen = await asyncpg.connect(database_dsn)
        await frozen.execute("BEGIN; LOCK TABLE loose_chunks IN SHARE MODE")
        async with _generator(
            gateway.address, "--streams", str(streams), "--series", "32", "--seed", str(_SEED),
            "--batch-points", str(_BATCH_POINTS), "--stream-points", str(points),
            "--window-batches", str(batches),
        ) as generator:  # fmt: skip
            stalled = await memory.settled() - memory.base
            async with Oracle(database_dsn) as oracle:
                assert not await oracle.fetch("SELECT FROM metric_chunks LIMIT 1")
            await frozen.close()
            async with asyncio.timeout(150):
                assert await generator.wait() == 0
        grown = memory.grown()
        offered = streams * batches * _MESSAGE_BYTES
        print(
            f"offered {offered >> 20} MiB, allowed {allowed >> 20} MiB, over {memory.base >> 20}:"
            f" {stalled >> 20} MiB stalled, {grown >> 20} MiB at most"
        )
        assert stalled > _PENDING_BYTES_MAX  # it was really under pressure
        assert grown < allowed
    await _check(database_dsn, streams, points)


async def _check(dsn: str, streams: int, points: int) -> None:
    traffic = Traffic(streams=streams, series=32, batch_points=_BATCH_POINTS, seed=_SEED)
    async with Oracle(dsn) as oracle:
        (row,) = await oracle.fetch(
            "SELECT (SELECT sum(accepted_points) FROM writers) AS counted,"
            " (SELECT sum(length(point_values) / 8) FROM metric_chunks) AS stored"
        )
        assert row["counted"] == row["stored"] == points * streams
        for stream in range(0, streams, 50):
            sequence = points // 32
            stored = await oracle.check_writer(
                traffic.plan(stream),
                run_id=traffic.run_id(stream),
                writer_id=traffic.writer_id(stream),
                sent=sequence,
                acknowledged=sequence,
            )
            assert stored == points
