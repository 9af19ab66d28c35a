"""Reading a run while others are written: what it costs the reader, and the writers.

A run of a million points in 20 series is stored first. Then its columns are
read again and again, whole and down-sampled, with 64 streams saturating the
gateway and without.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import headrace
import numpy as np

from benchmarks.load import Load
from benchmarks.raw_ingest import audit, generate, new_seed
from benchmarks.raw_streams import Traffic
from benchmarks.site import Site

RUN_POINTS: Final = 1_000_000
MEASURED_S: Final = 3.0


async def measure_reads(site: Site, load: Load) -> dict[str, float]:
    """Measure reads of 50,000-point columns, alone and beside saturated writers."""
    run_id = await _store_run(site, load)
    plan = load.plan(0)
    with headrace.Client(site.address) as client:

        def whole() -> None:
            column = client.read(run_id, [plan.key(0)])[plan.key(0)]
            assert len(column.step) == RUN_POINTS // load.series

        def sampled() -> None:
            client.read(run_id, [plan.key(series) for series in range(4)], max_points=1_000)

        ways = {"whole": whole, "4x1000": sampled}
        alone = {name: await _times(read) for name, read in ways.items()}
        seed = new_seed()
        writing = asyncio.create_task(
            generate(
                site,
                "--streams", load.streams, "--series", load.series, "--seed", seed,
                "--batch-points", load.batch_points, "--duration-s", 2 * MEASURED_S + 1,
            )
        )  # fmt: skip
        await asyncio.sleep(1)
        beside = {
            name: await _times(read) for name, read in (("whole", whole), ("4x1000", sampled))
        }
        result = await writing
    figures = {"ingest_beside_reads_points_per_s": float(result["points_per_s"])}
    for name, times_ms in alone.items():
        figures[f"read_{name}_p50_ms"] = float(np.percentile(times_ms, 50))
    for name, times_ms in beside.items():
        figures[f"read_{name}_beside_writes_p50_ms"] = float(np.percentile(times_ms, 50))
        figures[f"read_{name}_beside_writes_p99_ms"] = float(np.percentile(times_ms, 99))
    return figures


async def _store_run(site: Site, load: Load) -> str:
    seed = new_seed()
    result = await generate(
        site,
        "--streams", 1, "--series", load.series, "--seed", seed,
        "--batch-points", load.batch_points, "--stream-points", RUN_POINTS,
    )  # fmt: skip
    run_id = Traffic(seed=seed).run_id(0)
    await audit(site, [run_id], result["points"])
    return run_id


async def _times(read: Callable[[], None]) -> list[float]:
    """Read again and again for some seconds; return milliseconds of each."""
    times_ms: list[float] = []
    end = time.monotonic() + MEASURED_S
    while time.monotonic() < end:
        started = time.perf_counter()
        await asyncio.to_thread(read)
        times_ms.append(1e3 * (time.perf_counter() - started))
    return times_ms
