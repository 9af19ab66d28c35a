"""A trainer that forks DataLoader-like workers while it logs from a thread. Started by test_fork.

python -m tests.client.fork_trainer RUN_ID ROUNDS
"""

import multiprocessing
import sys
import threading
from itertools import count

import headrace

WORKERS_THAT_LOG = 2
WORKERS_THAT_DO_NOT = 2
CALLS_EACH = 20


def work(round_number: int, worker: int) -> None:
    """What a worker that logs does."""
    for step in range(CALLS_EACH):
        headrace.log({f"worker/{round_number}/{worker}": step}, step)


def rest() -> None:
    """What a worker that does not log does: it allocates, and goes."""
    sum(len(str(number)) for number in range(1_000))


def main() -> None:
    """Forks in the middle of log calls; every worker must end by itself, with status 0."""
    run_id, rounds = sys.argv[1], int(sys.argv[2])
    run = headrace.init(run_id, quiet=True)
    context = multiprocessing.get_context("fork")
    stopping = threading.Event()
    logged = 0

    def log_all_the_time() -> None:
        nonlocal logged
        for step in count():
            if stopping.is_set():
                return
            run.log({"thread": step}, step)
            logged = step + 1
            if step % 50 == 0:
                stopping.wait(0.001)

    thread = threading.Thread(target=log_all_the_time)
    thread.start()
    for number in range(rounds):
        run.log({"parent": number}, number)
        workers = [
            *(context.Process(target=work, args=(number, w)) for w in range(WORKERS_THAT_LOG)),
            *(context.Process(target=rest) for _ in range(WORKERS_THAT_DO_NOT)),
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
            if worker.exitcode != 0:
                sys.exit(f"round {number}: a worker ended with {worker.exitcode}")
    stopping.set()
    thread.join()
    done = run.finish(timeout=60).done
    print(logged, done, flush=True)


if __name__ == "__main__":
    main()
