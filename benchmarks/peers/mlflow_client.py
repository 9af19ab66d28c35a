"""Jobs that log through MLflow's client, asynchronously; runs in the peers' environment.

    python mlflow_client.py TRACKING_URL JOBS SECONDS

Each job is a thread with a run of its own that logs one point a call with
`synchronous=False`, never more than 25 ahead of the server. Prints one JSON
object: the points logged, and the seconds until the last was delivered.
"""

import json
import sys
import threading
import time

import mlflow

WINDOW = 25  # points in flight: without a bound the queue grows faster than it drains


def job(deadline: float, counts: list[int]) -> None:
    """Log until the deadline, then wait for what is in flight."""
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    logged = 0
    operations = []
    while time.monotonic() < deadline:
        operations.append(
            client.log_metric(run_id, "loss", logged / 4096, step=logged, synchronous=False)
        )
        logged += 1
        if len(operations) == WINDOW:
            for operation in operations:
                operation.wait()
            operations.clear()
    for operation in operations:
        operation.wait()
    counts.append(logged)


def main() -> None:
    """Run the jobs."""
    mlflow.set_tracking_uri(sys.argv[1])
    mlflow.config.enable_async_logging()
    started = time.monotonic()
    counts: list[int] = []
    threads = [
        threading.Thread(target=job, args=(started + float(sys.argv[3]), counts))
        for _ in range(int(sys.argv[2]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"logged": sum(counts), "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main()
