"""Memory is bounded by configuration: RSS ≤ base + streams x (…) + k x pending bytes."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import asyncpg
import psutil
import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.oracle import Oracle

_STREAMS: Final = 1_000
_STREAM_BYTES: Final = 60_000  # an idle stream
_LOOKAHEAD_BYTES: Final = 128 * 1024
_PENDING_BYTES_MAX: Final = 64 * 2**20
_PENDING_FACTOR: Final = 5  # k; docs/decisions/0003 says what it covers
_BATCH_POINTS: Final = 8_192
_MESSAGE_BYTES: Final = 28 * _BATCH_POINTS + 64  # the largest batch


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


async def _settled(process: psutil.Process) -> int:
    """Return the RSS in bytes once it has stopped growing."""
    rss, seen = process.memory_info().rss, 0
    async with asyncio.timeout(60):
        while seen < 10:
            await asyncio.sleep(0.1)
            now = process.memory_info().rss
            seen = 0 if now > rss + (1 << 20) else seen + 1
            rss = max(rss, now)
    return rss


async def test_idle_stream_costs_less_than_60_kilobytes(database_dsn: str, tmp_path: Path) -> None:
    with GatewayProcess(database_dsn, tmp_path) as gateway:
        process = psutil.Process(gateway.pid)
        async with _generator(gateway.address, "--streams", "20", "--idle", "--duration-s", "1"):
            pass  # the first streams load what all share
        base = await _settled(process)
        async with _generator(gateway.address, "--streams", str(_STREAMS), "--idle"):
            grown = await _settled(process) - base
    print(f"idle stream: {grown / _STREAMS:.0f} bytes")
    assert grown / _STREAMS < _STREAM_BYTES


@pytest.mark.timeout(240)
async def test_a_thousand_stalled_streams_stay_under_the_formula_and_lose_nothing(
    database_dsn: str, tmp_path: Path
) -> None:
    arguments = ["--set", f"pending_bytes_max={_PENDING_BYTES_MAX}"]
    arguments += ["--set", f"lookahead_bytes={_LOOKAHEAD_BYTES}"]
    points = 2 * _BATCH_POINTS
    with GatewayProcess(database_dsn, tmp_path, arguments=arguments) as gateway:
        process = psutil.Process(gateway.pid)
        base = await _settled(process)
        allowed = (
            base
            + _STREAMS * (_LOOKAHEAD_BYTES + _MESSAGE_BYTES + _STREAM_BYTES)
            + _PENDING_FACTOR * _PENDING_BYTES_MAX
        )
        frozen = await asyncpg.connect(database_dsn)
        await frozen.execute("BEGIN; LOCK TABLE loose_chunks IN SHARE MODE")
        seed = 11
        async with _generator(
            gateway.address, "--streams", str(_STREAMS), "--series", "32", "--seed", str(seed),
            "--batch-points", str(_BATCH_POINTS), "--stream-points", str(points),
            "--window-batches", "2",
        ) as generator:  # fmt: skip
            stalled = await _settled(process)
            print(f"stalled: {stalled >> 20} MiB of {allowed >> 20} MiB, base {base >> 20} MiB")
            async with Oracle(database_dsn) as oracle:
                assert not await oracle.fetch("SELECT FROM metric_chunks LIMIT 1")
            await frozen.close()
            peak = stalled
            async with asyncio.timeout(120):
                while generator.returncode is None:
                    peak = max(peak, process.memory_info().rss)
                    await asyncio.sleep(0.05)
            assert generator.returncode == 0
        print(f"peak while recovering: {peak >> 20} MiB")
        assert stalled - base > _PENDING_BYTES_MAX  # it was really under pressure
        assert peak < allowed
    await _check(database_dsn, seed, points)


async def _check(dsn: str, seed: int, points: int) -> None:
    from benchmarks.raw_streams import Traffic

    traffic = Traffic(streams=_STREAMS, series=32, batch_points=_BATCH_POINTS, seed=seed)
    async with Oracle(dsn) as oracle:
        (row,) = await oracle.fetch(
            "SELECT (SELECT sum(accepted_points) FROM writers) AS counted,"
            " (SELECT sum(length(point_values) / 8) FROM metric_chunks) AS stored"
        )
        assert row["counted"] == row["stored"] == points * _STREAMS
        for stream in range(0, _STREAMS, 50):
            sequence = points // 32
            stored = await oracle.check_writer(
                traffic.plan(stream),
                run_id=traffic.run_id(stream),
                writer_id=traffic.writer_id(stream),
                sent=sequence,
                acknowledged=sequence,
            )
            assert stored == points
