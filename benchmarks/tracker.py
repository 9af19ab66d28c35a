"""The tracker: pages of searches among many runs, and calls that write metadata.

Both go through the gateway, from this process over one channel. Searches have a
PostgreSQL and a gateway of their own, so that the many runs burden nobody else.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from statistics import median, quantiles
from typing import Final

import grpc
from headrace.v1 import run_service_pb2 as pb
from headrace.v1 import run_service_pb2_grpc as run_grpc

from benchmarks.load import Load
from benchmarks.site import Site
from benchmarks.tracker_data import EXPERIMENT, make_runs

PAGES: Final = (
    ("", "start_time DESC"),
    ("metrics.m3 > 0.4 AND params.p0 = 'xgboost'", "start_time DESC"),
    ("metrics.m3 > 0.4 AND params.p0 = 'xgboost' AND tags.t0 ILIKE '%rec%'", "start_time DESC"),
    ("params.p3 = '7'", "start_time DESC"),
    ("params.p4 IN ('7', '8')", "metrics.m1"),
    ("tags.t1 = '7'", "start_time DESC"),
    ("metrics.m3 > 0.9999", "start_time DESC"),
    ("", "metrics.m3 DESC"),
    ("params.p0 = 'bert'", "metrics.m3.min ASC"),
    ("attributes.state = 'FINISHED'", "metrics.m3.max DESC"),
)
"""What a table of runs asks for: a filter and an order, 100 runs with all their data."""

_REPEATS: Final = 5
_CALLERS: Final = 32
_CALLS_S: Final = 3.0


async def measure_search(_site: Site, load: Load) -> dict[str, float]:
    """Time the first page of ten typical searches."""
    async with Site.open() as site:
        await make_runs(site.dsn, load.search_runs)
        async with grpc.aio.insecure_channel(site.address) as channel:
            stub = run_grpc.RunServiceStub(channel)
            times_ms = [await _page_ms(stub, *page) for page in PAGES]
    return {
        f"search_page_{load.search_runs // 1000}k_runs_ms": median(times_ms),
        f"search_page_{load.search_runs // 1000}k_runs_slowest_ms": max(times_ms),
    }


async def _page_ms(stub: run_grpc.RunServiceAsyncStub, text: str, order: str) -> float:
    request = pb.SearchRunsRequest(
        experiments=[EXPERIMENT],
        filter=text,
        order_by=[order],
        page_size=100,
        include_data=True,
    )
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        page = await stub.SearchRuns(request, timeout=60)
        times.append(1_000 * (time.perf_counter() - began))
        assert page.runs, (text, order)
    return median(times)


async def measure_metadata(site: Site, _load: Load) -> dict[str, float]:
    """Count calls that write ten entries each, from 32 callers at once, each with a run."""
    async with grpc.aio.insecure_channel(site.address) as channel:
        stub = run_grpc.RunServiceStub(channel)
        deadline = time.perf_counter() + _CALLS_S
        latencies = [
            latency
            for one in await asyncio.gather(*(_write(stub, deadline) for _ in range(_CALLERS)))
            for latency in one
        ]
    return {
        "metadata_calls_per_s": len(latencies) / _CALLS_S,
        "metadata_call_p99_ms": 1_000 * quantiles(latencies, n=100)[98],
    }


async def _write(stub: run_grpc.RunServiceAsyncStub, deadline: float) -> list[float]:
    run_id = uuid.uuid4().hex
    await stub.CreateRun(pb.CreateRunRequest(run_id=run_id, experiment="team/bench/metadata"))
    latencies: list[float] = []
    began = time.perf_counter()
    while began < deadline:
        entries = [
            pb.MetadataEntry(param=pb.Param(key=f"p{len(latencies)}.{n}", value=str(n)))
            for n in range(5)
        ]
        entries += [
            pb.MetadataEntry(tag=pb.Tag(key=f"t{n}", value=str(len(latencies)))) for n in range(5)
        ]
        await stub.WriteMetadata(pb.WriteMetadataRequest(run_id=run_id, entries=entries))
        ended = time.perf_counter()
        latencies.append(ended - began)
        began = ended
    return latencies
