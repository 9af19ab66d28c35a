"""Hours of steady load: memory and latency must stay flat. Only with `--soak-minutes`.

A round a minute, each an ordinary paced round with its audit; the gateway, its
database and their memory live on between them.
"""

from statistics import median
from typing import Final

from benchmarks.load import Load
from benchmarks.raw_ingest import audit, generate, new_seed
from benchmarks.raw_streams import Traffic
from benchmarks.site import Site

ROUND_S: Final = 60.0
WARM_UP_S: Final = 2.0
"""Not timed: opening the streams of new runs would make up the slowest hundredth of a minute."""
SETTLED_ROUNDS: Final = 3
"""After these memory is compared: caches and pools fill first."""
MINUTE_S: Final = 62.0
"""What a round takes, with its start and its audit."""


async def measure_soak(site: Site, load: Load) -> dict[str, float]:
    """Send `load.paced_points_per_s` for `load.soak_minutes` rounds."""
    memory_mb: list[float] = []
    p99_ms: list[float] = []
    points = 0
    for _ in range(max(load.soak_minutes, SETTLED_ROUNDS + 1)):
        seed = new_seed()
        result = await generate(
            site,
            "--streams", load.streams, "--series", load.series, "--seed", seed,
            "--batch-points", 200, "--points-per-s", load.paced_points_per_s,
            "--duration-s", ROUND_S, "--warm-up-s", WARM_UP_S,
        )  # fmt: skip
        traffic = Traffic(seed=seed)
        await audit(site, [traffic.run_id(each) for each in range(load.streams)], result["points"])
        points += result["points"]
        memory_mb.append(site.gateway_memory_bytes() / 1e6)
        p99_ms.append(result["ack_ms"]["p99"])
        print(
            f"    minute {len(p99_ms)}: {points:,} points, acknowledged in"
            f" {result['ack_ms']['p50']:.0f} ms, p99 {p99_ms[-1]:.0f}; {memory_mb[-1]:.0f} MB",
            flush=True,
        )
    quarter = max(1, len(p99_ms) // 4)
    return {
        "soak_minutes": len(memory_mb),
        "soak_points": points,
        "soak_rss_mb_settled": memory_mb[SETTLED_ROUNDS],
        "soak_rss_mb_end": memory_mb[-1],
        # Single minutes vary: medians of the first quarter of them and of the last.
        "soak_ack_p99_ms_first_quarter": median(p99_ms[:quarter]),
        "soak_ack_p99_ms_last_quarter": median(p99_ms[-quarter:]),
        "soak_ack_p99_ms_worst": max(p99_ms),
    }
