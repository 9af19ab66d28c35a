"""What one log call of 10 scalars costs the trainer with each tracker's own library.

Headrace's is measured by `benchmarks.log_call` in the same rhythm: back to
back, in a fresh process each. These write to files of this machine, as they do
offline; MLflow's calls go to the tracking server of `benchmarks.peers.mlflow`,
which measures them while it has one.
"""

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import log_call
from benchmarks.load import Load
from benchmarks.peers.installation import PEERS_ENVIRONMENT, peer_program
from benchmarks.site import Site

TRACKERS: Final = {"wandb_offline": 5_000, "trackio": 2_000, "tensorboardx": 10_000}
"""Ways to log, and how many calls are measured: the slow ones would take minutes."""
DEADLINE_S: Final = 120.0


async def measure_peer_log_calls(site: Site, load: Load) -> dict[str, float]:
    """Measure Headrace and the trackers that need no server."""
    own = await asyncio.to_thread(log_call.measure, site.address)
    figures = {
        "log_call_headrace_us": own["median_us"],
        "log_call_headrace_p999_us": own["p999_us"],
    }
    for tracker, calls in TRACKERS.items():
        figures |= await time_log_calls(tracker, calls)
    return figures


async def time_log_calls(tracker: str, calls: int, *, mlflow_url: str = "") -> dict[str, float]:
    """Time calls of one tracker; microseconds, the median, and of 1,000 and more the p99.9."""
    with tempfile.TemporaryDirectory(prefix="headrace-peer-") as directory:
        process = await asyncio.create_subprocess_exec(
            peer_program("python"),
            "-P",  # beside the script lies a mlflow.py of ours
            Path(__file__).with_name("log_call_process.py"),
            tracker,
            str(calls),
            cwd=directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "HOME": directory,
                "TRACKIO_DIR": directory,
                "MLFLOW_TRACKING_URI": mlflow_url,
                "VIRTUAL_ENV": str(PEERS_ENVIRONMENT),
            },
        )
        output, complaints = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    if process.returncode:
        raise RuntimeError(f"{tracker}: {complaints.decode(errors='replace')[-500:]}")
    quantiles = json.loads(output.splitlines()[-1])
    return {
        f"log_call_{tracker}_{name.removeprefix('median_')}": value
        for name, value in quantiles.items()
    }
