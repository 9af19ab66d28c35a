"""Times the log calls of one tracker; runs in the peers' environment.

    python log_call_process.py TRACKER CALLS

Logs 10 scalars a call, back to back, and prints one JSON object of microseconds.
"""

import json
import os
import sys
import time
from collections.abc import Callable

METRICS = {f"metric_{index}": 0.5 * index for index in range(10)}
Log = Callable[[int], object]
Finish = Callable[[], object]


def mlflow_log_metrics(synchronous: bool = True) -> tuple[Log, Finish]:
    """Log to the tracking server named by the environment."""
    import mlflow

    mlflow.start_run()
    return (
        lambda step: mlflow.log_metrics(METRICS, step=step, synchronous=synchronous),
        mlflow.end_run,
    )


def mlflow_log_metrics_async() -> tuple[Log, Finish]:
    """Log through MLflow's queue."""
    return mlflow_log_metrics(synchronous=False)


def wandb_offline() -> tuple[Log, Finish]:
    """Log to files of the working directory."""
    import wandb

    # Without its sampler of the system, as ours is measured.
    settings = wandb.Settings(x_disable_stats=True)
    run = wandb.init(mode="offline", project="benchmark", settings=settings)
    return lambda step: run.log(METRICS, step=step), run.finish


def trackio() -> tuple[Log, Finish]:
    """Log to trackio's local database."""
    import trackio

    trackio.init(project="benchmark")
    return lambda step: trackio.log(METRICS, step=step), trackio.finish


def tensorboardx() -> tuple[Log, Finish]:
    """Log to an event file, a call for each scalar: there is none for several."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter("events")

    def log(step: int) -> None:
        for key, value in METRICS.items():
            writer.add_scalar(key, value, step)

    return log, writer.close


TRACKERS = {
    each.__name__: each
    for each in (mlflow_log_metrics, mlflow_log_metrics_async, wandb_offline, trackio, tensorboardx)
}


def main() -> None:
    """Warm up, measure, print."""
    log, finish = TRACKERS[sys.argv[1]]()
    calls = int(sys.argv[2])
    warm_up = calls // 10
    durations_us = []
    for step in range(warm_up + calls):
        started = time.perf_counter_ns()
        log(step)
        durations_us.append((time.perf_counter_ns() - started) / 1_000)
    measured = sorted(durations_us[warm_up:])
    if "async" not in sys.argv[1]:
        finish()
    quantiles = {"median_us": measured[len(measured) // 2]}
    if calls >= 1_000:
        quantiles["p999_us"] = measured[int((calls - 1) * 0.999)]
    print(json.dumps(quantiles), flush=True)  # last: trackers print as well
    os._exit(0)  # what is still queued is not waited for


if __name__ == "__main__":
    main()
