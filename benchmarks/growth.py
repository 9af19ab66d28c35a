"""Does ingest slow down as points pile up? A database full of them beside an empty one.

The full one is that of all scenarios before, with what they left behind; what is missing of
the mass the gateway stores itself, as fast as it takes it, into runs of their own. Its
indexes are in the state that such a load leaves behind, and vacuumed, as autovacuum
would. Then the same load goes to both databases in turns (A B B A), so that a machine that
becomes slower meanwhile slows both, and the medians are compared.
"""

from statistics import median
from typing import Final

import asyncpg

from benchmarks.load import Load
from benchmarks.raw_ingest import audit, generate, new_seed
from benchmarks.raw_streams import Traffic
from benchmarks.site import Site

PAIRS: Final = 4
BRIEF_PAIRS: Final = 2
MASS_ROUND_POINTS: Final = 20_000_000
QUARTER_FROM_POINTS: Final = 100_000_000


async def measure_growth(site: Site, load: Load) -> dict[str, float]:
    """Measure the rate into nothing and beside `load.growth_points`, a quarter of many too."""
    async with Site.open(workers=site.workers) as empty:
        await _store(empty, load, load.raw_points // 8)  # the other is warm already
        await _clear(empty)
        figures: dict[str, float] = {}
        stored = await _stored(site)
        marks = {"quarter": load.growth_points // 4, "end": load.growth_points}
        if load.growth_points < QUARTER_FROM_POINTS or stored > marks["quarter"]:
            del marks["quarter"]
        for label, mark in marks.items():
            while stored < mark:
                points = min(MASS_ROUND_POINTS, mark - stored)
                await _store(site, load, points)
                stored += points
            before, after = await _rates(empty, site, load)
            figures["ingest_before_growth_points_per_s"] = before
            figures[f"ingest_after_growth_{label}_points_per_s"] = after
            figures[f"ingest_after_growth_{label}_ratio"] = after / before
        figures["ingest_after_growth_ratio"] = figures.pop("ingest_after_growth_end_ratio")
        figures["growth_points"] = await _stored(site)
        return figures


async def _stored(site: Site) -> int:
    connection = await asyncpg.connect(site.dsn)
    try:
        return int(await connection.fetchval("SELECT sum(accepted_points) FROM writers") or 0)
    finally:
        await connection.close()


async def _rates(empty: Site, grown: Site, load: Load) -> tuple[float, float]:
    rates: dict[Site, list[float]] = {empty: [], grown: []}
    points = load.raw_points // (4 if load.brief else 2)
    for pair in range(BRIEF_PAIRS if load.brief else PAIRS):
        for site in (empty, grown) if pair % 2 == 0 else (grown, empty):
            await site.checkpoint()
            rates[site].append(await _store(site, load, points))
            if site is empty:
                await _clear(site)
    return median(rates[empty]), median(rates[grown])


async def _clear(site: Site) -> None:
    connection = await asyncpg.connect(site.dsn)
    try:
        await connection.execute("TRUNCATE loose_chunks, merged_chunks")
    finally:
        await connection.close()


async def _store(site: Site, load: Load, points: int) -> float:
    seed = new_seed()
    result = await generate(
        site,
        "--streams", load.streams, "--series", load.series, "--seed", seed,
        "--batch-points", load.batch_points, "--stream-points", points // load.streams,
    )  # fmt: skip
    traffic = Traffic(seed=seed)
    await audit(site, [traffic.run_id(each) for each in range(load.streams)], result["points"])
    return float(result["points_per_s"])
