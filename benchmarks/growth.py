"""Does ingest slow down as points pile up? The rate before and after a mass of stored points.

Between the two measurements the gateway stores the mass itself, as fast as it
takes it, into runs of their own: indexes, statistics and autovacuum are in the
state that such a load leaves behind. The load measured is the same before and
after, several rounds each, and the medians are compared.
"""

import asyncio
from statistics import median
from typing import Final

from benchmarks.load import Load
from benchmarks.raw_ingest import audit, generate, new_seed
from benchmarks.raw_streams import Traffic
from benchmarks.site import Site

ROUNDS: Final = 3
BRIEF_ROUNDS: Final = 2
MASS_ROUND_POINTS: Final = 20_000_000


async def measure_growth(site: Site, load: Load) -> dict[str, float]:
    """Measure the rate now, after a quarter and after all of `load.growth_points` more.

    On servers of its own: the mass would burden whatever is measured after it.
    """
    async with Site.open(workers=site.workers) as own:
        return await _measure(own, load)


async def _measure(site: Site, load: Load) -> dict[str, float]:
    before = await _rate(site, load)
    figures = {"ingest_before_growth_points_per_s": before}
    stored = 0
    marks = {"quarter": load.growth_points // 4, "end": load.growth_points}
    if load.brief:
        del marks["quarter"]
    for label, mark in marks.items():
        while stored < mark:
            points = min(MASS_ROUND_POINTS, mark - stored)
            await _store(site, load, points)
            stored += points
        rate = await _rate(site, load)
        figures[f"ingest_after_growth_{label}_points_per_s"] = rate
        figures[f"ingest_after_growth_{label}_ratio"] = rate / before
    figures["ingest_after_growth_ratio"] = figures.pop("ingest_after_growth_end_ratio")
    figures["growth_points"] = stored
    return figures


async def _rate(site: Site, load: Load) -> float:
    rates = []
    for _ in range(BRIEF_ROUNDS if load.brief else ROUNDS):
        await site.checkpoint()
        rates.append(await _store(site, load, load.raw_points // 2))
        await asyncio.sleep(0.5)
    return median(rates)


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
