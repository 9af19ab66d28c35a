"""One gateway process and two: what another one adds on this machine."""

from benchmarks.load import Load
from benchmarks.raw_ingest import measure_saturated
from benchmarks.site import Site


async def measure_workers(site: Site, load: Load) -> dict[str, float]:
    """Measure 64 saturated streams with `--workers` 1 and 2, the same connection budget."""
    figures = {}
    for workers in (1, 2):
        async with Site.open(workers=workers) as own:
            measured = await measure_saturated(own, load)
            figures[f"workers_{workers}_points_per_s"] = measured["ingest_raw_64x1000_points_per_s"]
            figures[f"workers_{workers}_connections_peak"] = own.connections_max
            figures[f"workers_{workers}_rss_mb"] = own.gateway_memory_bytes() / 1e6
    return figures
