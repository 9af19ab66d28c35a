"""What one `run.log` of 10 scalars costs the training thread, gateway up or down.

Measured in a process of its own, through the real client with its spool and
sender. Two rhythms: back to back (the sender competes for the cores all the
time) and one call a millisecond with computing in between (caches are cold, as
in training).

    python -m benchmarks.log_call --address 127.0.0.1:7420
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import headrace

CALLS: Final = 50_000
PACED_CALLS: Final = 1_500
PACE_NS: Final = 1_000_000
SCALARS: Final = 10
NOWHERE: Final = "127.0.0.1:9"
"""The discard port, where nothing listens: a gateway that is down."""


def measure(address: str = NOWHERE, *, token: str = "", calls: int = CALLS) -> dict[str, float]:
    """Measure in a fresh process; microseconds by name.

    Args:
        address: the gateway; by default one that is down.
        token: a bearer token, if the gateway asks for one.
        calls: back-to-back calls.

    Returns:
        `median_us`, `p999_us`, `max_us` back to back, and the same with
        `paced_` in front.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-log-call-") as spool_dir:
        finished = subprocess.run(
            [sys.executable, "-m", "benchmarks.log_call", "--measure", "--calls", str(calls)],
            env={
                **os.environ,
                "HEADRACE_ADDRESS": address,
                "HEADRACE_TOKEN": token,
                "HEADRACE_SPOOL_DIR": spool_dir,
                "HEADRACE_QUIET": "1",
                "HEADRACE_SYSTEM_METRICS": "0",
            },
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            check=True,
        )
    figures: dict[str, float] = json.loads(finished.stdout)
    return figures


def _measure_here(calls: int) -> dict[str, float]:
    run = headrace.init(experiment="benchmark log call")
    metrics = {f"metric_{index}": 0.5 * index for index in range(SCALARS)}
    for step in range(1_000):
        run.log(metrics, step=step)
    back_to_back = [_timed(run, metrics, step) for step in range(1_000, 1_000 + calls)]
    paced = []
    due = time.perf_counter_ns()
    for step in range(PACED_CALLS):
        due += PACE_NS
        while time.perf_counter_ns() < due:
            sum(range(200))
        paced.append(_timed(run, metrics, 1_000 + calls + step))
    # The sender of a gateway that is down would wait for it: the spool is thrown away.
    run.finish(timeout=60.0 if run.status().committed_records else 0.0)
    return {**_quantiles(back_to_back, ""), **_quantiles(paced, "paced_")}


def _timed(run: headrace.Run, metrics: dict[str, float], step: int) -> int:
    started = time.perf_counter_ns()
    run.log(metrics, step)
    return time.perf_counter_ns() - started


def _quantiles(durations_ns: list[int], prefix: str) -> dict[str, float]:
    ordered = sorted(durations_ns)
    last = len(ordered) - 1
    return {
        f"{prefix}median_us": ordered[last // 2] / 1_000,
        f"{prefix}p999_us": ordered[int(last * 0.999)] / 1_000,
        f"{prefix}max_us": ordered[last] / 1_000,
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default=NOWHERE, help="host:port of a gateway")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--measure", action="store_true", help="measure in this process")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure_here(options.calls)))
    else:
        print(json.dumps(measure(options.address, calls=options.calls), indent=1))


if __name__ == "__main__":
    main()
