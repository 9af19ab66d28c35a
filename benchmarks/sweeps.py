"""How the gateway behaves as one thing grows: streams, batches, load, disorder.

Every point of a sweep is a round of `benchmarks.raw_streams` with an audit of
its own. Figures are named after what was varied: `sweep_streams_256_points_per_s`.
"""

from typing import Any, Final

from benchmarks.load import Load
from benchmarks.raw_ingest import audit, generate, idle_streams, new_seed
from benchmarks.raw_streams import Traffic
from benchmarks.site import Site

STREAMS: Final = (1, 8, 64, 256, 1_000, 5_000)
BATCH_POINTS: Final = (1, 20, 100, 1_000)
OFFERED_POINTS_PER_S: Final = (
    50_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000, 4_800_000,
)  # fmt: skip
KNEE_P99_MS: Final = 500.0  # beyond it more load only adds latency
SWEEP_S: Final = 2.5
OFFERED_S: Final = 3.0  # of which the first is not timed:
OFFERED_WARM_UP_S: Final = 1.0
MIXES: Final = {
    "ordered": (),
    "swapped": ("--swapped", 0.2),
    "repeated": ("--repeated", 0.2),
    "late": ("--late", 0.2),
    "all": ("--swapped", 0.1, "--repeated", 0.1, "--late", 0.1, "--special-values"),
}


async def measure_streams(site: Site, load: Load) -> dict[str, float]:
    """Measure 1 to 5,000 saturated streams of 1,000-point batches; memory and connections too.

    On servers of its own: thousands of runs are looked after for a while when they end.
    """
    figures: dict[str, float] = {}
    async with Site.open(workers=site.workers) as own:
        for streams in STREAMS:
            # The window of all streams together stays the same: 1,024 batches at most.
            window = max(1, min(16, 1_024 // streams))
            result = await _round(
                own, load, streams=streams, batch_points=1_000, window=window, duration_s=SWEEP_S
            )
            figures |= {
                f"sweep_streams_{streams}_points_per_s": result["points_per_s"],
                f"sweep_streams_{streams}_ack_p99_ms": result["ack_ms"]["p99"],
                f"sweep_streams_{streams}_ack_max_ms": result["ack_ms"]["max"],
                f"sweep_streams_{streams}_connections": own.connections_max,
                f"sweep_streams_{streams}_rss_mb": own.gateway_memory_bytes() / 1e6,
            }
    return figures


async def measure_batches(site: Site, load: Load) -> dict[str, float]:
    """Measure 64 saturated streams whose messages hold 1 to 1,000 points."""
    figures: dict[str, float] = {}
    for points in BATCH_POINTS:
        result = await _round(
            site, load, series=min(points, load.series), batch_points=points, duration_s=SWEEP_S
        )
        figures |= {
            f"sweep_batch_{points}_points_per_s": result["points_per_s"],
            f"sweep_batch_{points}_messages_per_s": result["batches"] / result["seconds"],
        }
    return figures


async def measure_offered(site: Site, load: Load) -> dict[str, float]:
    """Raise the offered load until latency leaves the floor or the load is no longer reached.

    On servers of its own: compaction of what others stored would share the cores.
    """
    async with Site.open(workers=site.workers) as own:
        return await _knee(own, load)


def offered_batch_points(offered: int, series: int) -> int:
    """Return the points of a message: from 400,000 points/s on, 2,000 messages a second."""
    return max(200, offered // 2_000 // series * series)


async def _knee(site: Site, load: Load) -> dict[str, float]:
    figures: dict[str, float] = {}
    for offered in OFFERED_POINTS_PER_S:
        result = await _round(
            site,
            load,
            batch_points=offered_batch_points(offered, load.series),
            points_per_s=offered,
            duration_s=OFFERED_S,
            warm_up_s=OFFERED_WARM_UP_S,
        )
        p99_ms = result["ack_ms"]["p99"]
        figures |= {
            f"offered_{offered}_ack_p50_ms": result["ack_ms"]["p50"],
            f"offered_{offered}_ack_p99_ms": p99_ms,
            f"offered_{offered}_points_per_s": result["points_per_s"],
        }
        if p99_ms < KNEE_P99_MS and result["points_per_s"] > 0.9 * offered:
            figures["offered_knee_points_per_s"] = offered
        else:
            break
    return figures


async def measure_disorder(site: Site, load: Load) -> dict[str, float]:
    """Measure traffic with swapped, repeated and late steps beside ordered traffic."""
    figures: dict[str, float] = {}
    for name, options in MIXES.items():
        result = await _round(site, load, batch_points=1_000, duration_s=SWEEP_S, options=options)
        figures[f"mix_{name}_points_per_s"] = result["points_per_s"]
    for name in MIXES:
        figures[f"mix_{name}_ratio"] = (
            figures[f"mix_{name}_points_per_s"] / figures["mix_ordered_points_per_s"]
        )
    return figures


async def measure_idle(_site: Site, load: Load) -> dict[str, float]:
    """Weigh 5,000 idle streams, and see what one more writer sees.

    A fresh gateway with its default of one process: what busier scenarios leave
    with it would be weighed too.
    """
    async with Site.open() as site:
        async with idle_streams(site, 1):
            pass  # the first stream pays for imports and caches
        before_bytes = site.gateway_memory_bytes()
        async with idle_streams(site, load.idle_streams) as opened_s:
            held_bytes = site.gateway_memory_bytes()
            beside: dict[str, float] = {}
            if not load.brief:
                result = await _round(
                    site,
                    load,
                    streams=1,
                    batch_points=1_000,
                    points_per_s=20_000,
                    duration_s=SWEEP_S,
                )
                beside[f"ack_p99_ms_beside_{load.idle_streams}_streams"] = result["ack_ms"]["p99"]
            connections = site.connections_now
    return {
        **beside,
        "idle_stream_bytes": (held_bytes - before_bytes) / load.idle_streams,
        "stream_opens_per_s": load.idle_streams / opened_s,
        "rss_mb_no_streams": before_bytes / 1e6,
        f"rss_mb_{load.idle_streams}_streams": held_bytes / 1e6,
        f"connections_{load.idle_streams}_streams": connections,
    }


async def _round(
    site: Site,
    load: Load,
    *,
    streams: int | None = None,
    series: int | None = None,
    batch_points: int,
    window: int = 16,
    points_per_s: int = 0,
    duration_s: float,
    warm_up_s: float = 0.0,
    options: tuple[str | float, ...] = (),
) -> dict[str, Any]:
    streams = streams or load.streams
    number = new_seed()
    result = await generate(
        site,
        "--streams", streams, "--series", series or load.series, "--seed", number,
        "--batch-points", batch_points, "--window-batches", window,
        "--points-per-s", points_per_s, "--duration-s", duration_s,
        "--warm-up-s", warm_up_s, *options,
    )  # fmt: skip
    traffic = Traffic(seed=number)
    await audit(site, [traffic.run_id(each) for each in range(streams)], result["points"])
    return result
