"""One training process of the client benchmark: logs through the real client.

Started by `benchmarks.clients_ingest`, once for each job. Logs one record,
says `ready`, waits for a line on its standard input, then logs the rest as
fast as `log` returns, and finishes.

    python -m benchmarks.client_process RUN_ID SERIES RECORDS
"""

import json
import sys
import time

import headrace


def main() -> None:
    """Log `RECORDS` records of `SERIES` scalars after the start signal."""
    run_id, series, records = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    metrics = {f"group_{index % 7}/metric_{index:05d}": 0.5 * index for index in range(series)}
    run = headrace.init(experiment="benchmark clients", run_id=run_id)
    run.log(metrics, step=0)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    for step in range(1, records):
        run.log({key: value + step for key, value in metrics.items()}, step=step)
    logged_s = time.perf_counter() - started
    run.finish(timeout=120)
    print(json.dumps({"logged_s": logged_s}), flush=True)


if __name__ == "__main__":
    main()
