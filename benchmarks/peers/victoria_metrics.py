"""VictoriaMetrics, single node: the same points by its two fastest text imports.

It acknowledges what is in memory, not on disk ("the last few seconds may be
lost"), keeps milliseconds, and knows no step: the step travels as the time.
Bodies are built before the clock starts. The rows its own counter reports are
compared with the rows sent.
"""

import asyncio
import contextlib
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import Final

import aiohttp

from benchmarks.load import Load
from benchmarks.peers.http_load import hammer
from benchmarks.peers.installation import system_program
from benchmarks.plan import TIME_ORIGIN_US, Plan
from benchmarks.site import Site, free_port

START_DEADLINE_S: Final = 30.0
CLIENTS: Final = 4
STEPS_PER_BODY: Final = 500
ROWS_COUNTER: Final = "vm_rows_inserted_total"

Encode = Callable[[Plan, int, int], bytes]


async def measure_victoria_metrics(site: Site, load: Load) -> dict[str, float]:
    """Measure JSON lines and the line protocol; the figure without a format is the faster one."""
    figures = {}
    for name, path, encode in (
        ("json", "/api/v1/import", json_lines),
        ("line_protocol", "/write", line_protocol),
    ):
        async with _server() as url:
            rate = await _import(url + path, url, encode, load)
            figures[f"victoriametrics_{name}_points_per_s"] = rate
    figures["victoriametrics_points_per_s"] = max(figures.values())
    return figures


def json_lines(plan: Plan, first: int, count: int) -> bytes:
    """Return steps as one JSON line for each series."""
    columns = plan.columns(first, count)
    times = [TIME_ORIGIN_US // 1_000 + step for step in range(first, first + count)]
    stamps = ",".join(map(str, times))
    lines = []
    for series in range(plan.series):
        values = ",".join(map(repr, columns.value[series :: plan.series].tolist()))
        lines.append(
            f'{{"metric":{{"__name__":"{_name(plan, series)}","run":"{plan.stream}"}},'
            f'"values":[{values}],"timestamps":[{stamps}]}}'
        )
    return "\n".join(lines).encode()


def line_protocol(plan: Plan, first: int, count: int) -> bytes:
    """Return steps as one line of InfluxDB's protocol each, a field for each series."""
    values = plan.columns(first, count).value.reshape(count, plan.series).tolist()
    names = [f"metric_{series:05d}" for series in range(plan.series)]
    lines = []
    for row, step in zip(values, range(first, first + count), strict=True):
        fields = ",".join(f"{name}={value!r}" for name, value in zip(names, row, strict=True))
        lines.append(
            f"training,run={plan.stream} {fields} {TIME_ORIGIN_US * 1_000 + step * 1_000_000}"
        )
    return "\n".join(lines).encode()


async def _import(target: str, url: str, encode: Encode, load: Load) -> float:
    """Send the bodies from 4 connections; return points/s. The first of each only warms up."""
    bodies, points = _bodies(encode, load)

    def warm(client: int, number: int) -> bytes | None:
        return bodies[client][0][0] if number == 0 else None

    def body(client: int, number: int) -> bytes | None:
        return bodies[client][1 + number][0] if 1 + number < len(bodies[client]) else None

    tallies = [await hammer(target, each, clients=CLIENTS) for each in (warm, body)]
    inserted = await _rows_inserted(url)
    if any(tally.failed for tally in tallies) or inserted != points:
        raise RuntimeError(f"sent {points} points, {inserted} inserted; {tallies[-1].failures}")
    return (points - sum(sent[0][1] for sent in bodies)) / tallies[-1].seconds


@lru_cache(maxsize=2)  # all rounds send the same, each to a new server
def _bodies(encode: Encode, load: Load) -> tuple[list[list[tuple[bytes, int]]], int]:
    """Return each client's bodies with their points, and all points.

    Those are a third of a raw round's, a sixth in a short run.
    """
    steps = load.raw_points // (6 if load.brief else 3) // (load.streams * load.series)
    bodies: list[list[tuple[bytes, int]]] = [[] for _ in range(CLIENTS)]
    points = 0
    for stream in range(load.streams):
        plan = load.plan(stream)
        for first in range(1, steps + 1, STEPS_PER_BODY):
            count = min(STEPS_PER_BODY, steps + 1 - first)
            bodies[stream % CLIENTS].append((encode(plan, first, count), count * load.series))
            points += count * load.series
    return bodies, points


async def _rows_inserted(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith(ROWS_COUNTER))


@contextlib.asynccontextmanager
async def _server() -> AsyncIterator[str]:
    program = system_program("victoria-metrics")
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="headrace-victoria-") as directory:
        process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [
                program, f"-storageDataPath={directory}", f"-httpListenAddr={address}",
                "-retentionPeriod=100y", "-loggerLevel=ERROR",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await _healthy(f"http://{address}", process)
            yield f"http://{address}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    async with aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("VictoriaMetrics did not start")
            await asyncio.sleep(0.1)


def _name(plan: Plan, series: int) -> str:
    return plan.key(series).replace("/", "_")
