"""A trainer for the fault tests: logs known values through the real client until told to stop.

    python -m tests.faults.trainer RUN_ID JOURNAL

Step n of a key has the value `value_of(n, key index)`. The journal holds, as one
little-endian uint64, how many log calls have returned; it survives SIGKILL.
The gateway, the spool and everything else come from HEADRACE_* variables.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

import headrace

KEYS: Final = tuple(f"train/metric_{index}" for index in range(8))
_INTERVAL_S: Final = 0.005


def value_of(step: int, index: int) -> float:
    """What is logged; exact in float64."""
    return step / 1024 + index


def logged_steps(journal: Path) -> int:
    """Read a journal; 0 when the trainer died before it made one."""
    return int.from_bytes(journal.read_bytes()[:8], "little") if journal.exists() else 0


def main() -> int:
    """Log until SIGTERM; 0 when everything was committed in the end."""
    run_id, journal = sys.argv[1:]
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    file = os.open(journal, os.O_RDWR | os.O_CREAT, 0o600)
    run = headrace.init(run_id, experiment="faults", strict=True, quiet=True)
    step = 0
    while not stopping:
        run.log({key: value_of(step, index) for index, key in enumerate(KEYS)}, step=step)
        step += 1
        os.pwrite(file, step.to_bytes(8, "little"), 0)
        time.sleep(_INTERVAL_S)
    status = run.finish(timeout=60)
    return 0 if status.done else 1


if __name__ == "__main__":
    sys.exit(main())
