"""Artifacts: throughput beside aioboto3, memory, and what they cost the metrics.

The baseline is the same work without a gateway: aioboto3 with its defaults
sends the same parts to the same S3 server, as many at a time, from a process
of its own on the same machine. Both are connected before the clock starts; it stops
when the file is visible, whatever has to be hashed or verified before.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.artifact_client import renew
from benchmarks.load import Load
from benchmarks.raw_ingest import audit, generate, new_seed
from benchmarks.raw_streams import Traffic
from benchmarks.site import Site

_MIB: Final = 1024 * 1024
_FILE_BYTES: Final = 512 * _MIB
_BUSY_FILES: Final = 16
_BUSY_FILE_BYTES: Final = 12 * _MIB
_BUSY_S: Final = 4.0
_BUSY_TURNS: Final = 2
_WATCH_INTERVAL_S: Final = 0.02
_MODES: Final = ("aioboto3", "gateway", "direct")


async def measure_artifacts(site: Site, load: Load) -> dict[str, float]:
    """Upload one large file by each way, twice, and watch the gateway's memory."""
    path = _file(site, "large", _FILE_BYTES // (2 if load.brief else 1))
    await _finish(await _start(site, "gateway", _file(site, "warm", 20 * _MIB)))
    seconds = dict.fromkeys(_MODES, 0.0)
    order = random.sample(_MODES, len(_MODES))
    before_bytes = site.gateway_memory_bytes()
    async with _watched_memory(site) as most:
        for mode in (*order, *reversed(order)):  # a machine that slows down slows all of them
            process = await _start(site, mode, path)
            renew(path)
            await site.checkpoint()  # what was uploaded before waits in the page cache
            seconds[mode] += (await _finish(process))["seconds"]
    rates = {mode: 2 * path.stat().st_size / _MIB / spent for mode, spent in seconds.items()}
    return {
        "artifact_aioboto3_mib_per_s": rates["aioboto3"],
        "artifact_proxy_mib_per_s": rates["gateway"],
        "artifact_direct_mib_per_s": rates["direct"],
        "artifact_rss_growth_mb": (most[0] - before_bytes) / 1e6,
    }


async def measure_acks_beside_artifacts(site: Site, load: Load) -> dict[str, float]:
    """Time acknowledgements at a steady load: alone, beside 16 uploads, beside 16 without us.

    The third is the control, what one machine for everything costs by itself: the same
    clients upload the same files, one after another, by aioboto3 to the S3 server. Two
    turns, the second in reverse; the figures are medians.

    On servers of its own, whose bucket is in memory: S3 is elsewhere as a rule, and on one
    file system a flush of the write-ahead log waits until the bytes of the uploads are
    written too.
    """
    async with Site.open(workers=site.workers, bucket_in_memory=True) as own:
        files = [_file(own, f"busy-{n}", _BUSY_FILE_BYTES) for n in range(_BUSY_FILES)]
        waits: dict[str, list[float]] = {"": [], "busy-gateway": [], "busy-s3": []}
        rates: dict[str, list[float]] = {"busy-gateway": [], "busy-s3": []}
        order = list(waits)
        for _ in range(_BUSY_TURNS):
            for mode in order:
                if mode:
                    p99, rate = await _paced_beside(own, load, mode, files)
                    rates[mode].append(rate)
                else:
                    p99 = await _paced(own, load)
                waits[mode].append(p99)
            order.reverse()  # what comes later finds a fuller database
    return {
        "ack_p99_ms_without_uploads": median(waits[""]),
        "ack_p99_ms_with_16_uploads": median(waits["busy-gateway"]),
        "ack_p99_ms_with_16_uploads_to_s3": median(waits["busy-s3"]),
        "busy_proxy_mib_per_s": median(rates["busy-gateway"]),
        "busy_aioboto3_mib_per_s": median(rates["busy-s3"]),
    }


async def _paced_beside(
    site: Site, load: Load, mode: str, files: list[Path]
) -> tuple[float, float]:
    process = await _start(site, mode, *files)
    try:
        await asyncio.sleep(2)  # until all of them are under way
        p99 = await _paced(site, load)
    finally:
        result = await _finish(process)
    if not result["bytes"]:
        raise RuntimeError("no upload was completed meanwhile")
    return p99, result["bytes"] / result["seconds"] / _MIB


async def _paced(site: Site, load: Load) -> float:
    seed = new_seed()
    result = await generate(
        site,
        "--streams", load.streams, "--series", load.series, "--seed", seed,
        "--batch-points", 200, "--points-per-s", load.paced_points_per_s,
        "--duration-s", _BUSY_S, "--warm-up-s", 1,
    )  # fmt: skip
    traffic = Traffic(seed=seed)
    await audit(site, [traffic.run_id(each) for each in range(load.streams)], result["points"])
    p99: float = result["ack_ms"]["p99"]
    return p99


def _file(site: Site, name: str, size: int) -> Path:
    """Make a file of random bytes, once."""
    path = site.directory / name
    if not path.exists():
        with path.open("wb") as file:
            for _ in range(size // _MIB):
                file.write(random.randbytes(_MIB))
    return path


async def _start(site: Site, mode: str, *files: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.artifact_client",
        mode,
        *files,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **site.s3_variables, "BENCHMARK_ADDRESS": site.address},
    )


async def _finish(process: asyncio.subprocess.Process) -> dict[str, float]:
    output, complaints = await process.communicate(b"")  # closes its input
    if process.returncode:
        raise RuntimeError(complaints.decode(errors="replace")[-500:])
    result: dict[str, float] = json.loads(output)
    return result


@contextlib.asynccontextmanager
async def _watched_memory(site: Site) -> AsyncIterator[list[int]]:
    most = [site.gateway_memory_bytes()]

    async def watch() -> None:
        while True:
            most[0] = max(most[0], site.gateway_memory_bytes())
            await asyncio.sleep(_WATCH_INTERVAL_S)

    task = asyncio.create_task(watch())
    try:
        yield most
    finally:
        task.cancel()
